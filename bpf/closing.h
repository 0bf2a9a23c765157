/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connections that closed first and are not vestiges yet. The probes note them, and the guard asks.
 *
 * Between socket and vestige there is a moment with neither: a segment that the guard lets through to a socket may find none
 * when it gets there. So who closes first is noted as soon as that is known (observe/close.h), and the guard waits for the
 * vestige where the socket is just going (guard/handover.h).
 */
#ifndef TWCTL_CLOSING_H
#define TWCTL_CLOSING_H

#include "table.h"

/* Connections that closed first and are not yet vestiges, and how many `closing` has of them, by PENDING parts of the hash: that
 * count keeps the segments of other connections from a look into it. A note says that there is a socket, and in its lower bits
 * when (ns) and on which CPU a segment was last led to it; or since when (tick) none was found. */
#define NOTE_SOCKET (1ULL << 63)
#define NOTE_CPU 0xffULL
#define PENDING 4096
TABLE(u64, pending, PENDING);

/* The notes, by the tuple's hash. */
#define NOTED 16384
#ifdef PINS
BPF_TABLE("lru_hash:" PINS "/closing", u64, u64, closing, NOTED);
#else
BPF_TABLE("lru_hash", u64, u64, closing, NOTED);
#endif

ALWAYS_INLINE u64 *pending_at(u64 key)
{
	u32 part = key % PENDING;

	return pending.lookup(&part);
}

ALWAYS_INLINE void forget_note(u64 key)
{
	u64 *count = pending_at(key);

	if (!closing.delete(&key) && count)
		__sync_fetch_and_add(count, -1ULL);
}

#endif
