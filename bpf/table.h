/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The table's maps and what is done with a vestige: find, insert, restart, end. vestige.h says how and why.
 *
 * Everything here is family-neutral: `family` is a compile-time constant in every caller, and the four *_at functions
 * pick the array. Sizes (SLOTS_*, LINES_*) and HASH_SEED come from the loader.
 */
#ifndef TWCTL_TABLE_H
#define TWCTL_TABLE_H

#define ALWAYS_INLINE static inline __attribute__((always_inline))

BPF_F_TABLE("array", u32, struct vestige4, records_ipv4, SLOTS_IPV4, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct vestige6, records_ipv6, SLOTS_IPV6, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct line, lines_ipv4, LINES_IPV4, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct line, lines_ipv6, LINES_IPV6, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct starts, starts_ipv4, SLOTS_IPV4 / STARTS + 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct starts, starts_ipv6, SLOTS_IPV6 / STARTS + 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct ring, rings, CLASSES * FAMILIES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct cells, living, CLASSES * FAMILIES * LANES, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct counters, counters, CPUS, BPF_F_MMAPABLE);

/* What a session is known by. IPv4 uses the first word of each address. */
struct tuple {
	u32 local[4], remote[4];
	u16 local_port, remote_port;
	u32 netns;
	u32 scope;
};

struct session {
	struct tuple tuple;
	u32 snd_nxt, rcv_nxt;
	u32 ts_recent, ts_offset;
	u16 window;
	u8 bits;
};

/* A tuple's place in the index, and the ticks that every step of one operation shares. */
struct place {
	struct line *line;
	u64 tag;
	u64 now;	/* full ticks, not cut to 24 bits */
};

struct match {
	u64 *at;	/* NULL: not found */
	u64 word;
};

struct scan {
	u64 tagged;	/* a bit for each live word with the tag */
	u64 spare;	/* index of the word to give up: a free one, or else the one that expires first */
};

ALWAYS_INLINE struct counters *this_cpu(void)
{
	u32 cpu = bpf_get_smp_processor_id();

	return counters.lookup(&cpu);
}

/* Atomic, for an interrupt can arrive between load and store of the same CPU. */
#define COUNT(field)                                               \
	do {                                                       \
		struct counters *_counters = this_cpu();           \
		if (_counters)                                     \
			__sync_fetch_and_add(&_counters->field, 1); \
	} while (0)

/* An index into a line, less all that the verifier knows of where it came from: an index must be known exactly, and were
 * it traced back through the hash, no two paths that ever differed in a byte of the tuple could be taken for one. Should
 * an interrupt change it in between, another word of the line is looked at, and every use checks the word it gets. */
ALWAYS_INLINE u64 untraced(u64 i)
{
	struct counters *c = this_cpu();

	if (!c)
		return 0;
	*(volatile u64 *)&c->scratch = i;
	return *(volatile u64 *)&c->scratch % LINE_WORDS;
}

ALWAYS_INLINE struct line *line_at(int family, u32 i)
{
	return family == FAMILY_IPV4 ? lines_ipv4.lookup(&i) : lines_ipv6.lookup(&i);
}

ALWAYS_INLINE u16 *start_at(int family, u32 slot)
{
	u32 i = slot / STARTS;
	struct starts *starts = family == FAMILY_IPV4 ? starts_ipv4.lookup(&i) : starts_ipv6.lookup(&i);

	return starts ? &starts->tick[slot % STARTS] : NULL;
}

ALWAYS_INLINE struct ring *ring_of(int family, u32 class)
{
	u32 i = class * FAMILIES + family;

	return rings.lookup(&i);
}

ALWAYS_INLINE u64 tick_now(void)
{
	return bpf_ktime_get_ns() >> TICK_SHIFT;
}

/* 1 if a < b, for values below 2^63. Arithmetic instead of a branch: eight words a line are eight doublings of the
 * paths that the verifier has to walk. */
ALWAYS_INLINE u64 less(u64 a, u64 b)
{
	return (a - b) >> 63;
}

/* Ticks until a word expires; 0 if it has, or was never used. */
ALWAYS_INLINE u64 remaining(u64 word, u64 now)
{
	u64 left = ((word >> 40) - now) & TICK_MASK;

	return left & -less(left, HORIZON_TICKS + 1);
}

ALWAYS_INLINE u32 slot_of(u64 word)
{
	return word & SLOT_MASK;
}

/* The ring that a slot lies in: the rings' slots follow each other in order of class. */
ALWAYS_INLINE u32 class_of(int family, u32 slot)
{
	struct ring *local = ring_of(family, CLASS_LOCAL), *remote = ring_of(family, CLASS_REMOTE);

	if (!local || !remote)
		return CLASS_LOOPBACK;
	return CLASS_REMOTE - less(slot, local->base) - less(slot, remote->base);
}

ALWAYS_INLINE u64 mix(u64 hash, u64 value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 32;
}

/* Seeded anew for each load, so that nobody outside can aim many tuples at one line. */
ALWAYS_INLINE u64 hash_of(int family, const struct tuple *t)
{
	u64 hash = mix(HASH_SEED, (u64)t->local[0] << 32 | t->remote[0]);

	hash = mix(hash, (u64)t->local_port << 48 | (u64)t->remote_port << 32 | t->netns);
	if (family == FAMILY_IPV6) {
		hash = mix(hash, (u64)t->local[1] << 32 | t->remote[1]);
		hash = mix(hash, (u64)t->local[2] << 32 | t->remote[2]);
		hash = mix(hash, (u64)t->local[3] << 32 | t->remote[3]);
		hash = mix(hash, t->scope);
	}
	hash *= 0xd6e8feb86659fd93ULL;
	return hash ^ hash >> 32;
}

/* The line from the hash's upper half, the tag from its lower, so that one says nothing about the other. */
ALWAYS_INLINE int find_place(int family, const struct tuple *t, struct place *place)
{
	u64 hash = hash_of(family, t);
	u64 lines = family == FAMILY_IPV4 ? LINES_IPV4 : LINES_IPV6;

	place->line = line_at(family, (hash >> 32) * lines >> 32);
	place->tag = hash & TAG_MASK;
	return place->line != NULL;
}

/* All differences at once: one branch instead of one for each field. */
ALWAYS_INLINE bool record_has4(u32 slot, const struct tuple *t)
{
	struct vestige4 *v = records_ipv4.lookup(&slot);

	return v && !((v->remote ^ t->remote[0]) | (v->local ^ t->local[0]) | (v->remote_port ^ t->remote_port) |
		      (v->local_port ^ t->local_port) | (v->netns ^ t->netns));
}

ALWAYS_INLINE bool record_has6(u32 slot, const struct tuple *t)
{
	struct vestige6 *v = records_ipv6.lookup(&slot);
	u32 difference;

	if (!v)
		return false;
	difference = (v->remote_port ^ t->remote_port) | (v->local_port ^ t->local_port) | (v->netns ^ t->netns) |
		     (v->scope ^ t->scope);
#pragma unroll
	for (int i = 0; i < 4; i++)
		difference |= (v->remote[i] ^ t->remote[i]) | (v->local[i] ^ t->local[i]);
	return !difference;
}

ALWAYS_INLINE bool record_has(int family, u32 slot, const struct tuple *t)
{
	return family == FAMILY_IPV4 ? record_has4(slot, t) : record_has6(slot, t);
}

ALWAYS_INLINE void write_record4(u32 slot, const struct session *s)
{
	struct vestige4 *v = records_ipv4.lookup(&slot);

	if (!v)
		return;
	v->local = s->tuple.local[0];
	v->remote = s->tuple.remote[0];
	v->local_port = s->tuple.local_port;
	v->remote_port = s->tuple.remote_port;
	v->snd_nxt = s->snd_nxt;
	v->rcv_nxt = s->rcv_nxt;
	v->ts_recent = s->ts_recent;
	v->ts_offset = s->ts_offset;
	v->window = s->window;
	v->netns = s->tuple.netns;
	v->bits = s->bits;
}

ALWAYS_INLINE void write_record6(u32 slot, const struct session *s)
{
	struct vestige6 *v = records_ipv6.lookup(&slot);

	if (!v)
		return;
	__builtin_memcpy(v->local, s->tuple.local, sizeof(v->local));
	__builtin_memcpy(v->remote, s->tuple.remote, sizeof(v->remote));
	v->local_port = s->tuple.local_port;
	v->remote_port = s->tuple.remote_port;
	v->snd_nxt = s->snd_nxt;
	v->rcv_nxt = s->rcv_nxt;
	v->ts_recent = s->ts_recent;
	v->ts_offset = s->ts_offset;
	v->window = s->window;
	v->netns = s->tuple.netns;
	v->bits = s->bits;
	v->scope = s->tuple.scope;
}

/* The tuple that a slot's record holds, whoever it belonged to. */
ALWAYS_INLINE bool read_tuple(int family, u32 slot, struct tuple *t)
{
	if (family == FAMILY_IPV4) {
		struct vestige4 *v = records_ipv4.lookup(&slot);

		if (!v)
			return false;
		t->local[0] = v->local;
		t->remote[0] = v->remote;
		t->local_port = v->local_port;
		t->remote_port = v->remote_port;
		t->netns = v->netns;
	} else {
		struct vestige6 *v = records_ipv6.lookup(&slot);

		if (!v)
			return false;
		__builtin_memcpy(t->local, v->local, sizeof(t->local));
		__builtin_memcpy(t->remote, v->remote, sizeof(t->remote));
		t->local_port = v->local_port;
		t->remote_port = v->remote_port;
		t->netns = v->netns;
		t->scope = v->scope;
	}
	return true;
}

ALWAYS_INLINE u32 lane_of(u64 ticks)
{
	const u32 edges[LANES] = LANE_EDGES;
	u32 lane = 0;

#pragma unroll
	for (int i = 0; i < LANES - 1; i++)
		lane += less(edges[i], ticks);
	return lane;
}

ALWAYS_INLINE u64 *cell_of(int family, u32 class, u32 lane, u64 period)
{
	u32 i = (class * FAMILIES + family) * LANES + lane;
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

ALWAYS_INLINE void plan_life(int family, u32 class, u64 expiry, u64 now)
{
	struct counters *c = this_cpu();
	u64 period = expiry >> PERIOD_SHIFT;
	u32 lane = lane_of(expiry - now);
	u64 *cell = cell_of(family, class, lane, period);

	if (!c || !cell || class >= CLASSES)
		return;
	count_living(cell, period);
	__sync_fetch_and_add(&c->planned[class][lane % LANES], 1);
	__sync_fetch_and_add(&c->planned_ticks[class][lane % LANES], expiry - now);
}

/* Takes a live word's vestige out of the living. Returns its age in ticks. */
ALWAYS_INLINE u64 withdraw_life(int family, u32 class, u64 word, u64 now)
{
	struct counters *c = this_cpu();
	u16 *start = start_at(family, slot_of(word));
	u64 left = remaining(word, now);
	u64 age = start ? (u16)(now - *start) : 0;
	u64 period = (now + left) >> PERIOD_SHIFT;
	u32 lane = lane_of(age + left);
	u64 *cell = cell_of(family, class, lane, period);

	if (!c || !cell || class >= CLASSES)
		return age;
	if (*cell >> 32 == period)
		__sync_fetch_and_add(cell, -1ULL);
	__sync_fetch_and_add(&c->withdrawn[class][lane % LANES], 1);
	return age;
}

ALWAYS_INLINE void count_end(int family, u64 word, u64 now, u32 reason)
{
	struct counters *c = this_cpu();
	u32 class = class_of(family, slot_of(word));
	u64 age = withdraw_life(family, class, word, now);

	if (!c || class >= CLASSES)
		return;
	__sync_fetch_and_add(&c->ended[class][reason % REASONS], 1);
	__sync_fetch_and_add(&c->lifetime[class][lane_of(age) % LANES], 1);
	__sync_fetch_and_add(&c->lifetime_ticks[class], age);
}

/* Ends the vestige of a word that was seen alive. False if another CPU was faster. */
ALWAYS_INLINE bool vestige_end(int family, u64 *at, u64 word, u64 now, u32 reason)
{
	if (__sync_val_compare_and_swap(at, word, 0) != word)
		return false;
	count_end(family, word, now, reason);
	return true;
}

ALWAYS_INLINE struct scan scan_line(const struct place *place)
{
	struct scan scan = {};
	u64 least = ~0ULL >> 1;

#pragma unroll
	for (u64 i = 0; i < LINE_WORDS; i++) {
		u64 word = place->line->word[i], left = remaining(word, place->now), rank = left << 3 | i;

		scan.tagged |= (less((word >> 24 & TAG_MASK) ^ place->tag, 1) & less(0, left)) << i;
		least ^= (least ^ rank) & -less(rank, least);
	}
	scan.spare = untraced(least);
	least = scan.tagged & (scan.tagged - 1);
	if (least & (least - 1))
		COUNT(dropped[DROPPED_COLLISION]);
	return scan;
}

/* Index of the lowest bit that is set, of eight. */
ALWAYS_INLINE u64 lowest_bit(u64 bits)
{
	u64 bit = bits & -bits;

	return less(0, bit & 0xaa) | less(0, bit & 0xcc) << 1 | less(0, bit & 0xf0) << 2;
}

/* The word of the tuple's live vestige, among those whose tag matches: nearly always none or one. Two are looked at; that
 * a line holds three equal tags of different tuples happens once in a hundred million times, and is counted. */
ALWAYS_INLINE struct match match_tuple(int family, const struct tuple *t, const struct place *place, u64 tagged)
{
	struct match match = {};

#pragma clang loop unroll(disable)
	for (int n = 0; n < 2 && tagged; n++) {
		u64 i = untraced(lowest_bit(tagged)), word = place->line->word[i];

		if (record_has(family, slot_of(word), t)) {
			match.at = &place->line->word[i];
			match.word = word;
			return match;
		}
		tagged &= tagged - 1;
	}
	return match;
}

ALWAYS_INLINE struct match vestige_find(int family, const struct tuple *t, struct place *place)
{
	struct match none = {};

	if (!find_place(family, t, place))
		return none;
	return match_tuple(family, t, place, scan_line(place).tagged);
}

/* The ring has come round to a slot: if its old record's vestige is alive, it is evicted before the slot is written. */
ALWAYS_INLINE void evict_slot(int family, u32 slot, u64 now)
{
	struct tuple old = {};
	struct place place = { .now = now };
	u64 at = 0, word;

	if (!read_tuple(family, slot, &old) || !find_place(family, &old, &place))
		return;
#pragma unroll
	for (u64 i = 1; i < LINE_WORDS; i++)
		at |= i & -less(slot_of(place.line->word[i]) ^ slot, 1);
	at = untraced(at);
	word = place.line->word[at];
	if (slot_of(word) == slot && remaining(word, now))
		vestige_end(family, &place.line->word[at], word, now, REASON_EVICTED);
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

/* Takes the next slot of a class's ring, writes the record there and plans its life. Returns the word to publish. */
ALWAYS_INLINE u64 occupy_slot(int family, u32 class, const struct session *s, u64 tag, u64 now, u64 expiry)
{
	struct ring *ring = ring_of(family, class);
	u64 birth, lap, block;
	u32 offset, slot;
	u16 *start;

	if (!ring)
		return 0;
	birth = __sync_fetch_and_add(&ring->head, 1);
	lap = birth / ring->capacity;
	offset = birth - lap * ring->capacity;
	block = lap * (BLOCKS / 2) + offset / ring->block;
	slot = ring->base + offset;
	if (ring->expiry[(block - BLOCKS / 2) % BLOCKS] >= now)
		evict_slot(family, slot, now);
	if (family == FAMILY_IPV4)
		write_record4(slot, s);
	else
		write_record6(slot, s);
	start = start_at(family, slot);
	if (start)
		*start = now;
	raise_expiry(&ring->expiry[block % BLOCKS], expiry);
	plan_life(family, class, expiry, now);
	return (expiry & TICK_MASK) << 40 | tag << 24 | slot;
}

/* Publishes a word in its line: over the tuple's older vestige, else over free space, else over the oldest. Another CPU
 * can change the line meanwhile: then once more. */
ALWAYS_INLINE bool publish(int family, const struct tuple *t, struct place *place, u64 word)
{
	struct scan scan = scan_line(place);
	struct match older = match_tuple(family, t, place, scan.tagged);
	u64 *at = older.at ? older.at : &place->line->word[scan.spare];
	u64 old = older.at ? older.word : *at;
	u32 reason = older.at ? REASON_REUSED : REASON_EVICTED;

	if (__sync_val_compare_and_swap(at, old, word) != old) {
		at = &place->line->word[scan_line(place).spare];
		old = *at;
		reason = REASON_EVICTED;
		if (__sync_val_compare_and_swap(at, old, word) != old)
			return false;
	}
	if (remaining(old, place->now))
		count_end(family, old, place->now, reason);
	return true;
}

ALWAYS_INLINE u64 expiry_after(u64 nanoseconds, u64 now)
{
	u64 ticks = (nanoseconds >> TICK_SHIFT) + 2;

	if (ticks > HORIZON_TICKS) {
		COUNT(dropped[DROPPED_HORIZON]);
		ticks = HORIZON_TICKS;
	}
	return now + ticks;
}

/* A session enters the table. The tuple's place is found first, so that its line is on its way from memory while the
 * record is written. */
ALWAYS_INLINE bool vestige_insert(int family, u32 class, const struct session *s, u64 nanoseconds)
{
	struct place place = { .now = tick_now() };
	u64 word;

	if (!find_place(family, &s->tuple, &place))
		return false;
	word = occupy_slot(family, class, s, place.tag, place.now, expiry_after(nanoseconds, place.now));
	if (publish(family, &s->tuple, &place, word))
		return true;
	withdraw_life(family, class, word, place.now);
	COUNT(dropped[DROPPED_CONTENTION]);
	return false;
}

/* The timer starts anew: the vestige moves to the newest slot of its ring, in the same word of the index. */
ALWAYS_INLINE void vestige_restart(int family, const struct match *match, const struct session *s,
				   const struct place *place, u64 nanoseconds)
{
	u32 class = class_of(family, slot_of(match->word));
	u64 word = occupy_slot(family, class, s, place->tag, place->now, expiry_after(nanoseconds, place->now));
	u64 ended = match->word;

	if (__sync_val_compare_and_swap(match->at, match->word, word) != match->word)
		ended = word;	/* it ended meanwhile: the new slot's life is taken back instead */
	else if (class < CLASSES)
		COUNT(restarted[class]);
	withdraw_life(family, class, ended, place->now);
}

#endif
