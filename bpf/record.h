/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a slot's record holds: write it, read it, compare its tuple. */
#ifndef TWCTL_RECORD_H
#define TWCTL_RECORD_H

#include "table.h"

/* FIN_WAIT2 ends with the peer's FIN, which takes one number of its sequence. */
ALWAYS_INLINE void set_substate(struct session *s, bool fin_wait2)
{
	s->rcv_nxt += s->fin_wait2 - fin_wait2;
	s->fin_wait2 = fin_wait2;
}

/* All differences at once: one branch instead of one for each field. */
ALWAYS_INLINE bool record_has4(u32 slot, const struct tuple *t)
{
	struct vestige4 *v = records_ipv4.lookup(&slot);

	return v && !((v->remote ^ t->remote[0]) | (v->local ^ t->local[0]) | (v->remote_port ^ t->remote_port) |
		      (v->local_port ^ t->local_port) | (v->netns ^ t->netns));
}

ALWAYS_INLINE bool record_has6(u32 slot, const struct tuple *t)
{
	struct vestige6 *v = records_ipv6.lookup(&slot);
	u32 difference;

	if (!v)
		return false;
	difference = (v->remote_port ^ t->remote_port) | (v->local_port ^ t->local_port) | (v->netns ^ t->netns) |
		     ((v->scope ^ t->scope) & -(u32)!!t->scope);
#pragma unroll
	for (int i = 0; i < 4; i++)
		difference |= (v->remote[i] ^ t->remote[i]) | (v->local[i] ^ t->local[i]);
	return !difference;
}

ALWAYS_INLINE bool record_has(const struct work *w, u32 slot, const struct tuple *t)
{
	return is_ipv4(w) ? record_has4(slot, t) : record_has6(slot, t);
}

/* The fields that both families' records share. */
#define COPY_STATE(to, from)                         \
	do {                                         \
		(to)->snd_nxt = (from)->snd_nxt;     \
		(to)->ts_recent = (from)->ts_recent; \
		(to)->ts_offset = (from)->ts_offset; \
		(to)->window = (from)->window;       \
		(to)->bits = (from)->bits;           \
	} while (0)

/* The sequence number of the peer's FIN: awaited in FIN_WAIT2, taken in TIME_WAIT. So the word alone tells the two apart. */
ALWAYS_INLINE u32 peer_fin(const struct session *s)
{
	return s->rcv_nxt - !s->fin_wait2;
}

ALWAYS_INLINE void write_tuple4(struct vestige4 *v, const struct tuple *t)
{
	v->local = t->local[0];
	v->remote = t->remote[0];
	v->local_port = t->local_port;
	v->remote_port = t->remote_port;
	v->netns = t->netns;
}

ALWAYS_INLINE void write_tuple6(struct vestige6 *v, const struct tuple *t)
{
	__builtin_memcpy(v->local, t->local, sizeof(v->local));
	__builtin_memcpy(v->remote, t->remote, sizeof(v->remote));
	v->local_port = t->local_port;
	v->remote_port = t->remote_port;
	v->netns = t->netns;
	v->scope = t->scope;
}

/* A slot that holds nothing else. */
ALWAYS_INLINE void write_tuple(const struct work *w, u32 slot, const struct tuple *t)
{
	if (is_ipv4(w)) {
		struct vestige4 *v = records_ipv4.lookup(&slot);

		if (v)
			write_tuple4(v, t);
	} else {
		struct vestige6 *v = records_ipv6.lookup(&slot);

		if (v)
			write_tuple6(v, t);
	}
}

ALWAYS_INLINE void write_record(const struct work *w, u32 slot)
{
	const struct session *s = &w->session;

	if (is_ipv4(w)) {
		struct vestige4 *v = records_ipv4.lookup(&slot);

		if (!v)
			return;
		write_tuple4(v, &s->tuple);
		v->peer_fin = peer_fin(s);
		COPY_STATE(v, s);
	} else {
		struct vestige6 *v = records_ipv6.lookup(&slot);

		if (!v)
			return;
		write_tuple6(v, &s->tuple);
		if (!s->tuple.scope)
			v->scope = s->device;
		v->marking = s->marking;
		v->peer_fin = peer_fin(s);
		COPY_STATE(v, s);
	}
}

/* The tuple that a slot's record holds, whoever it belonged to. */
ALWAYS_INLINE void read_tuple(const struct work *w, u32 slot, struct tuple *t)
{
	if (is_ipv4(w)) {
		struct vestige4 *v = records_ipv4.lookup(&slot);

		if (!v)
			return;
		t->local[0] = v->local;
		t->remote[0] = v->remote;
		t->local_port = v->local_port;
		t->remote_port = v->remote_port;
		t->netns = v->netns;
	} else {
		struct vestige6 *v = records_ipv6.lookup(&slot);

		if (!v)
			return;
		__builtin_memcpy(t->local, v->local, sizeof(t->local));
		__builtin_memcpy(t->remote, v->remote, sizeof(t->remote));
		t->local_port = v->local_port;
		t->remote_port = v->remote_port;
		t->netns = v->netns;
		t->scope = is_link_local(v->remote) ? v->scope : 0;
	}
}

/* The state of the session that was found, from its word and its slot's record. */
ALWAYS_INLINE void read_record(struct work *w, u32 slot)
{
	struct session *s = &w->session;

	s->fin_wait2 = (w->word & WORD_FIN_WAIT2) != 0;
	if (is_ipv4(w)) {
		struct vestige4 *v = records_ipv4.lookup(&slot);

		if (!v)
			return;
		s->rcv_nxt = v->peer_fin + !s->fin_wait2;
		COPY_STATE(s, v);
	} else {
		struct vestige6 *v = records_ipv6.lookup(&slot);

		if (!v)
			return;
		s->rcv_nxt = v->peer_fin + !s->fin_wait2;
		COPY_STATE(s, v);
		s->marking = v->marking;
		s->device = v->scope;
	}
	w->ts_recent = s->ts_recent;
}

/* Puts the session's ts_recent into the record that was read; in that of another session, to whom the slot may have gone
 * meanwhile, the two numbers differ. */
ALWAYS_INLINE void renew_timestamp(const struct work *w, u32 slot)
{
	u32 old[2] = { peer_fin(&w->session), w->ts_recent }, new[2] = { peer_fin(&w->session), w->session.ts_recent };
	u64 was, is;

	__builtin_memcpy(&was, old, sizeof(was));
	__builtin_memcpy(&is, new, sizeof(is));
	if (is == was)
		return;
	if (is_ipv4(w)) {
		struct vestige4 *v = records_ipv4.lookup(&slot);

		if (v)
			__sync_val_compare_and_swap((u64 *)&v->peer_fin, was, is);
	} else {
		struct vestige6 *v = records_ipv6.lookup(&slot);

		if (v)
			__sync_val_compare_and_swap((u64 *)&v->peer_fin, was, is);
	}
}

#endif
