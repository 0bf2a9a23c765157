/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How long vestiges live, and how those that live and those that ended are counted. vestige.h says why so. */
#ifndef TWCTL_LIFE_H
#define TWCTL_LIFE_H

#include "table.h"

ALWAYS_INLINE u32 lane_of(u64 ticks)
{
	const u32 edges[LANES] = LANE_EDGES;
	u32 lane = 0;

#pragma unroll
	for (int i = 0; i < LANES - 1; i++)
		lane += less(edges[i], ticks);
	return lane;
}

ALWAYS_INLINE u64 *cell_of(const struct work *w, u32 class, u32 lane, u64 period)
{
	u32 i = (class * FAMILIES + w->family) * LANES + lane;
	struct cells *cells = living.lookup(&i);

	return cells ? &cells->count[period % PERIODS] : NULL;
}

/* Whoever is first in a new period takes the cell over; the loser of that race adds to what the winner made. */
ALWAYS_INLINE void count_living(u64 *cell, u64 period)
{
	u64 old = *cell;

	if (old >> 32 != period && __sync_val_compare_and_swap(cell, old, period << 32 | 1) == old)
		return;
	__sync_fetch_and_add(cell, 1);
}

ALWAYS_INLINE void plan_life(const struct work *w, u32 class)
{
	struct counters *c = counters_of(w->worker);
	u64 life = w->expiry - w->now, period = w->expiry >> PERIOD_SHIFT;
	u32 lane = lane_of(life);
	u64 *cell = cell_of(w, class, lane, period);

	if (!c || !cell || class >= CLASSES)
		return;
	count_living(cell, period);
	c->planned[class][lane % LANES]++;
	c->planned_ticks[class][lane % LANES] += life;
}

/* Takes a live word's vestige out of the living. Returns its age in ticks. */
ALWAYS_INLINE u64 withdraw_life(const struct work *w, u32 class, u64 word)
{
	struct counters *c = counters_of(w->worker);
	u16 *start = start_at(w, slot_of(word));
	u64 left = remaining(word, w->now);
	u64 age = start ? (u16)(w->now - *start) : 0;
	u64 period = (w->now + left) >> PERIOD_SHIFT;
	u32 lane = lane_of(age + left);
	u64 *cell = cell_of(w, class, lane, period);

	if (!c || !cell || class >= CLASSES)
		return age;
	/* In this order, as the readers look at the living first: what left them for no known reason has expired. */
	c->withdrawn[class][lane % LANES]++;
	if (*cell >> 32 == period)
		__sync_fetch_and_add(cell, -1ULL);
	return age;
}

ALWAYS_INLINE void count_end(struct work *w, u64 word)
{
	struct counters *c = counters_of(w->worker);
	u32 class = class_of(w, slot_of(word));
	u64 age = withdraw_life(w, class, word);

	if (!c || class >= CLASSES)
		return;
	c->ended[class][w->reason % REASONS]++;
	c->lifetime[class][lane_of(age) % LANES]++;
	c->lifetime_ticks[class] += age;
}

/* Ends the vestige of a word that was seen alive. False if another CPU was faster. */
ALWAYS_INLINE bool vestige_end(struct work *w, u64 *at, u64 word, u32 reason)
{
	if (__sync_val_compare_and_swap(at, word, 0) != word)
		return false;
	w->reason = reason;
	count_end(w, word);
	return true;
}

/* Rounded up to a tick, and one more for the part of a tick that has passed. */
ALWAYS_INLINE u64 life_ticks(u64 nanoseconds)
{
	return (nanoseconds >> TICK_SHIFT) + 2;
}

/* When the life that begins now ends. */
ALWAYS_INLINE void set_expiry(struct work *w, u64 nanoseconds)
{
	u64 ticks = life_ticks(nanoseconds);

	if (ticks > HORIZON_TICKS) {
		COUNT(w->worker, dropped[DROPPED_HORIZON]);
		ticks = HORIZON_TICKS;
	}
	w->now = tick_now();
	w->expiry = w->now + ticks;
}

#endif
