/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a slot's record holds: write it, read it, compare its tuple. */
#ifndef TWCTL_RECORD_H
#define TWCTL_RECORD_H

#include "table.h"

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
		(to)->rcv_nxt = (from)->rcv_nxt;     \
		(to)->ts_recent = (from)->ts_recent; \
		(to)->ts_offset = (from)->ts_offset; \
		(to)->window = (from)->window;       \
		(to)->bits = (from)->bits;           \
	} while (0)

ALWAYS_INLINE void write_record(const struct work *w, u32 slot)
{
	const struct session *s = &w->session;

	if (is_ipv4(w)) {
		struct vestige4 *v = records_ipv4.lookup(&slot);

		if (!v)
			return;
		v->local = s->tuple.local[0];
		v->remote = s->tuple.remote[0];
		v->local_port = s->tuple.local_port;
		v->remote_port = s->tuple.remote_port;
		v->netns = s->tuple.netns;
		COPY_STATE(v, s);
	} else {
		struct vestige6 *v = records_ipv6.lookup(&slot);

		if (!v)
			return;
		__builtin_memcpy(v->local, s->tuple.local, sizeof(v->local));
		__builtin_memcpy(v->remote, s->tuple.remote, sizeof(v->remote));
		v->local_port = s->tuple.local_port;
		v->remote_port = s->tuple.remote_port;
		v->netns = s->tuple.netns;
		v->scope = s->tuple.scope ? s->tuple.scope : s->device;
		v->marking = s->marking;
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

/* The sequence state that a slot's record holds, into the session of the same tuple. */
ALWAYS_INLINE void read_record(struct work *w, u32 slot)
{
	if (is_ipv4(w)) {
		struct vestige4 *v = records_ipv4.lookup(&slot);

		if (v)
			COPY_STATE(&w->session, v);
	} else {
		struct vestige6 *v = records_ipv6.lookup(&slot);

		if (!v)
			return;
		COPY_STATE(&w->session, v);
		w->session.marking = v->marking;
		w->session.device = v->scope;
	}
}

#endif
