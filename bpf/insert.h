/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A vestige enters the table, moves to a newer slot, or makes room for another. */
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

/* Takes the next slot of a class's ring. */
ALWAYS_INLINE struct ring *take_slot(struct work *w, u32 class)
{
	struct ring *ring = ring_of(w, class);
	u64 entry, lap;
	u32 offset;

	if (!ring)
		return NULL;
	entry = __sync_fetch_and_add(&ring->head, 1);
	lap = entry / ring->capacity;
	offset = entry - lap * ring->capacity;
	w->block = lap * (BLOCKS / 2) + (offset >> ring->block_shift);
	w->slot = ring->base + offset;
	return ring;
}

/* Writes the session's record into the slot that was taken, and plans its life. */
ALWAYS_INLINE void occupy_slot(struct work *w, struct ring *ring, u32 class)
{
	struct starts *starts;

	if (ring->expiry[(w->block - BLOCKS / 2) % BLOCKS] >= w->now)
		evict_slot(w, w->slot);
	write_record(w, w->slot);
	starts = starts_at(w, w->slot / STARTS);
	if (starts) {
		starts->tick[w->slot % STARTS] = w->now;
		starts->owner[w->slot % STARTS] = w->owner;
	}
	raise_expiry(&ring->expiry[w->block % BLOCKS], w->expiry);
	plan_life(w, class);
}

/* The word that names the slot just occupied. */
ALWAYS_INLINE u64 fresh_word(const struct work *w)
{
	return (w->expiry & TICK_MASK) << EXPIRY_SHIFT | (w->hash & TAG_MASK) << 24 | w->slot;
}

/* Publishes a word in its line: over the tuple's older vestige, else over free space, else over the oldest. Another CPU
 * can change the line meanwhile: then once more. */
ALWAYS_INLINE bool publish(struct work *w, struct line *line, u64 fresh)
{
	u64 *at, old;

	scan_line(w, line);
	w->reason = match_tuple(w, line) ? REASON_REUSED : REASON_EVICTED;
	at = &line->word[in_line(w, w->spare)];
	old = w->reason == REASON_REUSED ? w->word : *at;
	if (__sync_val_compare_and_swap(at, old, fresh) != old) {
		scan_line(w, line);
		at = &line->word[in_line(w, w->spare)];
		old = *at;
		w->reason = REASON_EVICTED;
		if (__sync_val_compare_and_swap(at, old, fresh) != old)
			return false;
	}
	if (remaining(old, w->now))
		count_end(w, old);
	return true;
}

/* w->session enters the table, for so long. */
ALWAYS_INLINE bool vestige_insert(struct work *w, u32 class, u64 nanoseconds)
{
	struct ring *ring;
	struct line *line;
	u64 fresh;

	set_expiry(w, nanoseconds);
	ring = take_slot(w, class);
	line = find_line(w, &w->session.tuple);
	if (!ring || !line)
		return false;
	/* On its way from memory while the record is written. No locked instruction may come before that: it would wait. */
	*(volatile u64 *)&line->word[0];
	w->home = w->line;
	w->own_hash = w->hash;
	occupy_slot(w, ring, class);
	w->hash = w->own_hash;
	line = line_at(w, w->home);
	if (!line)
		return false;
	fresh = fresh_word(w);
	if (publish(w, line, fresh))
		return true;
	withdraw_life(w, class, fresh);
	COUNT(w->worker, dropped[DROPPED_CONTENTION]);
	return false;
}

/* The vestige that vestige_find found moves to the newest slot of its ring, in the same word of the index, and expires at
 * w->expiry. w->session is what its record will hold: a record is never changed where others read it. */
ALWAYS_INLINE bool vestige_move(struct work *w, u32 class)
{
	struct ring *ring = take_slot(w, class);
	u64 ended = w->word, fresh;
	struct line *line;
	bool moved = false;

	if (!ring)
		return false;
	w->owner = owner_at(w, slot_of(ended));
	occupy_slot(w, ring, class);
	line = line_at(w, w->home);
	fresh = (w->expiry & TICK_MASK) << EXPIRY_SHIFT | (ended & TAG_MASK << 24) | w->slot;
	w->word = fresh; /* if it ended meanwhile, the new slot's life is taken back */
	if (line && __sync_val_compare_and_swap(&line->word[in_line(w, w->spare)], ended, fresh) == ended) {
		w->word = ended;
		moved = true;
	}
	withdraw_life(w, class, w->word);
	return moved;
}

/* The timer starts anew. */
ALWAYS_INLINE void vestige_restart(struct work *w, u64 nanoseconds)
{
	u32 class = class_of(w, slot_of(w->word));

	set_expiry(w, nanoseconds);
	if (vestige_move(w, class) && class < CLASSES)
		COUNT(w->worker, restarted[class]);
}

#endif
