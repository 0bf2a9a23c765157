/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The moment in which a connection has neither socket nor vestige (closing.h): what becomes of a segment that comes then.
 */
#ifndef TWCTL_GUARD_HANDOVER_H
#define TWCTL_GUARD_HANDOVER_H

#include "closing.h"
#include "guard/segment.h"
#include "guard/sockets.h"
#include "lookup.h"
#include "table.h"

#define BETWEEN_TICKS 2
#define BETWEEN_LOOKS 128
#define BETWEEN_NANOSECONDS 10000
#define OVERTAKING_NANOSECONDS 15000

/* Whether the tuple last looked at is that of a connection that may become a vestige any moment. Asked before the vestige is
 * looked for, as it is no longer noted once that is there. */
ALWAYS_INLINE bool is_noted_as_closing(const struct work *w)
{
	u64 key = w->hash, *connections = pending_at(key);

	return connections && *(volatile u64 *)connections && closing.lookup(&key);
}

/* Whether a noted connection without a socket is just becoming a vestige. That takes a moment, not two ticks: then no vestige
 * will come, and a note that stayed would keep the peer from the kernel's RST. */
ALWAYS_INLINE bool is_becoming_vestige(u64 key)
{
	u64 *since = closing.lookup(&key), now = tick_now();

	if (!since)
		return true;
	if (*since & NOTE_SOCKET)
		*since = now;
	if (now - *since <= BETWEEN_TICKS)
		return true;
	forget_note(key);
	return false;
}

ALWAYS_INLINE u64 time_and_cpu(void)
{
	return (bpf_ktime_get_ns() & ~NOTE_CPU) | (bpf_get_smp_processor_id() & NOTE_CPU);
}

ALWAYS_INLINE void note_delivery(const struct work *w)
{
	u64 key = w->hash, *note = closing.lookup(&key);

	if (note && *note & NOTE_SOCKET)
		*note = NOTE_SOCKET | time_and_cpu();
}

/* Whether a segment follows at once what another CPU led to the socket: if that is the acknowledgement of our FIN, a FIN would
 * wait for the socket's lock, find it closed, and be lost. */
ALWAYS_INLINE bool follows_on_another_cpu(const struct work *w)
{
	u64 key = w->hash, *note = closing.lookup(&key), now = time_and_cpu(), last;

	if (!note)
		return false;
	last = *note & ~NOTE_SOCKET;
	return (last & NOTE_CPU) != (now & NOTE_CPU) && (s64)(now - last) < OVERTAKING_NANOSECONDS;
}

/* The time (ns) some 100 ns later: the verifier allows only so many looks. */
ALWAYS_INLINE u64 a_moment_later(void)
{
	bpf_ktime_get_ns();
	bpf_ktime_get_ns();
	return bpf_ktime_get_ns();
}

/* Waits for the vestige that is just being made on another CPU, some us: a FIN that is lost leaves the peer's end open until
 * it is sent again, and our tuple held back as long. */
ALWAYS_INLINE bool wait_for_vestige(struct work *w)
{
	u64 until = bpf_ktime_get_ns() + BETWEEN_NANOSECONDS;

#pragma clang loop unroll(disable)
	for (u32 looks = 0; looks < BETWEEN_LOOKS; looks++) {
		struct line *line = line_at(w, w->line);

		if (!line || has_tag(w, line) || a_moment_later() > until)
			break;
	}
	return find_in_line(w, line_at(w, w->line));
}

enum handover { HANDOVER_NONE, HANDOVER_TO_VESTIGE, HANDOVER_TOO_LATE };

/* A segment without a vestige. If its connection may become one any moment (closing.h), it is led to the socket; if
 * that is gone, or just going, the vestige is waited for. Before it is led: what is made an answer must not have that socket,
 * for a peer on this host would take it for its own. */
ALWAYS_INLINE enum handover hand_over(struct __sk_buff *skb, struct work *w, bool can_wait)
{
	if (!w->noted || w->flags & SYN)
		return HANDOVER_NONE;
	if (!(w->flags & FIN))
		note_delivery(w);
	else if (follows_on_another_cpu(w) && can_wait && wait_for_vestige(w))
		return HANDOVER_TO_VESTIGE;
	if (socket_for(skb, w) == PRESENCE_LIVE || !is_becoming_vestige(w->hash))
		return HANDOVER_NONE;
	return can_wait && wait_for_vestige(w) ? HANDOVER_TO_VESTIGE : HANDOVER_TOO_LATE;
}

#endif
