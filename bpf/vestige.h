/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Vestiges: what twctl remembers of TCP sessions in TIME_WAIT.
 *
 * PROBLEM. The side that closes first keeps its session for 60 s, so that late segments find someone who knows what to
 * do with them. Linux keeps a mini-socket for it (256 bytes, 512 with the port it pins) and says nothing when it is
 * made or freed. twctl needs to know every such session, at ten thousand entries a second and up, in fixed memory, from
 * programs that run in interrupt context on all CPUs at once and must not wait for each other.
 *
 * A SESSION is a TCP connection that has reached TIME_WAIT on this host, or FIN_WAIT2 after its application closed it:
 * the kernel keeps the same mini-socket for both. Its VESTIGE is a record of 32 bytes (IPv4) or 64 bytes (IPv6) in a
 * BPF array. Three things of one family lead to it, all of them arrays that user space maps read-only:
 *
 *   ring     one for each class (loopback, local, remote): a run of slots in the record array, handed out in order of
 *            entry by one fetch-and-add. The slot after the newest is the oldest: a full ring discards its oldest.
 *   line     64 bytes, one cache line, of eight 64-bit index words. A tuple's hash names its line, so a look-up that
 *            finds nothing costs one cache miss.
 *   word     expiry tick 24 | lane 3 | FIN_WAIT2 1 | tag 12 | slot 24, from the top bit down. The tag is 12 more bits of the
 *            hash; eight words give 8 wrong matches in 4,096 misses, and the record's tuple settles those.
 *
 * LIFE OF A VESTIGE. vestige_insert takes a slot, writes the record, then publishes it with one compare-and-swap
 * of a word. Nothing runs when it expires: a word whose tick has passed is free space. It ends earlier when
 * vestige_end swaps its word for 0 (reused, reset, destroyed, ...), when its ring comes round to its slot or when its
 * line is full (evicted: the oldest word of the line goes). A tuple that enters again replaces its older vestige (reused).
 *
 * A TIMER THAT STARTS ANEW does so where the vestige lies, by one compare-and-swap of its word: expiry, lane, and FIN_WAIT2
 * that becomes TIME_WAIT with the peer's FIN. No slot is taken for it, so no segment can turn a ring: only entries do. The
 * peer's timestamp is swapped in the record, together with the sequence number beside it (renew_timestamp). The price is
 * that a ring is not in order of starts: a start that is not the time of its entry says so (OUT_OF_ORDER).
 *
 * WHY NO TORN OR STALE RECORD IS TAKEN FOR A LIVE ONE. A slot's record is written by one program alone, the one that its ring
 * gave the slot to last, and it tells when it has done so. How often a slot was given away, its TURN, follows from the ring's
 * head, 64 bits that only grow; the lowest bit of the turn that was written last stands beside the record. So a reader
 * (vestige_read) finds a word, looks at the turn and whether that is written, compares the tuple, copies the record, and looks
 * at the turn again. If it is the same, nobody wrote the slot meanwhile, however long the reader was held up. The word itself
 * is looked at by locked instructions, which keep the steps in order on every CPU (BPF has no barriers). A program that writes
 * a slot ends what lives there first; one that starts a timer anew looks at the turn after it has changed the word. Both
 * change one thing and then look at the other's, with a locked instruction in between, so that at least one of them sees it
 * and ends the vestige: no word that lives names a slot of somebody else's.
 * Whoever ends a vestige does so by compare-and-swap from the very word it checked: of two enders one wins, and the end is
 * counted once. User space, which only shows, looks at the words again and leaves the turns out.
 *
 * A PROGRAM THAT IS HELD UP (an interrupt, or a hypervisor that runs somebody else) until its ring has come round would still write
 * the slot, which is another's by then. So each that takes a slot leaves it once, by an exclusive or that turns the lowest bit of the
 * turn over: in any order that adds up to the last turn given away, as soon as all of them have left. Whoever takes a slot in which the
 * bit is not that of the turn before has somebody in it, and leaves it at once, without having entered (dropped: contention). The one
 * that was held up finds its turn over, and withdraws what it has just published. (Two that are held up in the same slot at the same
 * time, one between taking it and that look, one while it writes, can still deceive a third.)
 *
 * TIME. A tick is 2^26 ns (67 ms) of CLOCK_MONOTONIC, as jiffies tell it: they count the same time in steps of a few ms,
 * and reading them takes 2 ns instead of 35. An expiry is rounded up to a tick: never early. 24 bits wrap after
 * 13 days; a word counts as live only if it expires within HORIZON_TICKS (18 minutes), so a word that nobody touched for
 * 13 days would live again for that long. The daemon's sweep (observe/compare.h), every few minutes, zeroes expired words
 * long before, and says when (meta.swept). Where no daemon has done so for days, each entry sweeps some lines (sweep_some):
 * 4,608 entries go through those of the default capacity. If that is not done either, until before the first word could
 * have come round, no word is believed (is_swept) until somebody has swept: there was hardly a session then.
 * Longer lives are cut to the horizon, counted, and prolonged by the next reconciliation.
 *
 * COUNTING THE LIVING. Nothing runs at expiry, so no counter can be decremented there. Instead each entry is counted in
 * the cell of its class, family, lane (length of life) and expiry period (8 ticks, 537 ms); an early end or a timer that starts
 * anew takes it out again: the word says of which cell. The living are the sum of the cells whose period has not passed; what has expired is what was inserted, less
 * the living, less what ended early. A cell's upper half says which period it counts, so that it can be used again.
 *
 * TWO TUPLES. Where packets are translated between socket and wire (DNAT, masquerade, a TC program) a guarded session's
 * record holds the tuple that is on the wire: segments are looked for as they come in, before anybody translates them back. The
 * socket's own tuple, which the application sees, lies in the slot after it (TRANSLATED): no word names that one, it is given
 * away together with the other, and is not overwritten before it. So such a session takes two slots of its ring, and all others
 * pay nothing. wire.h says how the wire's tuple is learnt.
 *
 * WHAT ELSE A SEGMENT IN THE NAME OF A SESSION NEEDS. An IPv4 record has no room for its TOS, which hardly any session
 * sets: those that do have it in a small hash of its own, by the tuple's hash; the least recently used goes.
 *
 * UNITS AND BYTE ORDER. Addresses and ports stand as on the wire, everything else in host order: sequence numbers and
 * timestamps modulo 2^32, the window as it goes on the wire (already shifted).
 *
 * SIZE. For each session of capacity: record 32 (64), index 12, start and owner 4: 48 bytes for IPv4 and 80 for IPv6, plus
 * 1.6 MB of cells and 0.7 MB of tallies (observe/attribution.h). The default of 65,536 for each class and family takes 28 MB.
 * With every pool full and alive a line holds 5.3 words on average, and 3.2 % of the vestiges are evicted because their line
 * is full; half full, 1 in 1,100; with one class of the three full, 1 in 20,000.
 */
#ifndef TWCTL_VESTIGE_H
#define TWCTL_VESTIGE_H

/* Given by the loader: CLASS_LOOPBACK, CLASS_LOCAL, CLASS_REMOTE, CLASSES, FAMILY_IPV4, FAMILY_IPV6, FAMILIES (classes.py,
 * addresses.py). All that user space reads besides them stands in this header, observe/messages.h and guard/actions.h: Python
 * takes numbers and layouts from their text (twctl/table/cheader.py), so they keep to plain declarations. */

enum reason {
	REASON_EXPIRED,		/* its timer fired (seen: fentry) */
	REASON_TRUNCATED,	/* its class's time was up, twctl destroyed the socket */
	REASON_DRAINED,		/* memory was low, twctl destroyed the socket */
	REASON_REUSED,		/* a new connection took the tuple */
	REASON_RESET,		/* a RST arrived, or the kernel sent one and gave up */
	REASON_DESTROYED,	/* another tool destroyed the socket, or its namespace went */
	REASON_EVICTED,		/* its ring or its line was full */
	REASON_UNKNOWN,		/* the kernel no longer has it and gave no reason */
	REASONS,
};

/* Flags of a record: four bits. */
#define VESTIGE_UNKNOWN 1	/* adopted: nobody saw its sequence numbers */
#define VESTIGE_TIMESTAMPS 2	/* ts_recent is valid (the kernel's ts_recent_stamp is not 0) */
#define VESTIGE_USEC 4		/* the TSval clock runs in microseconds, not milliseconds */
#define VESTIGE_SIGNED 8	/* TCP-MD5 or TCP-AO: cannot be answered for */

/* What a session is known by. IPv4 uses the first word of each address. */
struct tuple {
	u32 local[4], remote[4];
	u16 local_port, remote_port;
	u32 netns;
	u32 scope;
};
#define VESTIGE_SCALE_SHIFT 4	/* above the flags: the window's scale */

struct vestige4 {
	u32 local, remote;		/* addresses */
	u16 local_port, remote_port;
	u32 snd_nxt;
	u32 peer_fin, ts_recent;	/* of the peer: its FIN's sequence number, its last TSval; swapped as one */
	u32 ts_offset;			/* what is added to the clock for our TSval */
	u16 window;
	u8 netns;			/* index of the enrolled network namespace */
	u8 bits;			/* window scale << VESTIGE_SCALE_SHIFT | flags */
};

struct vestige6 {
	u32 local[4], remote[4];
	u16 local_port, remote_port;
	u32 snd_nxt;
	u32 peer_fin, ts_recent;
	u32 ts_offset;
	u16 window;
	u8 netns;
	u8 bits;
	u32 scope;			/* interface index: of a link-local address, or else of the route that the socket had */
	u32 marking;			/* traffic class << 20 | flow label, as in the header */
};

#define LINE_WORDS 8
struct line {
	u64 word[LINE_WORDS];
};

#define TICK_SHIFT 26
#define TICK_MASK 0xffffffULL
#define EXPIRY_SHIFT 40	/* of the tick in a word */
#define SWEPT_TICKS (1 << 22)	/* 3 days: without a sweep by then there is no daemon */
#define BELIEVED_TICKS 0xff8000	/* 13 days, less the horizon twice: without a sweep by then words are not believed */
#define LANE_SHIFT 37
#define LANE_MASK 7ULL
#define WORD_FIN_WAIT2 (1ULL << 36)	/* the peer's FIN has not come yet; without it: TIME_WAIT */
#define TAG_SHIFT 24
#define HORIZON_TICKS 16383
#define TAG_MASK 0xfffULL
#define SLOT_MASK 0xffffffULL

/* When the vestige in a slot entered, or its timer was last restarted: of one that lives, which is no longer than the horizon
 * ago, 15 bits of the tick tell it. And whose it is: the owner's place among the tallies + 1. */
#define STARTS 16
struct starts {
	u16 start[STARTS];	/* OUT_OF_ORDER | tick modulo 2^15 */
	u16 owner[STARTS];	/* lowest bit of the turn whose record is written | TRANSLATED, TRANSPARENT | owner */
};
#define START_MASK 0x7fff
#define OUT_OF_ORDER 0x8000	/* the start is not the time of its entry */
#define TURN_SHIFT 15
#define TRANSLATED 0x4000	/* the next slot holds the socket's tuple */
#define TRANSPARENT 0x2000	/* of a transparent proxy, which takes a new SYN whatever its listener's address is */
#define OWNER_MASK 0x1fff
#define OWNER_UNKNOWN 0		/* nobody saw the session enter */
#define OWNER_OTHER 0x1fff	/* there was no place for its owner */

/* A ring's slots lie at base .. base + capacity - 1 of the record array. Its laps are cut into up to 16 blocks, and the latest
 * expiry (full ticks) written into a block is kept for two laps: when the ring comes round to a slot whose block has
 * expired, there is nothing to evict and the old record's line need not be touched. */
#define BLOCKS 32
struct ring {
	u64 head;			/* slots handed out since the start */
	u32 base, capacity;
	u32 block_shift;		/* a block has 2^this slots: the fewest that make 16 blocks of a lap, or less */
	u32 unused[11];
	u64 expiry[BLOCKS];
};

/* Lanes: the buckets of the lifetime histogram, by their upper edge in ticks (1.5, 2.5, 9, 11, 25, 55, 65 s, more). Beside the
 * classes' times, so that what goes in time, which is a little later, is told from what goes sooner and from what is late: a timer
 * of 60 s of the kernel fires within 4 s. */
#define LANES 8
#define LANE_EDGES { 22, 37, 134, 163, 372, 819, 968, 0xffff }

/* The buckets of the histogram of reuse ages, by their upper edge in ticks (0.1, 0.5, 0.8, 1.5, 3, 10, 30 s, more): beside
 * the second after which the kernel's tcp_tw_reuse takes a tuple, not on it. */
#define REUSE_LANES 8
#define REUSE_EDGES { 1, 7, 11, 22, 44, 149, 446, 0xffff }

#define PERIOD_SHIFT 3		/* ticks to periods */
#define PERIODS 2048		/* of 537 ms: the horizon */
struct cells {
	u64 count[PERIODS];	/* period 32 | vestiges that expire in it 32 */
};

enum close { CLOSE_PASSIVE, CLOSE_RESET, CLOSE_ABORT, CLOSE_TIMEOUT, CLOSE_ORPHAN, CLOSES };

enum dropped {
	DROPPED_CONTENTION,	/* an entry lost its line's compare-and-swap twice, or its slot was still being written: no vestige */
	DROPPED_COLLISION,	/* four words of a line had the tag: an older vestige of the tuple may have stayed */
	DROPPED_HORIZON,	/* a life was cut to the horizon */
	DROPPED_UNREADABLE,	/* a field of the socket could not be read: no vestige */
	DROPPED_SIGNED,		/* a session with TCP-MD5 or TCP-AO that the guard cannot answer for */
	DROPPED_UNSWEPT,	/* a word that may have come round from 13 days ago, as nobody had swept: a vestige, perhaps */
	DROPPED_UNATTRIBUTED,	/* an entry or a connection without port lost its place among the tallies to others */
	DROPPED,
};

/* Who works: a program does not interrupt itself, but it does interrupt the others, so each has memory of its own. (Where one
 * did, the kernel would not run it a second time.) */
enum worker { WORKER_ENTRY, WORKER_AGAIN, WORKER_RESTART, WORKER_END, WORKER_RECONCILE, WORKER_GUARD, WORKERS };

/* One for each worker of each CPU, so that counting neither waits nor moves cache lines. Sums are taken by the readers. */
struct counters {
	u64 entered[CLASSES][FAMILIES];
	u64 translated[CLASSES][FAMILIES];	/* of them with two slots each: TRANSLATED */
	u64 adopted[CLASSES][FAMILIES];		/* taken over from the kernel's own list, nobody saw them enter */
	u64 ended[CLASSES][REASONS];		/* early: all but what expired by its tick */
	u64 lifetime[CLASSES][LANES];		/* of those that ended early */
	u64 lifetime_ticks[CLASSES];
	u64 planned[CLASSES][LANES];		/* every insertion, by the life it was given */
	u64 planned_ticks[CLASSES][LANES];
	u64 withdrawn[CLASSES][LANES];		/* planned, but ended early or restarted */
	u64 restarted[CLASSES];
	u64 reused[CLASSES][REUSE_LANES];	/* by their age, of those whose reuse itself was seen */
	u64 reused_ticks[CLASSES];
	u64 closed[CLOSES];			/* connections that ended without TIME_WAIT */
	u64 no_port;				/* connections that found no free local port (EADDRNOTAVAIL) */
	u64 events_lost;			/* the listener was too slow for them */
	u64 dropped[DROPPED];
};

/* How a search for a local port ended, and how long it took, by its upper edge in ns: 1, 2 and 5 of each decade from 1 us to 100 ms,
 * then more. Of those that are measured, on each CPU; where none is there is no such map. */
enum outcome { OUTCOME_FOUND, OUTCOME_NO_PORT, OUTCOMES };
#define SEARCH_LANES 17
#define SEARCH_EDGES { 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000, 2000000, 5000000, 10000000, 20000000, 50000000, 100000000, 0xffffffff }
struct connects {
	u64 search[OUTCOMES][SEARCH_LANES];
	u64 nanoseconds[OUTCOMES];
	u64 unmeasured;	/* were to be, but there was no place to remember them, or the SYN waits for data */
	u64 socket;	/* that is just looked at */
};

/* Who causes it; observe/attribution.h says how. 448 bytes for eight parties, 512 lines for each kind. */
enum party_kind { BY_OWNER, BY_REMOTE, BY_LOCAL_PORT, KINDS };

struct party {
	u32 address[4];	/* of an owner: its cgroup's number, lower half first */
	u16 port;
	u8 family, netns;
	union {
		u32 scope;
		u32 uid;
	};
};

#define TALLY_LINES 512
#define KEY_BUSY 1
#define KEY_LEAST 2	/* set in each key: 0 is a free place */

/* What is looked at together lies together: whoever is looked for costs the lines of keys and of entries, a new one that of its
 * place, too. */
struct place {
	u64 no_port;
	union {
		u64 error;	/* how many of the entries may be another party's */
		u64 last_entry;	/* of an owner: tick */
	};
	struct party party;
};

struct tallies {
	u64 key[LINE_WORDS];	/* hash of the party; its lowest bit means nothing */
	u64 entries[LINE_WORDS];
	struct place place[LINE_WORDS];
};

/* When connections toward the remote endpoint of a place found no free port, CLOCK_MONOTONIC ns: for the last time, and since when
 * that has gone on without a pause of FAILURES_APART. A place that another party had meanwhile begins anew after such a pause. */
#define FAILURES_APART 60000000000
struct failure {
	u64 since, last;
};

enum seen_by { SEEN_BY_TRACEPOINT, SEEN_BY_FENTRY };
enum mode { MODE_OBSERVE, MODE_TRUNCATE, MODE_VESTIGIAL };

/* What a listener is told of a session. Of ADOPTED nobody saw the entry; RESTARTED is for the listener's book of expiries alone. */
enum event_kind { EVENT_ENTERED, EVENT_ADOPTED, EVENT_RESTARTED, EVENT_ENDED };
#define LISTENING_TICKS 30	/* 2 s: so long a listener is heard after it last said that it listens */

struct event {
	u64 number;		/* of the session: turn, family and slot */
	u64 time;		/* CLOCK_MONOTONIC, ns */
	u64 expiry;		/* the tick at which it will expire; of an end: at which it came */
	u32 lifetime;		/* ticks: of the life that is planned, or has ended */
	u16 owner;		/* as in struct starts, with TRANSLATED */
	u8 kind, reason, class, family, fin_wait2, unused[5];
	struct tuple socket, wire;	/* as the application sees it; as packets have it */
};

/* What a process that opens the pins must know before it trusts them, and how long vestiges of guarded namespaces live. */
struct meta {
	u64 identity;	/* of the sources, sizes and kernel (layout.py) */
	u64 loaded;	/* CLOCK_MONOTONIC, ns */
	u64 seed;	/* of the tuples' hash */
	u64 guard;	/* identity of the guard that is loaded; 0: none */
	u64 epoch;	/* CLOCK_MONOTONIC when jiffies were 0, ns */
	u64 listened;	/* the tick until which somebody listens (events.h) */
	u32 probe;	/* enum seen_by */
	u32 mode;	/* enum mode: the daemon's, as it was last */
	u64 time_wait[CLASSES + 1], fin_wait2[CLASSES + 1]; /* ns; room for what two bits can say */
	u64 reuse_age[CLASSES + 1];	/* ns: younger than that, its tuple is not for a local SYN; 0: it is at any age */
	u64 swept;	/* tick at which the last complete sweep of all lines began */
	u64 next_line, sweeping; /* where there is no daemon: the next line to sweep, of both families, and when that sweep began */
};

/* The configuration of the daemon that runs, for the commands: UTF-8 JSON. No program reads it. */
#define SETTINGS_BYTES 65536
struct settings {
	u64 sequence;	/* odd while the daemon writes: then, and where it has changed meanwhile, what was read is void */
	u64 length;
	u8 json[SETTINGS_BYTES - 16];
};

/* What the probes know of an enrolled namespace: its index, and whether the guard does TIME_WAIT's duty there. */
#define NETNS_INDEX 0xff
#define NETNS_GUARDED 0x100
#define NETNS_TPROXY 0x200	/* a rule there hands packets to a transparent proxy */
#define NETNS_WITNESSED 0x400	/* each FIN that the guard sees leave there has a note (DEVICE_WITNESSED) */

/* The class ID (16 bits) that the guard's filter was attached with says what a packet does not: the namespace's index + 1, and
 * below it what kind of device it is. So one program serves all namespaces, also where bpf_get_netns_cookie is missing. */
#define DEVICE_ETHERNET 1	/* it has Ethernet headers */
#define DEVICE_LOOPS 2		/* what is sent out of it comes back in by it: lo, or a VRF's own */
#define DEVICE_IN_VRF 4
#define DEVICE_WITNESSED 8	/* somebody else's program, in its namespace, may end what goes out before the guard sees it */
#define DEVICE_BITS 4

/* Of a NETNS_WITNESSED namespace: sessions whose FIN the guard has seen leave, and others, whose FIN went past it; but unnoted SYNs and
 * FINs (of a socket that has no memory left for a note) it has seen. */
struct witness {
	u64 noted, missed, unnoted;
};

struct enrolment {
	u64 cookie;	/* SO_NETNS_COOKIE; 0: this index is free */
	u64 left;	/* when it became free, CLOCK_MONOTONIC ns: vestiges have it a while longer; 0: it never was in use */
	char name[48];	/* below /run/netns, or a path; empty: the namespace twctl was started in */
};

/* What the prefixes that give a peer's class are found by. */
struct prefix4 {
	u32 length; /* bits, of netns and address together */
	u32 netns;
	u32 address;
};

struct prefix6 {
	u32 length;
	u32 netns;
	u32 address[4];
};

#endif
