/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The table's maps and what is done with a vestige: find, insert, restart, end. vestige.h says how and why.
 *
 * One operation's state lies in a struct work, a map's memory and not the stack. What comes out of a map is unknown to
 * the verifier whatever went in, so two paths that differ in some byte of a tuple are one path again at the next join;
 * on the stack each of them would be walked to its end, more than the million steps that a kernel allows.
 *
 * Everything here is family-neutral: one copy of the code, in which the functions that reach into an array pick it by
 * `family`. A branch costs a nanosecond; a second copy would cost the loader half a second. Sizes (SLOTS_*, LINES_*) and HASH_SEED come from the loader.
 */
#ifndef TWCTL_TABLE_H
#define TWCTL_TABLE_H

#define NOTED 16384

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* An array that user space maps. PINS: where the table is pinned already, for programs that are loaded after it. */
#ifdef PINS
#define TABLE(type, name, entries) BPF_F_TABLE("array:" PINS "/" #name, u32, type, name, entries, BPF_F_MMAPABLE)
#else
#define TABLE(type, name, entries) BPF_F_TABLE("array", u32, type, name, entries, BPF_F_MMAPABLE)
#endif

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
	u32 marking;
};

struct work {
	struct session session;	/* what is inserted or looked for */
	struct tuple other;	/* whose record lies in the way */
	u64 family;
	u64 now, expiry;	/* ticks, not cut to 24 bits */
	u64 hash, own_hash;	/* of the tuple last looked at; of the session that is inserted */
	u64 tagged;		/* a bit for each live word of a line with the tag */
	u64 candidate, spare;	/* indexes into a line: in_line's own, chosen */
	u64 line, home;		/* lines by number: last looked at; the found word's */
	u64 word, slot, block;	/* found; taken, and its block of the ring */
	u32 reason, worker;
	struct party parties[KINDS + 1]; /* room for what two bits can say */
	u64 keys[KINDS + 1];	/* their hashes */
	u32 owner;
	u32 flags;	/* guard: TCP flags of the segment */
	u32 noted;	/* guard: the connection is in `closing` */
};

/* Who works: a program does not interrupt itself, but it does interrupt the others, so each has memory of its own. (Where one
 * did, the kernel would not run it a second time.) */
enum worker { WORKER_BIRTH, WORKER_AGAIN, WORKER_RESTART, WORKER_END, WORKER_RECONCILE, WORKER_GUARD, WORKERS };

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

/* Connections that closed first and are not yet vestiges, and how many `closing` has of them, by PENDING parts of the hash: what
 * keeps other segments from a look into it. A note says that there is a socket, with when (ns) and on which CPU a segment was
 * last led to it in its lower bits; or since when (tick) none was found. */
#define NOTE_SOCKET (1ULL << 63)
#define NOTE_CPU 0xffULL
#define PENDING 4096
TABLE(u64, pending, PENDING);

/* By the tuple's hash, for guarded namespaces: the TOS of IPv4 sessions that have one; notes. */
#ifdef PINS
BPF_TABLE("lru_hash:" PINS "/tos", u64, u32, tos, NOTED);
BPF_TABLE("lru_hash:" PINS "/closing", u64, u64, closing, NOTED);
#else
BPF_TABLE("lru_hash", u64, u32, tos, NOTED);
BPF_TABLE("lru_hash", u64, u64, closing, NOTED);
#endif

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

	return starts ? &starts->tick[slot % STARTS] : NULL;
}

ALWAYS_INLINE u16 owner_at(const struct work *w, u32 slot)
{
	struct starts *starts = starts_at(w, slot / STARTS);

	return starts ? starts->owner[slot % STARTS] : OWNER_UNKNOWN;
}

ALWAYS_INLINE void set_owner(const struct work *w, u32 slot, u16 owner)
{
	struct starts *starts = starts_at(w, slot / STARTS);

	if (starts)
		starts->owner[slot % STARTS] = owner;
}

ALWAYS_INLINE struct ring *ring_of(const struct work *w, u32 class)
{
	u32 i = class * FAMILIES + w->family;

	return rings.lookup(&i);
}

/* From jiffies, which the kernel derives from CLOCK_MONOTONIC (tick_do_update_jiffies64). The coarse clock would be as cheap,
 * but tracing programs may not read it. */
ALWAYS_INLINE u64 tick_now(void)
{
	u32 zero = 0;
	struct meta *m = meta.lookup(&zero);

	return m ? (bpf_jiffies64() * JIFFY_NANOSECONDS + m->epoch) >> TICK_SHIFT : 0;
}

/* 1 if a < b, for values below 2^63. Arithmetic instead of a branch: eight words a line are eight doublings of the paths
 * that the verifier has to walk. The empty assembly hides the difference from clang, which would make it a branch again. */
ALWAYS_INLINE u64 less(u64 a, u64 b)
{
	u64 difference = a - b;

	asm("" : "+r"(difference));
	return difference >> 63;
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
ALWAYS_INLINE u32 class_of(const struct work *w, u32 slot)
{
	struct ring *local = ring_of(w, CLASS_LOCAL), *remote = ring_of(w, CLASS_REMOTE);

	if (!local || !remote)
		return CLASS_LOOPBACK;
	return CLASS_REMOTE - less(slot, local->base) - less(slot, remote->base);
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

/* Seeded anew for each load, so that nobody outside can aim many tuples at one line. */
ALWAYS_INLINE u64 hash_of(const struct work *w, const struct tuple *t)
{
	u64 hash = mix(HASH_SEED, (u64)t->local[0] << 32 | t->remote[0]);

	hash = mix(hash, (u64)t->local_port << 48 | (u64)t->remote_port << 32 | t->netns);
	if (!is_ipv4(w)) {
		hash = mix(hash, (u64)t->local[1] << 32 | t->remote[1]);
		hash = mix(hash, (u64)t->local[2] << 32 | t->remote[2]);
		hash = mix(hash, (u64)t->local[3] << 32 | t->remote[3]);
		hash = mix(hash, t->scope);
	}
	return settle(hash);
}

/* A tuple's line and tag: the line from the hash's upper half, the tag from its lower, so that one says nothing about
 * the other. */
ALWAYS_INLINE struct line *find_line(struct work *w, const struct tuple *t)
{
	u64 lines = is_ipv4(w) ? LINES_IPV4 : LINES_IPV6;

	w->hash = hash_of(w, t);
	w->line = (w->hash >> 32) * lines >> 32;
	return line_at(w, w->line);
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

ALWAYS_INLINE bool record_has(const struct work *w, u32 slot, const struct tuple *t)
{
	return is_ipv4(w) ? record_has4(slot, t) : record_has6(slot, t);
}

/* The fields that both families' records share. */
#define COPY_STATE(to, from)                         \
	do {                                         \
		(to)->snd_nxt = (from)->snd_nxt;     \
		(to)->rcv_nxt = (from)->rcv_nxt;     \
		(to)->ts_recent = (from)->ts_recent; \
		(to)->ts_offset = (from)->ts_offset; \
		(to)->window = (from)->window;       \
		(to)->bits = (from)->bits;           \
	} while (0)

ALWAYS_INLINE void write_record(const struct work *w, u32 slot)
{
	const struct session *s = &w->session;

	if (is_ipv4(w)) {
		struct vestige4 *v = records_ipv4.lookup(&slot);

		if (!v)
			return;
		v->local = s->tuple.local[0];
		v->remote = s->tuple.remote[0];
		v->local_port = s->tuple.local_port;
		v->remote_port = s->tuple.remote_port;
		v->netns = s->tuple.netns;
		COPY_STATE(v, s);
	} else {
		struct vestige6 *v = records_ipv6.lookup(&slot);

		if (!v)
			return;
		__builtin_memcpy(v->local, s->tuple.local, sizeof(v->local));
		__builtin_memcpy(v->remote, s->tuple.remote, sizeof(v->remote));
		v->local_port = s->tuple.local_port;
		v->remote_port = s->tuple.remote_port;
		v->netns = s->tuple.netns;
		v->scope = s->tuple.scope;
		v->marking = s->marking;
		COPY_STATE(v, s);
	}
}

/* The tuple that a slot's record holds, whoever it belonged to. */
ALWAYS_INLINE void read_tuple(const struct work *w, u32 slot, struct tuple *t)
{
	if (is_ipv4(w)) {
		struct vestige4 *v = records_ipv4.lookup(&slot);

		if (!v)
			return;
		t->local[0] = v->local;
		t->remote[0] = v->remote;
		t->local_port = v->local_port;
		t->remote_port = v->remote_port;
		t->netns = v->netns;
	} else {
		struct vestige6 *v = records_ipv6.lookup(&slot);

		if (!v)
			return;
		__builtin_memcpy(t->local, v->local, sizeof(t->local));
		__builtin_memcpy(t->remote, v->remote, sizeof(t->remote));
		t->local_port = v->local_port;
		t->remote_port = v->remote_port;
		t->netns = v->netns;
		t->scope = v->scope;
	}
}

/* The sequence state that a slot's record holds, into the session of the same tuple. */
ALWAYS_INLINE void read_record(struct work *w, u32 slot)
{
	if (is_ipv4(w)) {
		struct vestige4 *v = records_ipv4.lookup(&slot);

		if (v)
			COPY_STATE(&w->session, v);
	} else {
		struct vestige6 *v = records_ipv6.lookup(&slot);

		if (!v)
			return;
		COPY_STATE(&w->session, v);
		w->session.marking = v->marking;
	}
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

/* One pass over a line: which words carry the tag and live (a bit each), and which word is the best to give up: a free
 * one, or else the one that expires first. That three words of a line carry one tag happens once in a hundred million
 * times; only two are looked at, and it is counted. */
ALWAYS_INLINE void scan_line(struct work *w, const struct line *line)
{
	u64 tag = w->hash & TAG_MASK, now = w->now, least = ~0ULL >> 1, tagged = 0;

#pragma unroll
	for (u64 i = 0; i < LINE_WORDS; i++) {
		u64 word = line->word[i], left = remaining(word, now), rank = left << 3 | i;

		tagged |= (less((word >> 24 & TAG_MASK) ^ tag, 1) & less(0, left)) << i;
		least ^= (least ^ rank) & -less(rank, least);
	}
	w->tagged = tagged;
	w->spare = least % LINE_WORDS; /* the rank's lower bits */
	tagged &= tagged - 1;
	if (tagged & (tagged - 1))
		COUNT(w->worker, dropped[DROPPED_COLLISION]);
}

/* Index of the lowest bit that is set, of eight. */
ALWAYS_INLINE u64 lowest_bit(u64 bits)
{
	u64 bit = bits & -bits;

	return less(0, bit & 0xaa) | less(0, bit & 0xcc) << 1 | less(0, bit & 0xf0) << 2;
}

/* Looks for the tuple's live vestige among the words whose tag matches, nearly always none or one. If it is there,
 * w->spare says where and w->word what the word was. */
ALWAYS_INLINE bool match_tuple(struct work *w, const struct line *line)
{
#pragma unroll
	for (int n = 0; n < 2; n++) {
		u64 tagged = w->tagged, i, word;

		if (!tagged)
			return false;
		i = in_line(w, lowest_bit(tagged));
		word = line->word[i];
		if (record_has(w, slot_of(word), &w->session.tuple)) {
			w->spare = i;
			w->word = word;
			return true;
		}
		w->tagged = tagged & (tagged - 1);
	}
	return false;
}

/* Whether any word of a line has the tag of the tuple last looked at, alive or not. A product of four differences of 16
 * bits fits into 64, and is 0 if one of them is: two branches for eight words. */
ALWAYS_INLINE bool has_tag(const struct work *w, const struct line *line)
{
	u64 tag = w->hash & TAG_MASK;
#define DIFFERENCE(i) ((line->word[i] << 24 >> 48) ^ tag)
#define FOUR(i) (DIFFERENCE(i) * DIFFERENCE(i + 1) * DIFFERENCE(i + 2) * DIFFERENCE(i + 3))

	return !FOUR(0) || !FOUR(4);
#undef FOUR
#undef DIFFERENCE
}

/* Looks for the session's live vestige in its line: w->home and w->spare say where its word is, w->word what it was. */
ALWAYS_INLINE bool find_in_line(struct work *w, struct line *line)
{
	if (!line || !has_tag(w, line)) /* nearly every miss, without a look at the clock */
		return false;
	w->now = tick_now();
	w->home = w->line;
	w->own_hash = w->hash;
	scan_line(w, line);
	return match_tuple(w, line);
}

ALWAYS_INLINE bool vestige_find(struct work *w)
{
	return find_in_line(w, find_line(w, &w->session.tuple));
}

/* Index of the live word that names a slot; 0 if none does. An expired word, or a free one, may still name it. */
ALWAYS_INLINE u64 word_of_slot(struct work *w, const struct line *line, u32 slot)
{
	u64 at = 0;

#pragma unroll
	for (u64 i = 1; i < LINE_WORDS; i++)
		at |= i & -(less(slot_of(line->word[i]) ^ slot, 1) & less(0, remaining(line->word[i], w->now)));
	return in_line(w, at);
}

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
	u64 birth, lap;
	u32 offset;

	if (!ring)
		return NULL;
	birth = __sync_fetch_and_add(&ring->head, 1);
	lap = birth / ring->capacity;
	offset = birth - lap * ring->capacity;
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
	return (w->expiry & TICK_MASK) << 40 | (w->hash & TAG_MASK) << 24 | w->slot;
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

/* Says whose the vestige is that vestige_insert has just published. If it has moved on meanwhile, it is in the same word still. The
 * owner is written before the locked look at the word, and vestige_move looks for the owner after its locked change of the
 * word: one of the two sees what the other did. */
ALWAYS_INLINE void vestige_assign(struct work *w)
{
	struct line *line = line_at(w, w->home);
	u64 fresh = fresh_word(w), word;

	set_owner(w, w->slot, w->owner);
	if (!line)
		return;
	word = __sync_val_compare_and_swap(&line->word[in_line(w, w->spare)], fresh, fresh);
	if (word != fresh && !((word ^ fresh) & TAG_MASK << 24))
		set_owner(w, slot_of(word), w->owner);
}

/* The vestige that vestige_find found moves to the newest slot of its ring, in the same word of the index, and expires at
 * w->expiry. w->session is what its record will hold: a record is never changed where others read it. */
ALWAYS_INLINE bool vestige_move(struct work *w, u32 class)
{
	struct ring *ring = take_slot(w, class);
	u64 ended = w->word, fresh;
	struct line *line;
	bool moved = false;
	u16 owner;

	if (!ring)
		return false;
	w->owner = owner_at(w, slot_of(ended));
	occupy_slot(w, ring, class);
	line = line_at(w, w->home);
	fresh = (w->expiry & TICK_MASK) << 40 | (ended & TAG_MASK << 24) | w->slot;
	w->word = fresh; /* if it ended meanwhile, the new slot's life is taken back */
	if (line && __sync_val_compare_and_swap(&line->word[in_line(w, w->spare)], ended, fresh) == ended) {
		w->word = ended;
		moved = true;
		owner = owner_at(w, slot_of(ended));
		if (owner != OWNER_UNKNOWN)
			set_owner(w, w->slot, owner);
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
