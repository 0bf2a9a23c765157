/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who causes TIME_WAIT: entries by owner, by remote endpoint and by local port, in memory and time that do not grow with them.
 *
 * A PARTY is an owner (cgroup and uid), a remote endpoint or a local port. Each kind has TALLY_LINES lines of eight; the hash of
 * a party names its line. Connections that found no free local port are counted beside the entries.
 *
 * REMOTE ENDPOINTS AND LOCAL PORTS are counted by Space-Saving (Metwally, Agrawal, El Abbadi, 2005), each line for itself: a
 * party that is not there takes the place of the one with the fewest entries, and counts on from that number, which is its
 * error from then on. So the entries shown are never too few, and too many by the error at most; who has more than an eighth
 * of the entries of its line is always there; and while a line has had no more than eight parties its counts are exact.
 *
 * OWNERS are what vestiges refer to, by index, so none is replaced while a vestige may: only one that has had no entry for as
 * long as a vestige can live. An owner that finds no place is nobody's: OWNER_OTHER.
 *
 * CONCURRENCY. Counts are added to atomically. A place is claimed by compare-and-swap of its key to KEY_BUSY, and has its new
 * key once the party is written; who looks for the same party meanwhile claims another place, and readers add the two up.
 * An entry that is added to a place just as that is given away is the new party's: only above capacity, as the rest of its error.
 */
#ifndef TWCTL_OBSERVE_ATTRIBUTION_H
#define TWCTL_OBSERVE_ATTRIBUTION_H

#include "kernel.h"
#include "observe/view.h"
#include "table.h"

/* A connection that finds no place three times over (each time another CPU was faster) is counted as unattributed. */
#define CLAIMS 3

ALWAYS_INLINE u64 key_of(const struct party *p, u32 kind)
{
	u64 hash = mix(HASH_SEED + kind, (u64)p->address[0] << 32 | p->address[1]);

	hash = mix(hash, (u64)p->address[2] << 32 | p->address[3]);
	hash = mix(hash, (u64)p->port << 48 | (u64)p->family << 40 | (u64)p->netns << 32 | p->scope);
	return settle(hash) | KEY_LEAST;
}

/* What is not said of a party is 0, for the key is the hash of the whole. */
ALWAYS_INLINE void name_ends(struct work *w)
{
	const struct tuple *t = &w->session.tuple;
	struct party *remote = &w->parties[BY_REMOTE], *local = &w->parties[BY_LOCAL_PORT];

	__builtin_memset(w->parties, 0, sizeof(w->parties));
	remote->address[0] = t->remote[0];
	if (!is_ipv4(w)) {
		remote->address[1] = t->remote[1];
		remote->address[2] = t->remote[2];
		remote->address[3] = t->remote[3];
		remote->scope = t->scope;
	}
	remote->port = t->remote_port;
	remote->family = w->family;
	remote->netns = t->netns;
	local->port = t->local_port;
	local->netns = t->netns;
	w->keys[BY_REMOTE] = key_of(remote, BY_REMOTE);
	w->keys[BY_LOCAL_PORT] = key_of(local, BY_LOCAL_PORT);
}

ALWAYS_INLINE void name_owner(struct work *w, u64 cgroup, u32 uid)
{
	struct party *owner = &w->parties[BY_OWNER];

	owner->address[0] = cgroup;
	owner->address[1] = cgroup >> 32;
	owner->uid = uid;
	w->keys[BY_OWNER] = key_of(owner, BY_OWNER);
}

ALWAYS_INLINE u32 tallies_at(u64 key, u32 kind)
{
	return kind * TALLY_LINES + (key >> 32) % TALLY_LINES;
}

/* Has the processor fetch what will be counted in, while it does something else. */
ALWAYS_INLINE void fetch_tallies(const struct work *w, u32 kind)
{
	u32 number = tallies_at(w->keys[kind & 3], kind);
	const struct tallies *line = tallies.lookup(&number);

	if (!line)
		return;
	*(const volatile u64 *)line->key;
	*(const volatile u64 *)line->entries;
}

/* A bit for each place that has the key. Most have one: that costs one line of the cache. */
ALWAYS_INLINE u64 places_with(const struct tallies *line, u64 key)
{
	u64 found = 0;

#pragma unroll
	for (u64 i = 0; i < LINE_WORDS; i++)
		found |= less((line->key[i] ^ key) >> 1, 1) << i;
	return found;
}

/* The place to give away: of owners the one whose last entry is longest ago, otherwise the one with the fewest entries. */
ALWAYS_INLINE u64 rank_of(const struct tallies *line, u64 count, u64 i)
{
	u64 busy = less(line->key[i] >> 1, 1) & line->key[i];

	return (count << 3 | i) | (-busy >> 1);
}

ALWAYS_INLINE u64 place_to_give(const struct tallies *line, u32 kind)
{
	u64 least = ~0ULL >> 1, rank;

	if (kind == BY_OWNER) {
#pragma unroll
		for (u64 i = 0; i < LINE_WORDS; i++) {
			rank = rank_of(line, line->place[i].last_entry, i);
			least ^= (least ^ rank) & -less(rank, least);
		}
	} else {
#pragma unroll
		for (u64 i = 0; i < LINE_WORDS; i++) {
			rank = rank_of(line, line->entries[i], i);
			least ^= (least ^ rank) & -less(rank, least);
		}
	}
	return least % LINE_WORDS;
}

/* Takes a place for a party. False if it was taken meanwhile. */
ALWAYS_INLINE bool claim_place(struct work *w, struct tallies *line, u64 at, u64 key, u32 kind)
{
	u64 old = line->key[at];

	if (old == KEY_BUSY || __sync_val_compare_and_swap(&line->key[at], old, KEY_BUSY) != old)
		return false;
	line->place[at].party = w->parties[kind & 3];
	line->place[at].no_port = 0;
	if (kind == BY_OWNER) {
		line->entries[at] = 0;
		line->place[at].last_entry = w->now; /* before others see it, who would take it for idle */
	} else {
		line->place[at].error = line->entries[at];
	}
	__sync_val_compare_and_swap(&line->key[at], KEY_BUSY, key);
	return true;
}

/* Whether an owner's vestiges may be alive. */
ALWAYS_INLINE bool is_active(const struct tallies *line, u64 at, u64 now)
{
	return line->key[at] && now <= line->place[at].last_entry + HORIZON_TICKS;
}

TABLE(struct failure, failures, TALLY_LINES * LINE_WORDS);

/* A connection toward the remote endpoint of a place found no port. */
ALWAYS_INLINE void note_failure(u32 place)
{
	struct failure *f = failures.lookup(&place);
	u64 now = bpf_ktime_get_ns();

	if (!f)
		return;
	if (!f->last || now - f->last > FAILURES_APART)
		f->since = now;
	f->last = now;
}

/* Counts the party of a kind; returns its place + 1, or OWNER_OTHER. */
ALWAYS_INLINE u32 tally(struct work *w, u32 kind, bool entry)
{
	u64 key = w->keys[kind & 3], at;
	u32 number = tallies_at(key, kind);
	struct tallies *line = tallies.lookup(&number);

	if (!line)
		return OWNER_OTHER;
#pragma clang loop unroll(disable)
	for (u32 claims = 0; claims < CLAIMS; claims++) {
		u64 found = places_with(line, key);

		at = in_line(w, found ? lowest_bit(found) : place_to_give(line, kind));
		if (!found) {
			if (kind == BY_OWNER && is_active(line, at, w->now))
				break;
			if (!claim_place(w, line, at, key, kind))
				continue;
		}
		__sync_fetch_and_add(entry ? &line->entries[at] : &line->place[at].no_port, 1);
		if (kind == BY_OWNER)
			line->place[at].last_entry = w->now;
		else if (kind == BY_REMOTE && !entry)
			note_failure((number % TALLY_LINES) * LINE_WORDS + at);
		return (number % TALLY_LINES) * LINE_WORDS + at + 1;
	}
	COUNT(w->worker, dropped[DROPPED_UNATTRIBUTED]);
	return OWNER_OTHER;
}

/* The cgroup (v2) that a socket was made in, by its number; 0: not known. */
ALWAYS_INLINE u64 cgroup_of(const struct view *v)
{
	u64 id = 0;
#ifdef OFFSET_sock_sk_cgrp_data
	u64 cgroup = OF_SOCK(v, u64, sock_sk_cgrp_data), node = 0;

	if (!cgroup || (cgroup & 1)) /* before 5.16 the field can hold classes of cgroup v1 instead, with this bit set */
		return 0;
	READ(node, cgroup, cgroup_kn);
	READ(id, node, kernfs_node_id);
#endif
	return id;
}

/* Before attribute(); the more there is to do between the two, the less of it is waiting for memory. */
ALWAYS_INLINE void prepare_attribution(struct work *w)
{
	name_ends(w);
	fetch_tallies(w, BY_REMOTE);
	fetch_tallies(w, BY_LOCAL_PORT);
}

/* Counts the session of an entry, or a connection that found no port, for everyone who had a part in it. */
ALWAYS_INLINE void attribute(struct work *w, const struct view *v, bool entry)
{
	name_owner(w, cgroup_of(v), OF_SOCK(v, u32, sock_sk_uid));
	w->now = tick_now();
#pragma clang loop unroll(disable)
	for (u32 kind = 0; kind < KINDS; kind++) {
		u32 place = tally(w, kind, entry);

		if (kind == BY_OWNER)
			w->owner = place;
	}
}

#endif
