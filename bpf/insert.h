/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A vestige enters the table, has its timer started anew, or makes room for another. */
#ifndef TWCTL_INSERT_H
#define TWCTL_INSERT_H

#include "life.h"
#include "lookup.h"
#include "record.h"
#include "table.h"

/* The ring has come round to a slot: if its old record's vestige is alive, it is evicted before the slot is written. */
ALWAYS_INLINE void evict_slot(struct work *w, u32 slot)
{
	struct line *line;
	u64 at, word;

	read_tuple(w, slot, &w->other);
	line = find_line(w, &w->other);
	if (!line)
		return;
	at = word_of_slot(w, line, slot);
	word = line->word[at];
	if (slot_of(word) == slot && remaining(word, w->now))
		vestige_end(w, &line->word[at], word, REASON_EVICTED);
}

/* Keeps the latest expiry of the block that is being written; several CPUs write into one block. */
ALWAYS_INLINE void raise_expiry(u64 *latest, u64 expiry)
{
#pragma unroll
	for (int i = 0; i < 2; i++) {
		u64 old = *latest;

		if (old >= expiry || __sync_val_compare_and_swap(latest, old, expiry) == old)
			return;
	}
	__sync_fetch_and_add(latest, HORIZON_TICKS); /* two lost races: too late is safe, it only costs a look */
}

/* The latest expiry of those that lie in one block of a ring with a slot, in the same turn. */
ALWAYS_INLINE u64 *block_of(struct ring *ring, u32 slot, u64 turn)
{
	return &ring->expiry[(turn * (BLOCKS / 2) + ((slot - ring->base) >> ring->block_shift)) % BLOCKS];
}

/* Takes the next slot of a class's ring, and for a session that is TRANSLATED the one after it, too. */
ALWAYS_INLINE struct ring *take_slot(struct work *w, u32 class)
{
	struct ring *ring = ring_of(w, class);
	u64 entry, lap;

	if (!ring)
		return NULL;
	entry = __sync_fetch_and_add(&ring->head, w->flags & TRANSLATED ? 2 : 1);
	lap = entry / ring->capacity;
	w->turn = lap + 1;
	w->slot = ring->base + entry - lap * ring->capacity;
	return ring;
}

/* The turn of the slot after the one that was taken. */
ALWAYS_INLINE u64 turn_after(const struct work *w, const struct ring *ring)
{
	return w->turn + (slot_after(ring, w->slot) == ring->base);
}

/* Evicts what lives in the slots that were taken: the session's own, and the one after it. */
ALWAYS_INLINE void make_room(struct work *w, struct ring *ring)
{
	u64 turn = w->turn;
	u32 slot = w->slot;

#pragma clang loop unroll(disable)
	for (u32 n = 0; n < 2; n++) {
		if (*block_of(ring, slot, turn - 1) >= w->now)
			evict_slot(w, slot);
		if (!(w->flags & TRANSLATED))
			return;
		slot = slot_after(ring, w->slot);
		turn = turn_after(w, ring);
	}
}

/* Whether they are done with by whoever had them a lap ago: not if that CPU was held up until the ring had come round. */
ALWAYS_INLINE bool are_vacant(const struct work *w, const struct ring *ring)
{
	return is_written(w, w->slot, w->turn - 1) &&
	       (!(w->flags & TRANSLATED) || is_written(w, slot_after(ring, w->slot), turn_after(w, ring) - 1));
}

/* Puts the socket's tuple into the slot after the session's own. A reader looks at the turn of that one alone: this one was written
 * before it, and is given away after it. */
ALWAYS_INLINE void occupy_next(struct work *w, struct ring *ring)
{
	u32 slot = slot_after(ring, w->slot);
	u16 *start = start_at(w, slot);

	if (!start)
		return;
	write_tuple(w, slot, &w->socket);
	*start = start_in_order(w, false);
}

/* Writes the session's record into the slot that was taken, and plans its life. */
ALWAYS_INLINE void occupy_slot(struct work *w, struct ring *ring, u32 class)
{
	u16 *start = start_at(w, w->slot);

	write_record(w, w->slot);
	if (start)
		*start = start_in_order(w, w->start == w->now);
	raise_expiry(block_of(ring, w->slot, w->turn), w->expiry);
	plan_life(w, class);
}

/* Publishes a word in its line: over the tuple's older vestige, else over free space, else over the oldest. Another CPU
 * can change the line meanwhile: then once more. */
ALWAYS_INLINE bool publish(struct work *w, struct line *line, u64 fresh)
{
	u64 *at, old;

#pragma clang loop unroll(disable)
	for (u32 n = 0; n < 2; n++) {
		scan_line(w, line, true);
		w->reason = !n && match_tuple(w, line) ? REASON_REUSED : REASON_EVICTED;
		at = &line->word[in_line(w, w->spare)];
		old = w->reason == REASON_REUSED ? w->word : *at;
		look_who_ends(w, old);
		if (__sync_val_compare_and_swap(at, old, fresh) != old)
			continue;
		if (remaining(old, w->now))
			count_end(w, old, false);
		return true;
	}
	return false;
}

/* A session begins to enter: it has slots that are its own alone, and its life. NULL: there is no place for it. */
ALWAYS_INLINE struct ring *take_place(struct work *w, u32 class, u64 age, u64 nanoseconds)
{
	struct ring *ring;
	struct line *line;

	set_life(w, age, nanoseconds);
	ring = take_slot(w, class);
	line = find_line(w, &w->session.tuple);
	if (!ring || !line)
		return NULL;
	/* On its way from memory while the record is written. No locked instruction may come before that: it would wait. */
	*(volatile u64 *)&line->word[0];
	w->home = w->line;
	w->own_hash = w->hash;
	make_room(w, ring);
	if (are_vacant(w, ring))
		return ring;
	leave_slot(w, w->slot);
	if (w->flags & TRANSLATED)
		leave_slot(w, slot_after(ring, w->slot));
	COUNT(w->worker, dropped[DROPPED_CONTENTION]);
	return NULL;
}

/* It has entered, where take_place has made room. */
ALWAYS_INLINE bool fill_place(struct work *w, struct ring *ring, u32 class)
{
	struct line *line = line_at(w, w->home);
	bool published;
	u64 fresh;

	if (!line)
		return false;
	if (w->flags & TRANSLATED)
		occupy_next(w, ring);
	occupy_slot(w, ring, class);
	w->hash = w->own_hash;
	fresh = word_of_life(w) | (w->hash & TAG_MASK) << TAG_SHIFT | w->slot;
	tell_entry(w);
	published = publish(w, line, fresh);
	/* The last thing written, but for a slot that must not be given away before the session is ended. */
	leave_slot_to(w, w->slot, w->flags | (w->owner & OWNER_MASK));
	/* If the ring came round meanwhile, whoever took the slot has left it alone, and not seen the word. */
	if (published && turn_of(ring, w->slot) != w->turn)
		published = __sync_val_compare_and_swap(&line->word[in_line(w, w->spare)], fresh, 0) != fresh;
	if (w->flags & TRANSLATED)
		leave_slot_to(w, slot_after(ring, w->slot), OWNER_UNKNOWN);
	if (published)
		return true;
	withdraw_life(w, class, fresh);
	tell_unpublished(w);
	COUNT(w->worker, dropped[DROPPED_CONTENTION]);
	return false;
}

/* w->session enters the table: it began `age` ticks ago and lasts so much longer. */
ALWAYS_INLINE bool vestige_insert(struct work *w, u32 class, u64 age, u64 nanoseconds)
{
	struct ring *ring = take_place(w, class, age, nanoseconds);

	return ring && fill_place(w, ring, class);
}

/* The timer of the vestige that vestige_read copied starts anew, where it lies: as if it had begun `age` ticks ago, and lasting so
 * much longer. It is in FIN_WAIT2 from now on if w->session says so. False if it has ended meanwhile. */
ALWAYS_INLINE bool vestige_restart(struct work *w, u64 age, u64 nanoseconds)
{
	u32 slot = slot_of(w->word), class = class_of(w, slot);
	struct line *line = line_at(w, w->home);
	struct ring *ring = ring_of(w, class);
	u64 old = w->word, fresh, *at;
	u16 *start;

	if (!ring || !line || class >= CLASSES)
		return false;
	set_life(w, age, nanoseconds);
	fresh = word_of_life(w) | (old & (TAG_MASK << TAG_SHIFT | SLOT_MASK));
	at = &line->word[in_line(w, w->spare)];
	raise_expiry(block_of(ring, slot, w->turn), w->expiry);
	plan_life(w, class);
	if (__sync_val_compare_and_swap(at, old, fresh) != old) {
		withdraw_life(w, class, fresh);
		return false;
	}
	withdraw_life(w, class, old);
	w->word = fresh;
	/* The slot may have been given away just before, by a clock on which the old word had expired. */
	if (turn_of(ring, slot) != w->turn) {
		vestige_end(w, at, fresh, REASON_EVICTED);
		return false;
	}
	start = start_at(w, slot);
	if (start)
		*start = start_in_order(w, false);
	tell_restart(w, slot);
	COUNT(w->worker, restarted[class]);
	return true;
}

#endif
