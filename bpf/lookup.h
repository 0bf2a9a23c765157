/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Find a session's vestige: from its tuple to a line, from a line to the word that names its record. */
#ifndef TWCTL_LOOKUP_H
#define TWCTL_LOOKUP_H

#include "record.h"
#include "table.h"

/* Seeded anew for each load, so that nobody outside can aim many tuples at one line. */
ALWAYS_INLINE u64 hash_of(const struct work *w, const struct tuple *t)
{
	u64 hash = mix(HASH_SEED, (u64)t->local[0] << 32 | t->remote[0]);

	hash = mix(hash, (u64)t->local_port << 48 | (u64)t->remote_port << 32 | t->netns);
	if (!is_ipv4(w)) {
		hash = mix(hash, (u64)t->local[1] << 32 | t->remote[1]);
		hash = mix(hash, (u64)t->local[2] << 32 | t->remote[2]);
		hash = mix(hash, (u64)t->local[3] << 32 | t->remote[3]);
		hash = mix(hash, t->scope);
	}
	return settle(hash);
}

/* A tuple's line and tag: the line from the hash's upper half, the tag from its lower, so that one says nothing about
 * the other. */
ALWAYS_INLINE struct line *find_line(struct work *w, const struct tuple *t)
{
	u64 lines = is_ipv4(w) ? LINES_IPV4 : LINES_IPV6;

	w->hash = hash_of(w, t);
	w->line = (w->hash >> 32) * lines >> 32;
	return line_at(w, w->line);
}

/* One pass over a line: which words carry the tag and live (a bit each); and for whoever writes one (`ranked`, known when it is
 * compiled), which word is the best to give up: a free one, or else the one that expires first. That four words of a line carry
 * one tag happens once in a thousand million times; only three are looked at, and it is counted. */
ALWAYS_INLINE void scan_line(struct work *w, const struct line *line, bool ranked)
{
	u64 tag = w->hash & TAG_MASK, now = w->now, least = ~0ULL >> 1, tagged = 0;

#pragma unroll
	for (u64 i = 0; i < LINE_WORDS; i++) {
		u64 word = line->word[i], live = alive(word, now), rank = (((word >> EXPIRY_SHIFT) - now) & TICK_MASK & live) << 3 | i;

		tagged |= (less((word >> TAG_SHIFT & TAG_MASK) ^ tag, 1) & live) << i;
		if (ranked)
			least ^= (least ^ rank) & -less(rank, least);
	}
	w->tagged = tagged;
	if (ranked)
		w->spare = least % LINE_WORDS; /* the rank's lower bits */
	tagged &= tagged - 1;
	tagged &= tagged - 1;
	if (tagged & (tagged - 1))
		COUNT(w->worker, dropped[DROPPED_COLLISION]);
}

/* Index of the lowest bit that is set, of eight. */
ALWAYS_INLINE u64 lowest_bit(u64 bits)
{
	u64 bit = bits & -bits;

	return less(0, bit & 0xaa) | less(0, bit & 0xcc) << 1 | less(0, bit & 0xf0) << 2;
}

/* Looks for the tuple's live vestige among the words whose tag matches, nearly always none or one. If it is there,
 * w->spare says where and w->word what the word was. */
ALWAYS_INLINE bool match_tuple(struct work *w, const struct line *line)
{
#pragma unroll
	for (int n = 0; n < 3; n++) {
		u64 tagged = w->tagged, i, word;

		if (!tagged)
			return false;
		i = in_line(w, lowest_bit(tagged));
		word = line->word[i];
		if (word && record_has(w, slot_of(word), &w->session.tuple)) { /* it may have ended since: 0 is no slot */
			w->spare = i;
			w->word = word;
			return true;
		}
		w->tagged = tagged & (tagged - 1);
	}
	return false;
}

/* Whether any word of a line has the tag of the tuple last looked at, alive or not. A product of four differences of 12
 * bits fits into 64, and is 0 if one of them is: two branches for eight words. */
ALWAYS_INLINE bool has_tag(const struct work *w, const struct line *line)
{
	u64 tag = w->hash & TAG_MASK;
#define DIFFERENCE(i) ((line->word[i] << 28 >> 52) ^ tag)
#define FOUR(i) (DIFFERENCE(i) * DIFFERENCE(i + 1) * DIFFERENCE(i + 2) * DIFFERENCE(i + 3))

	return !FOUR(0) || !FOUR(4);
#undef FOUR
#undef DIFFERENCE
}

/* Looks for the session's live vestige in its line: w->home and w->spare say where its word is, w->word what it was. */
ALWAYS_INLINE bool find_in_line(struct work *w, struct line *line)
{
	struct meta *m;

	if (!line || !has_tag(w, line)) /* nearly every miss, without a look at the clock */
		return false;
	m = the_meta();
	if (!m)
		return false;
	w->now = tick_by(m);
	if (!is_swept(w, m, BELIEVED_TICKS))
		return false;
	w->home = w->line;
	w->own_hash = w->hash;
	scan_line(w, line, false);
	return match_tuple(w, line);
}

ALWAYS_INLINE bool vestige_find(struct work *w)
{
	return find_in_line(w, find_line(w, &w->session.tuple));
}

/* Whether the word that was found is still the same. What stands before this is done before it, and what stands after it
 * after it, on every CPU: it is a locked instruction. */
ALWAYS_INLINE bool is_unchanged(struct work *w)
{
	struct line *line = line_at(w, w->home);

	return line && __sync_val_compare_and_swap(&line->word[in_line(w, w->spare)], w->word, w->word) == w->word;
}

/* Copies the record of the vestige that was found; false if it is not there any more as it was found. */
ALWAYS_INLINE bool vestige_read(struct work *w)
{
	u32 slot = slot_of(w->word);
	struct ring *ring = ring_of(w, class_of(w, slot));

	if (!ring)
		return false;
	w->turn = turn_of(ring, slot);
	if (!is_written(w, slot, w->turn) || !is_unchanged(w) || !record_has(w, slot, &w->session.tuple))
		return false;
	read_record(w, slot);
	return is_unchanged(w) && turn_of(ring, slot) == w->turn;
}

/* What else is known of the session that was found: w->flags, and of one that is TRANSLATED w->socket. False if it is not there any
 * more as it was found. */
ALWAYS_INLINE bool vestige_socket(struct work *w)
{
	u32 slot = slot_of(w->word);
	struct ring *ring = ring_of(w, class_of(w, slot));
	volatile u16 *owner = owner_at(w, slot);
	u32 told;

	if (!ring || !owner)
		return false;
	w->turn = turn_of(ring, slot);
	told = *owner;
	if (told >> TURN_SHIFT != (w->turn & 1))
		return false;
	w->flags = told & (TRANSLATED | TRANSPARENT);
	if (!(told & TRANSLATED))
		return true;
	if (!is_unchanged(w))
		return false;
	read_tuple(w, slot_after(ring, slot), &w->socket);
	return is_unchanged(w) && turn_of(ring, slot) == w->turn;
}

/* Index of the live word that names a slot; 0 if none does. An expired word, or a free one, may still name it. */
ALWAYS_INLINE u64 word_of_slot(struct work *w, const struct line *line, u32 slot)
{
	u64 at = 0;

#pragma unroll
	for (u64 i = 1; i < LINE_WORDS; i++)
		at |= i & alive(line->word[i], w->now) & -less(slot_of(line->word[i]) ^ slot, 1);
	return in_line(w, at);
}

/* Zeroes a word that has expired, or that is not to be believed. */
ALWAYS_INLINE void clear_word(const struct work *w, u64 *at, bool believed)
{
	u64 word = *at, left = remaining(word, w->now);

	if (!word || (left && believed) || __sync_val_compare_and_swap(at, word, 0) != word)
		return;
	if (left)
		COUNT(w->worker, dropped[DROPPED_UNSWEPT]);
}

/* Where no daemon sweeps, whoever enters a session does: so many lines, a fraction of a microsecond each time. */
#define SOME_LINES 16

ALWAYS_INLINE void sweep_some(const struct work *w)
{
	const u64 lines = (u64)LINES_IPV4 + LINES_IPV6;
	struct meta *m = the_meta();
	bool believed;
	u64 first;

	if (!m || is_swept(w, m, SWEPT_TICKS))
		return;
	believed = is_swept(w, m, BELIEVED_TICKS);
	first = __sync_fetch_and_add(&m->next_line, SOME_LINES) % lines;
#pragma clang loop unroll(disable)
	for (u32 n = 0; n < SOME_LINES * LINE_WORDS; n++) {
		u32 i = (first + n / LINE_WORDS) % lines, beyond = i - LINES_IPV4;
		struct line *line = i < LINES_IPV4 ? lines_ipv4.lookup(&i) : lines_ipv6.lookup(&beyond);

		if (line)
			clear_word(w, &line->word[n % LINE_WORDS], believed);
	}
	if (first + SOME_LINES < lines)
		return;
	if (m->sweeping > m->swept)
		m->swept = m->sweeping;
	m->sweeping = w->now;
}

#endif
