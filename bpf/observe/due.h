/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is due in mode truncate: a walk along a class's ring from its oldest end.
 *
 * A ring is in order of entry, and so of starts, but for those vestiges whose timer was started anew or that were adopted, and
 * they say so (OUT_OF_ORDER). So a walk in order stops at the first vestige that is too young and has its start from its entry:
 * all behind it are younger. What it meets before that is due, or is told with the time that is left, as somebody else is to
 * come back to it; so its work is proportional to what is due. Each vestige that is due goes into the dues as the sock_diag
 * request that asks the kernel for exactly this socket: what the daemon sends needs no further copying.
 */
#ifndef TWCTL_OBSERVE_DUE_H
#define TWCTL_OBSERVE_DUE_H

#include "life.h"
#include "lookup.h"
#include "observe/compare.h"
#include "observe/messages.h"
#include "table.h"

BPF_F_TABLE("array", u32, struct dues, dues_map, 1, BPF_F_MMAPABLE);

ALWAYS_INLINE void fill_request(const struct work *w, struct diag_request *r)
{
	const struct tuple *t = &w->other;

	r->length = sizeof(*r);
	r->type = DIAG_BY_FAMILY;
	r->flags = 1; /* NLM_F_REQUEST */
	r->family = is_ipv4(w) ? AF_INET : AF_INET6;
	r->protocol = IPPROTO_TCP;
	r->states = ~0U;
	r->local_port = t->local_port;
	r->remote_port = t->remote_port;
	__builtin_memcpy(r->local, t->local, sizeof(r->local));
	__builtin_memcpy(r->remote, t->remote, sizeof(r->remote));
	r->interface = is_ipv4(w) ? 0 : t->scope;
	r->cookie[0] = r->cookie[1] = ~0U; /* INET_DIAG_NOCOOKIE */
}

/* Looks for the word of the slot's vestige; false if none lives there. */
ALWAYS_INLINE bool find_by_slot(struct work *w, u32 slot)
{
	struct line *line;

	read_tuple(w, slot, &w->other);
	line = find_line(w, &w->other);
	if (!line)
		return false;
	w->spare = word_of_slot(w, line, slot);
	w->word = line->word[in_line(w, w->spare)];
	return slot_of(w->word) == slot && remaining(w->word, w->now);
}

ALWAYS_INLINE void add_due(const struct work *w, struct dues *dues, u64 entry, u32 wait, u32 age)
{
	u64 n = dues->count;
	struct due *due;

	asm("" : "+r"(n)); /* clang knows that it is in bounds, the verifier has to see it */
	due = &dues->due[n % DUE_SLOTS];
	due->entry = entry;
	due->wait = wait;
	dues->count = n + 1;
	if (wait)
		return;
	fill_request(w, &due->request);
	due->word = w->word;
	due->line = w->line;
	due->index = w->spare;
	due->netns = w->other.netns;
	due->age = age;
}

/* Of an entry whose record is just being written nothing is known yet. */
#define WRITING_TICKS 1

/* Puts an entry's vestige into the dues, if it lives. False: it is too young, and so are all behind it. */
ALWAYS_INLINE bool look_at_entry(struct work *w, struct dues *dues, const struct ring *ring, u64 entry, u64 least_age, u64 in_order)
{
	u64 turn = entry / ring->capacity + 1, age;
	u32 slot = ring->base + entry % ring->capacity;
	u16 *start = start_at(w, slot);

	if (!start || turn_of(ring, slot) != turn) /* the ring has come round to it */
		return true;
	if (!is_written(w, slot, turn)) {
		add_due(w, dues, entry, WRITING_TICKS, 0);
		return true;
	}
	/* Not to be looked at before that: a locked instruction keeps the two in order on every CPU. */
	if (__sync_val_compare_and_swap(&dues->next, entry, entry) != entry || !find_by_slot(w, slot))
		return true;
	age = age_at(w, slot);
	if (age >= least_age) {
		add_due(w, dues, entry, 0, age);
	} else if (in_order && !(*start & OUT_OF_ORDER)) {
		dues->wait = least_age - age;
		return false;
	} else {
		add_due(w, dues, entry, least_age - age, age);
	}
	return true;
}

/* Looks at a ring's entries from one number up to another, and puts those that live and are of this age (ticks), or will be, into
 * the dues. Returns how many it looked at, which are as many as dues or more. */
ALWAYS_INLINE int collect_due(u64 family, u64 class, u64 first, u64 last, u64 least_age, u64 in_order)
{
	struct work *w = work_of(WORKER_RECONCILE);
	u32 zero = 0, looked = 0;
	struct dues *dues = dues_map.lookup(&zero);
	struct ring *ring;

	if (!w || !dues)
		return 0;
	w->family = family;
	w->now = tick_now();
	dues->next = first;
	dues->count = 0;
	dues->wait = 0;
	ring = ring_of(w, class);
	if (!ring)
		return 0;
#pragma clang loop unroll(disable)
	for (; looked < DUE_SLOTS; looked++) {
		u64 entry = *(volatile u64 *)&dues->next;

		if (entry >= *(volatile u64 *)&ring->head || entry >= last || !look_at_entry(w, dues, ring, entry, least_age, in_order))
			break;
		dues->next = entry + 1;
	}
	return looked;
}

/* Ends the vestige of the session that a message (messages.h) tells of, wherever it stands. Returns 1 if this ended one. */
ALWAYS_INLINE int dismiss_message(u64 family, u64 offset, u64 netns, u64 reason)
{
	struct diag_message *m = message_at(offset);
	struct work *w = work_of(WORKER_RECONCILE);
	struct line *line;

	if (!m || !w)
		return 0;
	w->family = family;
	if (!concerns(w, m))
		return 0;
	read_message(w, m, netns);
	if (!vestige_find(w))
		return 0;
	line = line_at(w, w->home);
	return line && vestige_end(w, &line->word[in_line(w, w->spare)], w->word, reason);
}

#endif
