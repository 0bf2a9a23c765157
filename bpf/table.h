/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The table's maps, the working memory of a program, and how each is reached. vestige.h says what the table is.
 *
 * One operation's state lies in a struct work, in a map's memory and not on the stack. The verifier knows nothing of what
 * comes out of a map, so two paths that differ in some byte of a tuple are one path again where they join; on the stack it
 * would walk each of them to its end, which takes more than the million steps that a kernel allows.
 *
 * Everything here is family-neutral: one copy of the code, in which the functions that reach into an array pick it by
 * `family`. A branch costs a nanosecond; a second copy would cost the loader half a second. Sizes (SLOTS_*, LINES_*) and
 * HASH_SEED come from the loader.
 */
#ifndef TWCTL_TABLE_H
#define TWCTL_TABLE_H

#include "kernel.h"
#include "vestige.h"

/* What the programs share. Those that are loaded after the table get its maps in place of the ones declared here (compiled.py),
 * which are then small. */
#ifdef LATER
#define ENTRIES(entries) 1
#else
#define ENTRIES(entries) (entries)
#endif

/* An array that user space maps. */
#define TABLE(type, name, entries) BPF_F_TABLE("array", u32, type, name, ENTRIES(entries), BPF_F_MMAPABLE)

struct session {
	struct tuple tuple;
	u32 snd_nxt, rcv_nxt;
	u32 ts_recent, ts_offset;
	u16 window;
	u8 bits;
	u8 fin_wait2;
	u32 marking;
	u32 device;	/* IPv6: interface index of the route that its socket had; 0: not known */
};

struct work {
	struct session session;	/* what is inserted or looked for */
	struct tuple other;	/* whose record lies in the way */
	u64 family;
	u64 now, start, expiry;	/* ticks, not cut to 24 bits */
	u64 lane;		/* of the life from start to expiry */
	u64 hash, own_hash;	/* of the tuple last looked at; of the session that is inserted */
	u64 tagged;		/* a bit for each live word of a line with the tag */
	u64 candidate, spare;	/* indexes into a line: in_line's own, chosen */
	u64 line, home;		/* lines by number: last looked at; the found word's */
	u64 word;		/* found */
	u64 slot, turn;		/* taken, or read */
	u32 ts_recent;		/* as it was read */
	u32 reason, worker;
	struct party parties[KINDS + 1]; /* room for what two bits can say */
	u64 keys[KINDS + 1];	/* their hashes */
	u32 owner;
	u32 flags;		/* TRANSLATED, TRANSPARENT */
	struct tuple socket;	/* of a session that is TRANSLATED, as the application sees it */
	struct event event;	/* that is told */
};

TABLE(struct vestige4, records_ipv4, SLOTS_IPV4);
TABLE(struct vestige6, records_ipv6, SLOTS_IPV6);
TABLE(struct line, lines_ipv4, LINES_IPV4);
TABLE(struct line, lines_ipv6, LINES_IPV6);
TABLE(struct starts, starts_ipv4, SLOTS_IPV4 / STARTS + 1);
TABLE(struct starts, starts_ipv6, SLOTS_IPV6 / STARTS + 1);
TABLE(struct ring, rings, CLASSES * FAMILIES);
TABLE(struct cells, living, CLASSES * FAMILIES * LANES);
TABLE(struct counters, counters, CPUS * WORKERS);
TABLE(struct meta, meta, 1);
TABLE(struct tallies, tallies, KINDS * TALLY_LINES);

/* By the tuple's hash, for guarded namespaces: the TOS of those IPv4 sessions that have one. */
#define TOS_SESSIONS 16384
BPF_TABLE("lru_hash", u64, u32, tos, ENTRIES(TOS_SESSIONS));

BPF_PERCPU_ARRAY(works, struct work, WORKERS);

ALWAYS_INLINE struct work *work_of(u32 worker)
{
	struct work *w = works.lookup(&worker);

	if (w)
		w->worker = worker;
	return w;
}

/* Each worker of each CPU has counters of its own, too: nobody comes between load and store, so adding needs no lock. */
ALWAYS_INLINE struct counters *counters_of(u32 worker)
{
	u32 i = bpf_get_smp_processor_id() * WORKERS + worker;

	return counters.lookup(&i);
}

#define COUNT(worker, field)                                           \
	do {                                                           \
		struct counters *_counters = counters_of(worker);      \
		if (_counters)                                         \
			_counters->field++;                            \
	} while (0)

ALWAYS_INLINE bool is_ipv4(const struct work *w)
{
	return w->family == FAMILY_IPV4;
}

/* An index into a line. It passes through memory, or clang, which knows that it is below eight, drops the mask that the
 * verifier needs to see. */
ALWAYS_INLINE u64 in_line(struct work *w, u64 i)
{
	*(volatile u64 *)&w->candidate = i;
	return *(volatile u64 *)&w->candidate % LINE_WORDS;
}

/* Keeps clang from making one look-up of two in different arrays: in place of a look-up in an array that it knows the
 * verifier puts a few instructions, and 20 ns of calls where it could be either. */
#define KEEP_APART asm volatile("")

ALWAYS_INLINE struct line *line_at(const struct work *w, u32 i)
{
	struct line *line;

	if (!is_ipv4(w))
		return lines_ipv6.lookup(&i);
	line = lines_ipv4.lookup(&i);
	KEEP_APART;
	return line;
}

ALWAYS_INLINE struct starts *starts_at(const struct work *w, u32 i)
{
	struct starts *starts;

	if (!is_ipv4(w))
		return starts_ipv6.lookup(&i);
	starts = starts_ipv4.lookup(&i);
	KEEP_APART;
	return starts;
}

ALWAYS_INLINE u16 *start_at(const struct work *w, u32 slot)
{
	struct starts *starts = starts_at(w, slot / STARTS);

	return starts ? &starts->start[slot % STARTS] : NULL;
}

ALWAYS_INLINE u16 *owner_at(const struct work *w, u32 slot)
{
	struct starts *starts = starts_at(w, slot / STARTS);

	return starts ? &starts->owner[slot % STARTS] : NULL;
}

ALWAYS_INLINE struct ring *ring_of(const struct work *w, u32 class)
{
	u32 i = class * FAMILIES + w->family;

	return rings.lookup(&i);
}

ALWAYS_INLINE struct meta *the_meta(void)
{
	u32 zero = 0;

	return meta.lookup(&zero);
}

/* From jiffies, which the kernel derives from CLOCK_MONOTONIC (tick_do_update_jiffies64). The coarse clock would be as cheap,
 * but tracing programs may not read it. */
ALWAYS_INLINE u64 tick_by(const struct meta *m)
{
	return (bpf_jiffies64() * JIFFY_NANOSECONDS + m->epoch) >> TICK_SHIFT;
}

ALWAYS_INLINE u64 tick_now(void)
{
	struct meta *m = the_meta();

	return m ? tick_by(m) : 0;
}

/* Whether all lines were swept in the last so many ticks. (The daemon's clock may be a tick ahead.) */
ALWAYS_INLINE bool is_swept(const struct work *w, const struct meta *m, s64 within)
{
	return (s64)(w->now - m->swept) <= within;
}

/* 1 if a < b, for values below 2^63. Arithmetic instead of a branch: eight words a line are eight doublings of the paths
 * that the verifier has to walk. The empty assembly hides the difference from clang, which would make it a branch again. */
ALWAYS_INLINE u64 less(u64 a, u64 b)
{
	u64 difference = a - b;

	asm("" : "+r"(difference));
	return difference >> 63;
}

/* All bits if a word lives, none if it has expired, or is free: a word of zero, which would live where the ticks come round. */
ALWAYS_INLINE u64 alive(u64 word, u64 now)
{
	u64 left = ((word >> EXPIRY_SHIFT) - now - 1) & TICK_MASK, both = (left - HORIZON_TICKS) & -(word >> 1);

	asm("" : "+r"(both)); /* two signs at once; as in less() */
	return (s64)both >> 63;
}

/* Ticks until a word expires; 0 if it does not live. */
ALWAYS_INLINE u64 remaining(u64 word, u64 now)
{
	return ((word >> EXPIRY_SHIFT) - now) & TICK_MASK & alive(word, now);
}

/* The tick of a word's expiry, not cut to 24 bits: half of them lie before now. */
ALWAYS_INLINE u64 expiry_of(u64 word, u64 now)
{
	return now + ((s64)((word >> EXPIRY_SHIFT) - now) << EXPIRY_SHIFT >> EXPIRY_SHIFT);
}

ALWAYS_INLINE u32 slot_of(u64 word)
{
	return word & SLOT_MASK;
}

/* The ring that a slot lies in: the rings' slots follow each other in order of class. */
ALWAYS_INLINE u32 class_of(const struct work *w, u32 slot)
{
	struct ring *local = ring_of(w, CLASS_LOCAL), *remote = ring_of(w, CLASS_REMOTE);

	if (!local || !remote)
		return CLASS_LOOPBACK;
	return CLASS_REMOTE - less(slot, local->base) - less(slot, remote->base);
}

/* How often a slot of a ring was given away until now: the record in it is that of the last time. */
ALWAYS_INLINE u64 turn_of(const struct ring *ring, u32 slot)
{
	return (*(volatile u64 *)&ring->head + ring->capacity - 1 - (slot - ring->base)) / ring->capacity;
}

ALWAYS_INLINE u32 slot_after(const struct ring *ring, u32 slot)
{
	return slot + 1 - ring->base < ring->capacity ? slot + 1 : ring->base;
}

/* Whether the record of a slot's turn is written. */
ALWAYS_INLINE bool is_written(const struct work *w, u32 slot, u64 turn)
{
	volatile u16 *owner = owner_at(w, slot);

	return owner && *owner >> TURN_SHIFT == (turn & 1);
}

/* Atomic instructions that fetch: on every CPU what stands before them is done before them, and what stands after them after them. The
 * kernel's others order nothing where the CPU does not (arm64), and clang takes those where nobody wants what was fetched. */
#define FETCHED(old) asm volatile("" : : "r"(old))

ALWAYS_INLINE void add_in_order(u64 *to, u64 what)
{
	what = __sync_fetch_and_add(to, what);
	FETCHED(what);
}

/* Exclusive or, so that the changes of two programs add up, whichever comes first. */
ALWAYS_INLINE void change_owner(const struct work *w, u32 slot, u64 changes)
{
	struct starts *starts = starts_at(w, slot / STARTS);

	if (!starts)
		return;
	changes = __sync_fetch_and_xor((u64 *)starts->owner + slot % STARTS / 4, changes << slot % 4 * 16);
	FETCHED(changes);
}

/* Whoever takes a slot leaves it once, with this or with leave_slot_to: so the lowest bit of the turns left is right again as soon as
 * all who took it have left it, in whatever order. */
ALWAYS_INLINE void leave_slot(const struct work *w, u32 slot)
{
	change_owner(w, slot, 1 << TURN_SHIFT);
}

/* Leaves a slot that was written, with these flags and this owner. */
ALWAYS_INLINE void leave_slot_to(const struct work *w, u32 slot, u32 owner)
{
	volatile u16 *old = owner_at(w, slot);

	if (old)
		change_owner(w, slot, ((*old ^ owner) & ((1 << TURN_SHIFT) - 1)) | 1 << TURN_SHIFT);
}

ALWAYS_INLINE u64 mix(u64 hash, u64 value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 32;
}

/* After the last mix: brings what changed only its upper bits everywhere. */
ALWAYS_INLINE u64 settle(u64 hash)
{
	hash *= 0xd6e8feb86659fd93ULL;
	return hash ^ hash >> 32;
}

#endif
