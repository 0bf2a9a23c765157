/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is due in mode truncate: a walk along a class's ring from its oldest end.
 *
 * The rings are in order of entry (a restart moves a vestige to the newest slot), so the walk stops at the first slot that is
 * too young, and its work is proportional to what is due. Each vestige that is due goes into the dues as the sock_diag request
 * that asks the kernel for exactly this socket: what the daemon sends needs no further copying.
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

/* If the slot's vestige is alive, its request goes into the dues. False if it is not, or not yet. */
ALWAYS_INLINE bool add_due(struct work *w, struct dues *dues, u32 slot)
{
	u64 at, n = dues->count, word;
	struct line *line;
	struct due *due;

	read_tuple(w, slot, &w->other);
	line = find_line(w, &w->other);
	if (!line)
		return false;
	at = word_of_slot(w, line, slot);
	word = line->word[at];
	if (slot_of(word) != slot || !remaining(word, w->now))
		return false;
	asm("" : "+r"(n)); /* clang knows that it is in bounds, the verifier has to see it */
	due = &dues->due[n % DUE_SLOTS];
	fill_request(w, &due->request);
	due->word = word;
	due->line = w->line;
	due->index = at;
	due->netns = w->other.netns;
	dues->count = n + 1;
	return true;
}

/* A slot that was just handed out may still hold an old record and its old start: not to be passed over. */
#define IN_FLIGHT (WORKERS * CPUS)

/* Puts what is due into the dues, beginning at this entry's number. least_age: ticks. Returns how many slots it looked at, which
 * are as many as dues or more. */
ALWAYS_INLINE int collect_due(u64 family, u64 class, u64 first, u64 least_age)
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
	dues->age = 0;
	ring = ring_of(w, class);
	if (!ring)
		return 0;
#pragma clang loop unroll(disable)
	for (; looked < DUE_SLOTS; looked++) {
		u64 entry = *(volatile u64 *)&dues->next, age;
		u32 slot = ring->base + entry % ring->capacity;
		u16 *start = start_at(w, slot);

		if (entry >= ring->head || !start)
			break;
		age = (u16)(w->now - *start);
		if (age < least_age) {
			dues->age = age + 1;
			break;
		}
		if (!add_due(w, dues, slot) && ring->head - entry <= IN_FLIGHT)
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
