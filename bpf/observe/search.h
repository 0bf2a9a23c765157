/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a connect() costs before its SYN: the kernel looks for a free local port, longer and longer as a range fills.
 *
 *   begins  state event to SYN_SENT: tcp_v4_connect() and tcp_v6_connect() set it before inet_hash_connect()
 *   ends    BPF_SOCK_OPS_TCP_CONNECT_CB, the first thing that tcp_connect() does; or, where there is no port, the state event
 *           to CLOSE
 *
 * The kernel calls a program at a cgroup four times for a connect(), and four times for what accepts it, whatever it wants to know. So it
 * is attached for a second now and then (modes/searching.py), which also says until when searches are to be remembered: after
 * that, and where whoever said it is gone, a connect() costs two nanoseconds.
 *
 * The task may be moved to another CPU meanwhile, so what is remembered is found by the socket: one place for each hash of its
 * address. A place that another search has is not waited for: that search is not measured, and counted as such.
 */
#ifndef TWCTL_OBSERVE_SEARCH_H
#define TWCTL_OBSERVE_SEARCH_H

#include "kernel.h"
#include "observe/socket.h"
#include "table.h"

#define SEARCHES 4096			/* at once, on all CPUs; a search that takes 2 ms is a CPU's only one */
#define SEARCH_OVER 1000000000		/* ns: no search takes so long */
#define DEFERRED 10000			/* ns: a SYN that waits for data waits longer, or it makes no difference */
#define SOCK_OPS_CONNECT 3		/* BPF_SOCK_OPS_TCP_CONNECT_CB (linux/bpf.h) */

struct search {
	u64 sk;		/* 0: free */
	u64 since;	/* CLOCK_MONOTONIC, ns */
};

BPF_ARRAY(searches, struct search, SEARCHES);
BPF_ARRAY(searching, u64, 1);	/* until this tick */
BPF_F_TABLE("array", u32, struct connects, connects, CPUS, BPF_F_MMAPABLE);

ALWAYS_INLINE struct search *search_of(u64 sk)
{
	u32 i = mix(0, sk) % SEARCHES;

	return searches.lookup(&i);
}

ALWAYS_INLINE struct connects *connects_here(void)
{
	u32 cpu = bpf_get_smp_processor_id();

	return connects.lookup(&cpu);
}

/* In process context, where another task may come between load and store. */
ALWAYS_INLINE void count_unmeasured(struct connects *c)
{
	__sync_fetch_and_add(&c->unmeasured, 1);
}

ALWAYS_INLINE void count_search(struct connects *c, u32 outcome, u64 nanoseconds)
{
	const u32 edges[SEARCH_LANES] = SEARCH_EDGES;
	u32 lane = 0;

#pragma unroll
	for (int i = 0; i < SEARCH_LANES - 1; i++) {
		if (nanoseconds <= edges[i])
			break;
		lane++;
	}
	__sync_fetch_and_add(&c->search[outcome % OUTCOMES][lane % SEARCH_LANES], 1);
	__sync_fetch_and_add(&c->nanoseconds[outcome % OUTCOMES], nanoseconds);
}

ALWAYS_INLINE bool is_searching(void)
{
	u32 zero = 0;
	u64 *until = searching.lookup(&zero);

	return until && *until && tick_now() < *until;
}

/* Of whichever namespace: that is looked at in the end. */
ALWAYS_INLINE void begin_search(u64 sk)
{
	struct connects *c = connects_here();
	struct search *s = search_of(sk);
	u64 old, now;

	if (!c || !s || !is_searching())
		return;
	old = s->sk;
	now = bpf_ktime_get_ns();
	/* what began long ago has ended without a word: MPTCP has such events, too, and no tcp_connect() of its own */
	if (old && old != sk)
		count_unmeasured(c);
	if (old && old != sk && now - s->since < SEARCH_OVER)
		return;
	if (__sync_val_compare_and_swap(&s->sk, old, sk) == old)
		s->since = now;
	else
		count_unmeasured(c);
}

/* When the socket's search began; 0: it is over, or not measured. */
ALWAYS_INLINE u64 take_search(u64 sk)
{
	struct search *s = search_of(sk);
	u64 since;

	if (!s || s->sk != sk)
		return 0;
	since = s->since;
	s->sk = 0;
	return since;
}

/* TCP_FASTOPEN_CONNECT: tcp_connect() waits for the application's first bytes. */
ALWAYS_INLINE bool is_deferred(u64 sk)
{
	u8 deferred = 0;

	READ(deferred, sk, tcp_sock_fastopen_connect);
	return bitfield(deferred, BIT_tcp_sock_fastopen_connect, BITS_tcp_sock_fastopen_connect);
}

ALWAYS_INLINE void end_search(u64 sk, u64 since, u32 outcome)
{
	struct connects *c = connects_here();
	u64 took = bpf_ktime_get_ns() - since;

	if (!c || !since)
		return;
	if (took > DEFERRED && is_deferred(sk))
		count_unmeasured(c);
	else
		count_search(c, outcome, took);
}

/* A pointer to a socket becomes its address, with which the verifier allows no arithmetic, by way of memory. Another task may come
 * in between on this CPU: then it is not this socket's, and no search is found by it. */
ALWAYS_INLINE u64 address_of(struct bpf_sock *socket)
{
	struct connects *c = connects_here();

	if (!c)
		return 0;
	*(struct bpf_sock *volatile *)&c->socket = socket;
	return *(volatile u64 *)&c->socket;
}

/* The SYN of a socket goes out. */
ALWAYS_INLINE void found_port(struct bpf_sock_ops *ops, struct bpf_sock *socket)
{
	u64 sk = address_of(socket), since = take_search(sk), cookie;

	if (!since)
		return;
	cookie = bpf_get_netns_cookie(ops);
	if (namespaces.lookup(&cookie))
		end_search(sk, since, OUTCOME_FOUND);
}

#endif
