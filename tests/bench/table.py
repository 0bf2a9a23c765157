"""The table against BPF's own hash maps: nanoseconds of an insertion and a look-up, and bytes of a session.

All programs are of one compiled object, run by the kernel itself (BPF_PROG_TEST_RUN), many times at a go and in turn,
so that the machine's noise meets them alike; what counts is the median ratio. The empty program's time is part of
every figure, and is given, so that it can be subtracted.
"""

import statistics
from typing import Any

from tests.load.programs import Programs

ROUNDS = 5

PROGRAMS = """
struct key { u32 local, remote; u16 local_port, remote_port; u32 netns; };
BPF_TABLE("lru_hash", struct key, struct vestige4, lru, CAPACITY);
BPF_TABLE("hash", struct key, struct vestige4, plain, CAPACITY);
BPF_ARRAY(turn, u64, 8);

ALWAYS_INLINE u64 next_of(u32 which)
{
	u64 *n = turn.lookup(&which);

	return n ? (*n)++ : 0;
}

/* One of the newest half of what was inserted. */
ALWAYS_INLINE u64 recent_of(u32 inserted, u32 which)
{
	u64 *n = turn.lookup(&inserted);

	return n ? *n - 1 - next_of(which) % (CAPACITY / 2) : 0;
}

/* Multiplication spreads the tuples as real addresses and ports are spread. */
ALWAYS_INLINE void tuple_key(struct key *k, u64 n)
{
	u64 spread = n * 0x9e3779b97f4a7c15ULL;

	k->local = 0x0a000001;
	k->remote = spread >> 32;
	k->local_port = spread >> 16;
	k->remote_port = n;
	k->netns = 0;
}

ALWAYS_INLINE void session_of(struct work *w, u64 n)
{
	struct key k;

	tuple_key(&k, n);
	w->family = FAMILY_IPV4;
	w->session.tuple.local[0] = k.local;
	w->session.tuple.remote[0] = k.remote;
	w->session.tuple.local_port = k.local_port;
	w->session.tuple.remote_port = k.remote_port;
	w->session.tuple.netns = 0;
	w->session.snd_nxt = n;
}

int nothing(struct __sk_buff *skb) { return next_of(0) == 1; }

ALWAYS_INLINE int insert_for(u32 which, u64 nanoseconds)
{
	struct work *w = work_of(WORKER_ENTRY);

	if (!w)
		return 0;
	session_of(w, next_of(which));
	return vestige_insert(w, CLASS_REMOTE, 0, nanoseconds);
}

int insert_evicting(struct __sk_buff *skb) { return insert_for(1, 60000000000ULL); }
int insert_expired(struct __sk_buff *skb) { return insert_for(1, 1); }

int insert_lru(struct __sk_buff *skb)
{
	struct vestige4 v = {};
	struct key k;

	tuple_key(&k, next_of(2));
	v.snd_nxt = k.remote;
	return lru.update(&k, &v);
}

/* A hash map does not evict: what was inserted a capacity ago is deleted, as an expiry would have to. */
int insert_hash(struct __sk_buff *skb)
{
	struct vestige4 v = {};
	u64 n = next_of(3);
	struct key k;

	tuple_key(&k, n - CAPACITY + 64);
	plain.delete(&k);
	tuple_key(&k, n);
	v.snd_nxt = k.remote;
	return plain.update(&k, &v);
}

ALWAYS_INLINE int find_for(u64 n)
{
	struct work *w = work_of(WORKER_ENTRY);

	if (!w)
		return 0;
	session_of(w, n);
	return vestige_find(w);
}

int lookup_miss(struct __sk_buff *skb) { return find_for(next_of(4) | 1ULL << 40); }
int lookup_hit(struct __sk_buff *skb) { return find_for(recent_of(1, 4)); }

int lookup_miss_lru(struct __sk_buff *skb)
{
	struct key k;

	tuple_key(&k, next_of(5) | 1ULL << 40);
	return lru.lookup(&k) != NULL;
}

int lookup_hit_lru(struct __sk_buff *skb)
{
	struct key k;

	tuple_key(&k, recent_of(2, 5));
	return lru.lookup(&k) != NULL;
}
"""


PAIRS = (
    # what, ours, theirs, goal
    ("insert, evicting the oldest each time, against lru_hash", "insert_evicting", "insert_lru", 0.45),
    ("insert over expired sessions, against lru_hash", "insert_expired", "insert_lru", 0.45),
    ("insert over expired sessions, against hash (insert + delete)", "insert_expired", "insert_hash", None),
    ("look-up that misses, against lru_hash", "lookup_miss", "lookup_miss_lru", 0.55),
    ("look-up that hits, against lru_hash", "lookup_hit", "lookup_hit_lru", None),
)


def run(*, short: bool = False) -> dict[str, Any]:
    """Every pair at 64 k and 1 M sessions a class, and the bytes. short: only the smaller table, and fewer rounds."""
    results: dict[str, Any] = {}
    for capacity in (65_536,) if short else (65_536, 1_048_576):
        programs = Programs(PROGRAMS, capacity)
        for name in ("insert_evicting", "insert_lru", "insert_hash"):
            programs.nanoseconds(name, 2 * capacity)
        for what, ours, theirs, goal in PAIRS:
            if ours == "lookup_hit":  # both must hold what is looked for
                for name in ("insert_evicting", "insert_lru"):
                    programs.nanoseconds(name, capacity)
            for name in (ours, theirs):
                if name.startswith("lookup"):
                    assert programs.result(name) == ("hit" in name), name
            rounds = [
                [programs.nanoseconds(name) for name in (ours, theirs, "nothing")]
                for _ in range(3 if short else ROUNDS)
            ]
            mine, other, empty = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(row[0] / row[1] for row in rounds)
            net = statistics.median((row[0] - row[2]) / max(1, row[1] - row[2]) for row in rounds)
            results[f"{what}, {capacity} sessions"] = {
                "ns": mine,
                "other_ns": other,
                "empty_ns": empty,
                "ratio": round(ratio, 3),
                "net_ratio": round(net, 3),
                "goal": goal,
                "met": None if goal is None else ratio <= goal,
            }
    slots = programs.layout.slots("ipv4")
    size = programs.layout.bytes("ipv4") / slots
    results["bytes a session of capacity, IPv4"] = {"bytes": round(size, 2), "goal": 48, "met": size <= 48.01}
    return results
