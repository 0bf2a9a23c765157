/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How long vestiges live, and how those that live and those that ended are counted. vestige.h says why so. */
#ifndef TWCTL_LIFE_H
#define TWCTL_LIFE_H

#include "events.h"
#include "table.h"

/* The lane of a histogram with these upper edges, the last of which is not looked at. */
ALWAYS_INLINE u32 lane_among(const u32 *edges, u32 lanes, u64 ticks)
{
	u32 lane = 0;

#pragma unroll
	for (u32 i = 0; i < lanes - 1; i++)
		lane += less(edges[i], ticks);
	return lane % lanes;
}

ALWAYS_INLINE u32 lane_of(u64 ticks)
{
	const u32 edges[LANES] = LANE_EDGES;

	return lane_among(edges, LANES, ticks);
}

ALWAYS_INLINE u32 reuse_lane_of(u64 ticks)
{
	const u32 edges[REUSE_LANES] = REUSE_EDGES;

	return lane_among(edges, REUSE_LANES, ticks);
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
	add_in_order(cell, 1);
}

/* Before the word that says so: nobody may take it out of the living before it is among them. And planned after that: the readers
 * look at what was planned first. */
ALWAYS_INLINE void plan_life(const struct work *w, u32 class)
{
	struct counters *c = counters_of(w->worker);
	u64 period = w->expiry >> PERIOD_SHIFT;
	u32 lane = w->lane % LANES;
	u64 *cell = cell_of(w, class, lane, period);

	if (!c || !cell || class >= CLASSES)
		return;
	count_living(cell, period);
	c->planned[class][lane]++;
	c->planned_ticks[class][lane] += w->expiry - w->start;
}

/* Takes a word's vestige out of the living. The word may have expired since w->now. */
ALWAYS_INLINE void withdraw_life(const struct work *w, u32 class, u64 word)
{
	struct counters *c = counters_of(w->worker);
	u64 period = expiry_of(word, w->now) >> PERIOD_SHIFT;
	u32 lane = word >> LANE_SHIFT & LANE_MASK;
	u64 *cell = cell_of(w, class, lane, period);

	if (!c || !cell || class >= CLASSES)
		return;
	/* In this order, as the readers look at the living first: what left them for no known reason has expired. */
	c->withdrawn[class][lane]++;
	if (*cell >> 32 == period)
		add_in_order(cell, -1ULL);
}

/* Ticks since the vestige in a slot entered, or its timer was restarted; it must be one that lives. */
ALWAYS_INLINE u64 age_at(const struct work *w, u32 slot)
{
	u16 *start = start_at(w, slot);
	u64 age = start ? (w->now - *start) & START_MASK : 0;

	return age <= HORIZON_TICKS ? age : 0; /* another CPU started it after we looked at the clock */
}

/* taken: at this moment a new connection takes the tuple. */
ALWAYS_INLINE void count_end(struct work *w, u64 word, bool taken)
{
	struct counters *c = counters_of(w->worker);
	u32 class = class_of(w, slot_of(word));
	u64 age = age_at(w, slot_of(word));

	withdraw_life(w, class, word);
	tell_end(w, age);
	if (!c || class >= CLASSES)
		return;
	c->ended[class][w->reason % REASONS]++;
	c->lifetime[class][lane_of(age)]++;
	c->lifetime_ticks[class] += age;
	if (!taken)
		return;
	c->reused[class][reuse_lane_of(age)]++;
	c->reused_ticks[class] += age;
}

/* Ends the vestige of a word that was seen alive. False if another CPU was faster. Of one that is REUSED without this, by the next
 * entry of its tuple (publish), nobody has seen when the tuple was taken. */
ALWAYS_INLINE bool vestige_end(struct work *w, u64 *at, u64 word, u32 reason)
{
	look_who_ends(w, word);
	if (__sync_val_compare_and_swap(at, word, 0) != word)
		return false;
	w->reason = reason;
	count_end(w, word, reason == REASON_REUSED);
	return true;
}

/* Rounded up to a tick, and one more for the part of a tick that has passed. */
ALWAYS_INLINE u64 life_ticks(u64 nanoseconds)
{
	return (nanoseconds >> TICK_SHIFT) + 2;
}

/* A life that began some ticks ago and lasts so much longer. */
ALWAYS_INLINE void set_life(struct work *w, u64 age, u64 nanoseconds)
{
	u64 ticks = life_ticks(nanoseconds);

	if (ticks > HORIZON_TICKS) {
		COUNT(w->worker, dropped[DROPPED_HORIZON]);
		ticks = HORIZON_TICKS;
	}
	w->now = tick_now();
	w->start = w->now - age;
	w->expiry = w->now + ticks;
	w->lane = lane_of(age + ticks);
}

/* What a word says of the life that was set. */
ALWAYS_INLINE u64 word_of_life(const struct work *w)
{
	return (w->expiry & TICK_MASK) << EXPIRY_SHIFT | w->lane << LANE_SHIFT | (w->session.fin_wait2 ? WORD_FIN_WAIT2 : 0);
}

/* What a slot's start is to be. */
ALWAYS_INLINE u16 start_in_order(const struct work *w, bool in_order)
{
	return (w->start & START_MASK) | (in_order ? 0 : OUT_OF_ORDER);
}

#endif
