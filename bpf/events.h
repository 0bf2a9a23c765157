/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What `twctl events` is told: entries, timers that start anew, and early ends, while somebody listens.
 *
 * A listener makes a ring buffer, puts it into `listener` and says in meta.listened until when it listens, in a cache line that
 * every entry reads for its clock: so nobody who listens costs a comparison, and no memory. It renews that as long as it lives. One
 * that dies is told nothing two seconds later, and its buffer goes with the next listener, or with the table.
 *
 * A session is told before the word that makes it findable: nobody can tell its end sooner. What expires by its tick ends without
 * a program, and so without an event.
 */
#ifndef TWCTL_EVENTS_H
#define TWCTL_EVENTS_H

#include "record.h"
#include "table.h"

/* The listener's own takes this one's place. One page, of whatever size. */
#define PAGE_SIZE 65536
BPF_RINGBUF_OUTPUT(events_form, 1);
BPF_ARRAY_OF_MAPS(listener, "events_form", 1);

ALWAYS_INLINE bool is_heard(const struct work *w)
{
	struct meta *m = the_meta();

	return m && (s64)(m->listened - w->now) > 0;
}

/* Nobody waits for a wake-up: the listener looks many times a second. */
ALWAYS_INLINE void tell(struct work *w, u32 kind, u32 reason)
{
	struct event *e = &w->event;
	u32 zero = 0;
	void *into = listener.lookup(&zero);

	if (!into)
		return;
	e->time = bpf_ktime_get_ns();
	e->kind = kind;
	e->reason = reason;
	e->family = w->family;
	if (bpf_ringbuf_output(into, e, sizeof(*e), BPF_RB_NO_WAKEUP))
		COUNT(w->worker, events_lost);
}

/* One number for each session: no slot is given away twice in a turn. */
ALWAYS_INLINE void name_session(struct work *w, u32 slot, u64 turn)
{
	w->event.number = (turn * FAMILIES + w->family) << TAG_SHIFT | slot;
	w->event.class = class_of(w, slot);
}

/* The session that is about to be published, in the slot that was taken. */
ALWAYS_INLINE void tell_entry(struct work *w)
{
	struct event *e = &w->event;

	if (!is_heard(w))
		return;
	name_session(w, w->slot, w->turn);
	e->expiry = w->expiry;
	e->lifetime = w->expiry - w->start;
	e->owner = w->flags | (w->owner & OWNER_MASK);
	e->fin_wait2 = w->session.fin_wait2;
	e->wire = w->session.tuple;
	e->socket = w->flags & TRANSLATED ? w->socket : w->session.tuple;
	tell(w, w->session.bits & VESTIGE_UNKNOWN ? EVENT_ADOPTED : EVENT_ENTERED, 0);
}

/* It could not be published after all: it has ended as it entered. */
ALWAYS_INLINE void tell_unpublished(struct work *w)
{
	if (!is_heard(w))
		return;
	name_session(w, w->slot, w->turn);
	w->event.expiry = w->now;
	w->event.lifetime = 0;
	tell(w, EVENT_ENDED, REASON_UNKNOWN);
}

/* The timer of the session that was read has started anew. */
ALWAYS_INLINE void tell_restart(struct work *w, u32 slot)
{
	if (!is_heard(w))
		return;
	name_session(w, slot, w->turn);
	w->event.expiry = w->expiry;
	w->event.lifetime = w->expiry - w->start;
	w->event.fin_wait2 = w->session.fin_wait2;
	tell(w, EVENT_RESTARTED, 0);
}

/* Whose the word is that is about to be ended: as long as it lives the slot is nobody else's. */
ALWAYS_INLINE void look_who_ends(struct work *w, u64 word)
{
	u32 slot = slot_of(word);
	struct event *e = &w->event;
	struct ring *ring;
	u16 *owner;

	e->number = 0;
	if (!is_heard(w))
		return;
	ring = ring_of(w, class_of(w, slot));
	owner = owner_at(w, slot);
	if (!ring || !owner)
		return;
	name_session(w, slot, turn_of(ring, slot));
	e->owner = *owner;
	e->fin_wait2 = (word & WORD_FIN_WAIT2) != 0;
	read_tuple(w, slot, &e->wire);
	read_tuple(w, e->owner & TRANSLATED ? slot_after(ring, slot) : slot, &e->socket);
}

/* It has ended, at this age. */
ALWAYS_INLINE void tell_end(struct work *w, u64 age)
{
	if (!w->event.number)
		return;
	w->event.expiry = w->now;
	w->event.lifetime = age;
	tell(w, EVENT_ENDED, w->reason);
}

#endif
