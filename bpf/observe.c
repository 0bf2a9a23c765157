// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The probes: what the kernel tells of a session's birth, restart and end, and of connections that ended otherwise.
 *
 * Two probes give one result. PROBE_FENTRY hooks the kernel's own functions and so sees every birth with its arguments
 * and every end with its reason. Without it the state event alone tells births, and reconcile.h asks the kernel for the
 * rest. Handlers are adapters; born() and over() do the work.
 */
#include "vestige.h"
#include "table.h"
#include "kernel.h"
#include "socket.h"
#include "reconcile.h"
#include "truncate.h"

/* How long a vestige lives (ns): as long as the kernel's own mini-socket, or, where there will be none, its class's time. */
ALWAYS_INLINE u64 life_of(u32 netns, u32 class, int state, u64 jiffies)
{
	u64 kernel = timer_nanoseconds(jiffies, jiffies) + LATE_NANOSECONDS, least;
	u32 zero = 0;
	struct meta *m = meta.lookup(&zero);

	if (!(netns & NETNS_GUARDED) || !m || class >= CLASSES)
		return kernel;
	if (state == TCP_TIME_WAIT)
		return m->time_wait[class];
	least = jiffies * JIFFY_NANOSECONDS;
	return least < m->fin_wait2[class] ? least : m->fin_wait2[class];
}

/* What only the guard needs of a session that was just inserted. */
ALWAYS_INLINE void remember(struct work *w)
{
	u64 key = w->own_hash;
	u32 marking = w->session.marking;

	if (w->session.bits & VESTIGE_SILENT)
		COUNT(w->worker, dropped[DROPPED_SIGNED]);
	if (is_ipv4(w) && marking)
		tos.update(&key, &marking);
}

/* A session enters TIME_WAIT or orphaned FIN_WAIT2, for so many jiffies. */
ALWAYS_INLINE void born(u32 worker, const void *sk, const struct common *common, u32 netns, int state, u64 jiffies)
{
	struct work *w = work_of(worker);
	u16 port = 0;
	u32 class;

	if (!w)
		return;
	if (READ(port, sk, inet_sock_inet_sport) || !read_state(&w->session, sk)) {
		COUNT(worker, dropped[DROPPED_UNREADABLE]);
		return;
	}
	read_tuple_from(w, common, port, netns);
	w->session.bits |= state == TCP_FIN_WAIT2 ? VESTIGE_FIN_WAIT2 : 0;
	class = classify(w);
	if (class < CLASSES)
		COUNT(worker, entered[class][w->family % FAMILIES]);
	w->session.marking = netns & NETNS_GUARDED ? read_marking(w, sk) : 0;
	vestige_insert(w, class, life_of(netns, class, state, jiffies));
	if (netns & NETNS_GUARDED)
		remember(w);
}

/* How a connection that did not enter TIME_WAIT ended. A RST sets ECONNRESET (EPIPE in CLOSE_WAIT) before the event, the
 * timers set ETIMEDOUT or the last ICMP error, an abort by the application sets nothing yet. */
ALWAYS_INLINE u32 ending(int from, int error)
{
	if (error == 104 || error == 32)
		return CLOSE_RESET;
	if (error == 110 || error == 113 || error == 101 || error == 111)
		return CLOSE_TIMEOUT;
	return from == TCP_LAST_ACK ? CLOSE_PASSIVE : CLOSE_ABORT;
}

ALWAYS_INLINE bool was_connected(int state)
{
	return state == TCP_ESTABLISHED || state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 ||
	       state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK || state == TCP_CLOSING;
}

/* Into what a closing socket passes, from its last state alone. SOCK_DONE is set by nothing but the peer's FIN, and
 * tcp_time_wait() follows it at once in FIN_WAIT2; in CLOSING the last acknowledgement alone makes snd_una equal to
 * write_seq. An orphan in FIN_WAIT2 without a FIN, an error or a negative linger2 becomes a FIN_WAIT2 mini-socket;
 * the one abort that looks like it is data that came together with the acknowledgement of our FIN. */
ALWAYS_INLINE int passes_into(const void *sk, u64 flags, int from, int error)
{
	u32 una = 0, written = 0;
	int linger2 = 0;

	if (from == TCP_CLOSING) {
		READ(una, sk, tcp_sock_snd_una);
		READ(written, sk, tcp_sock_write_seq);
		return una == written ? TCP_TIME_WAIT : TCP_CLOSE;
	}
	if (from != TCP_FIN_WAIT2)
		return TCP_CLOSE;
	if (flags & SOCK_DONE)
		return TCP_TIME_WAIT;
	READ(linger2, sk, tcp_sock_linger2);
	return (flags & SOCK_DEAD) && linger2 >= 0 && !error ? TCP_FIN_WAIT2 : TCP_CLOSE;
}

/* The state event of a close comes when the socket is gone already, and for a moment there is neither socket nor vestige. So
 * what may close next is noted before, and the guard lets nothing through to a kernel that would answer with a RST. */
ALWAYS_INLINE u64 note_key(struct work *w, const struct common *common, u16 port, u32 netns, s64 change)
{
	u64 key, *count;
	u32 part;

	read_tuple_from(w, common, port, netns);
	key = hash_of(w, &w->session.tuple);
	part = key % PENDING;
	count = pending.lookup(&part);
	if (count)
		__sync_fetch_and_add(count, change);
	return key;
}

ALWAYS_INLINE void will_close(u32 worker, const void *sk)
{
	struct work *w = work_of(worker);
	struct common common;
	u32 *netns, one = 1;
	u16 port = 0;
	u64 key;

	if (!w || read_common(&common, sk) || READ(port, sk, inet_sock_inet_sport))
		return;
	netns = enrolled(&common);
	if (!netns || !(*netns & NETNS_GUARDED))
		return;
	key = note_key(w, &common, port, *netns, 1);
	closing.update(&key, &one);
}

/* It has closed; if it has a vestige, that is there now. */
ALWAYS_INLINE void has_closed(u32 worker, const void *sk, const struct common *common, u32 netns)
{
	struct work *w = work_of(worker);
	u16 port = 0;
	u64 key;

	if (!w || !(netns & NETNS_GUARDED) || READ(port, sk, inet_sock_inet_sport))
		return;
	key = note_key(w, common, port, netns, -1);
	closing.delete(&key);
}

#ifdef PROBE_FENTRY
/* The socket that tcp_time_wait() took on this CPU: its state event follows, bottom halves disabled all the while. */
BPF_PERCPU_ARRAY(taken, u64, 1);
#endif

ALWAYS_INLINE void closed(u32 worker, const void *sk, int from)
{
	struct common common;
	u16 protocol = 0;
	int error = 0, into;
	u32 *netns;

	if (!was_connected(from) || read_common(&common, sk))
		return;
	netns = enrolled(&common);
	if (!netns || READ(protocol, sk, sock_sk_protocol) || protocol != IPPROTO_TCP || READ(error, sk, sock_sk_err))
		return;
#ifdef PROBE_FENTRY
	u32 zero = 0;
	u64 *mine = taken.lookup(&zero);

	into = mine && *mine == (u64)sk ? TCP_TIME_WAIT : TCP_CLOSE;
	if (into == TCP_TIME_WAIT)
		*mine = 0;
#else
	into = passes_into(sk, COMMON(&common, u64, skc_flags), from, error);
	if (into != TCP_CLOSE)
		born(worker, sk, &common, *netns, into,
		     into == TCP_TIME_WAIT ? TIME_WAIT_JIFFIES : fin_wait2_jiffies(sk, &common));
	if (from == TCP_FIN_WAIT2 || from == TCP_CLOSING)
		has_closed(worker, sk, &common, *netns);
#endif
	if (into == TCP_CLOSE)
		COUNT(worker, closed[ending(from, error)]);
}

/* The kernel runs no program inside of itself, and a close in process context can be interrupted by another one. So the same
 * is attached twice: whichever runs first for an event leaves a mark and does the work, the other takes the mark away. If one is
 * interrupted, the other works for the event that came between; its mark stays, until all places are taken and it is the oldest. */
#define MARKS 16
struct handled {
	u64 event[MARKS], next;
};

BPF_PERCPU_ARRAY(handled, struct handled, 1);

ALWAYS_INLINE bool is_first(u64 event)
{
	u32 zero = 0;
	struct handled *h = handled.lookup(&zero);
	u64 at;

	if (!h)
		return false;
	at = h->next;
#pragma unroll
	for (int i = 0; i < MARKS; i++) {
		if (h->event[i] == event) {
			h->event[i] = 0;
			return false;
		}
		at = h->event[i] ? at : i;
	}
	h->next = at + 1;
	h->event[at % MARKS] = event;
	return true;
}

ALWAYS_INLINE void state_changed(u32 worker, struct bpf_raw_tracepoint_args *ctx)
{
	const void *sk = (void *)ctx->args[0];
	u64 from = ctx->args[1], to = ctx->args[2];

	if (to != TCP_CLOSE && to != TCP_FIN_WAIT2 && to != TCP_CLOSING)
		return;
#ifdef PROBE_FENTRY
	if (to == TCP_CLOSE)
		closed(worker, sk, from);
#else
	if (!is_first((u64)sk << 8 | from << 4 | to))
		return;
	if (to == TCP_CLOSE)
		closed(worker, sk, from);
	else
		will_close(worker, sk);
#endif
}

RAW_TRACEPOINT_PROBE(inet_sock_set_state)
{
	state_changed(WORKER_BIRTH, ctx);
	return 0;
}

#ifndef PROBE_FENTRY
int again__inet_sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	state_changed(WORKER_AGAIN, ctx);
	return 0;
}
#endif

#ifdef PROBE_FENTRY
#include "teardown.h"
#endif
