/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * One program, attached twice, that handles each event once.
 *
 * The kernel runs no program inside of itself, and an event in process context can be interrupted by others. So the same
 * program is loaded and attached twice. An event within an event meets one of the two only, as the other is at work, and that
 * one handles it, as another worker. Any other event meets both, one after the other: the first leaves a mark and handles it,
 * the second takes the mark away. An interruption just before or after the work leaves marks that nobody takes away; they do
 * no harm, for a mark holds the socket's sequence number: the same never comes again.
 */
#ifndef TWCTL_OBSERVE_TWICE_H
#define TWCTL_OBSERVE_TWICE_H

#include "kernel.h"
#include "table.h"

#define MARKS 1024
struct handling {
	u64 depth; /* of events within events on this CPU */
	u64 mark[MARKS];
};

BPF_PERCPU_ARRAY(handlings, struct handling, 1);

ALWAYS_INLINE bool is_first(struct handling *h, const void *sk, u64 from)
{
	u32 sequence = 0;
	u64 mark, at;

	READ(sequence, sk, tcp_sock_write_seq);
	mark = mix((u64)sk, (u64)sequence << 4 | from);
	at = mark % MARKS;
	if (h->mark[at] == mark) {
		h->mark[at] = 0;
		return false;
	}
	h->mark[at] = mark;
	return true;
}

/* Which worker handles the event that is just met; WORKERS: the program's twin has done it. leave_event() ends it. */
ALWAYS_INLINE u32 meet_event(const void *sk, u64 from)
{
	u32 zero = 0;
	struct handling *h = handlings.lookup(&zero);

	if (!h)
		return WORKERS;
	if (h->depth++)
		return WORKER_AGAIN;
	return is_first(h, sk, from) ? WORKER_ENTRY : WORKERS;
}

ALWAYS_INLINE void leave_event(void)
{
	u32 zero = 0;
	struct handling *h = handlings.lookup(&zero);

	if (h)
		h->depth--;
}

#endif
