/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A session enters the table: read from its socket, classified, attributed, inserted. */
#ifndef TWCTL_OBSERVE_ENTRY_H
#define TWCTL_OBSERVE_ENTRY_H

#include "insert.h"
#include "observe/attribution.h"
#include "observe/socket.h"
#include "observe/wire.h"
#include "table.h"

/* How long a vestige lives (ns): as long as the kernel's own mini-socket, or, where there will be none, its class's time. */
ALWAYS_INLINE u64 life_of(u32 netns, u32 class, int state, u64 jiffies)
{
	u64 kernel = timer_nanoseconds(jiffies, jiffies) + LATE_NANOSECONDS, least;
	struct meta *m = the_meta();

	if (!(netns & NETNS_GUARDED) || !m || class >= CLASSES)
		return kernel;
	if (state == TCP_TIME_WAIT)
		return m->time_wait[class];
	least = jiffies * JIFFY_NANOSECONDS;
	return least < m->fin_wait2[class] ? least : m->fin_wait2[class];
}

/* The class is that of the peer on the wire. So is the tuple from now on, of a session that is TRANSLATED; but over lo, what comes
 * in has been translated back by whoever sent it. */
ALWAYS_INLINE u32 classify_on_wire(struct work *w, const struct view *v, u32 netns)
{
	struct wire wire = {};
	bool noted = take_wire(w, v, netns, &wire);
	u32 class = classify(w);

	w->flags = noted && !wire.looping ? TRANSLATED : 0;
	if (noted && wire.looping)
		w->session.tuple = w->socket;
	return class;
}

/* What only the guard needs of a session that was just inserted. */
ALWAYS_INLINE void remember(struct work *w)
{
	u64 key = w->own_hash;
	u32 marking = w->session.marking;

	if (w->session.bits & VESTIGE_SIGNED)
		COUNT(w->worker, dropped[DROPPED_SIGNED]);
	if (is_ipv4(w) && marking)
		tos.update(&key, &marking);
}

/* A session enters TIME_WAIT or orphaned FIN_WAIT2, for so many jiffies. An orphan whose time is over leaves nothing behind. */
ALWAYS_INLINE void enter_table(u32 worker, const void *sk, struct view *v, const struct common *common, u32 netns, int state,
			       u64 jiffies)
{
	struct work *w = work_of(worker);
	u32 class;

	if (!w)
		return;
	if (state == TCP_FIN_WAIT2 && is_over(sk, common, netns)) {
		COUNT(worker, closed[CLOSE_ORPHAN]);
		return;
	}
	if (!read_state(&w->session, v, sk)) {
		COUNT(worker, dropped[DROPPED_UNREADABLE]);
		return;
	}
	read_tuple_from(w, common, OF_SOCK(v, u16, inet_sock_inet_sport), netns);
	prepare_attribution(w);
	w->session.fin_wait2 = state == TCP_FIN_WAIT2;
	class = classify_on_wire(w, v, netns);
	if (netns & NETNS_TPROXY && is_transparent(sk))
		w->flags |= TRANSPARENT;
	if (class < CLASSES) {
		COUNT(worker, entered[class][w->family % FAMILIES]);
		if (w->flags & TRANSLATED)
			COUNT(worker, translated[class][w->family % FAMILIES]);
	}
	w->session.marking = netns & NETNS_GUARDED ? read_marking(w, v) : 0;
	if (!(w->flags & TRANSLATED))
		w->session.device = netns & NETNS_GUARDED ? read_device(w, sk) : 0;
	attribute(w, v, true);
	vestige_insert(w, class, 0, life_of(netns, class, state, jiffies));
	sweep_some(w);
	if (netns & NETNS_GUARDED)
		remember(w);
}

#endif
