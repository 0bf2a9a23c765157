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
#include "blame.h"
#include "reconcile.h"
#include "truncate.h"

BPF_F_TABLE("array", u32, struct settings, settings, 1, BPF_F_MMAPABLE);

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
	bool inserted;
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
	w->owner = OWNER_UNKNOWN;
	prepare_attribution(w);
	inserted = vestige_insert(w, class, life_of(netns, class, state, jiffies));
	if (netns & NETNS_GUARDED)
		remember(w);
	/* last: a segment may be waiting for the vestige */
	attribute(w, sk, true);
	if (inserted)
		vestige_assign(w);
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

ALWAYS_INLINE bool closed_first(int state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING;
}

ALWAYS_INLINE bool was_connected(int state)
{
	return closed_first(state) || state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK;
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

/* Between socket and vestige there is a moment with neither, and what the guard lets through to a socket may find none when
 * it gets there. So who closes first is noted as soon as that is known; guard.c (escort) says what for. */
ALWAYS_INLINE void will_close(u32 worker, const void *sk)
{
	struct work *w = work_of(worker);
	struct common common;
	u64 key, *count, here = NOTE_SOCKET;
	u32 *netns;
	u16 port = 0;

	if (!w || read_common(&common, sk) || READ(port, sk, inet_sock_inet_sport))
		return;
	netns = enrolled(&common);
	if (!netns || !(*netns & NETNS_GUARDED))
		return;
	read_tuple_from(w, &common, port, *netns);
	key = hash_of(w, &w->session.tuple);
	closing.update(&key, &here);
	count = pending_at(key);
	if (count)
		__sync_fetch_and_add(count, 1);
}

/* It has closed; if it has a vestige, that is there now. A note that was driven out stays counted: the guard then looks once
 * too often, and never once too seldom. */
ALWAYS_INLINE void has_closed(u32 worker, const void *sk, const struct common *common, u32 netns)
{
	struct work *w = work_of(worker);
	u16 port = 0;

	if (!w || !(netns & NETNS_GUARDED) || READ(port, sk, inet_sock_inet_sport))
		return;
	read_tuple_from(w, common, port, netns);
	forget_note(hash_of(w, &w->session.tuple));
}

/* connect() gives up before it has a port in one case only: all are taken (inet_hash_connect: EADDRNOTAVAIL). Where the
 * application has bound a port, the same error cannot be told from others. */
ALWAYS_INLINE void found_no_port(u32 worker, const void *sk)
{
	struct work *w = work_of(worker);
	struct common common;
	u16 protocol = 0, port = 0;
	u32 *netns;

	if (!w || read_common(&common, sk) || READ(port, sk, inet_sock_inet_sport) || port)
		return;
	netns = enrolled(&common);
	if (!netns || READ(protocol, sk, sock_sk_protocol) || protocol != IPPROTO_TCP)
		return;
	read_tuple_from(w, &common, port, *netns);
	COUNT(worker, no_port);
	prepare_attribution(w);
	attribute(w, sk, false);
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
#endif
	if (closed_first(from))
		has_closed(worker, sk, &common, *netns);
	if (into == TCP_CLOSE)
		COUNT(worker, closed[ending(from, error)]);
}

#ifndef PROBE_FENTRY
/* The kernel runs no program inside of itself, and an event in process context can be interrupted by others. So the same program
 * is loaded and attached twice. An event within an event meets one of the two only, as the other is at work, and that one
 * handles it, as another worker. Any other event meets both, one after the other: the first leaves a mark and handles it, the
 * second takes the mark away. An interruption just before or after the work leaves marks that nobody takes away; they do no
 * harm, for a mark holds the socket's sequence number: the same never comes again. */
#define MARKS 1024
struct handling {
	u64 depth; /* of events within events on this CPU */
	u64 mark[MARKS];
};

BPF_PERCPU_ARRAY(handlings, struct handling, 1);

ALWAYS_INLINE bool is_first(struct handling *h, const void *sk, u64 from, u64 to)
{
	u32 sequence = 0;
	u64 mark, at;

	READ(sequence, sk, tcp_sock_write_seq);
	mark = mix((u64)sk, (u64)sequence << 8 | from << 4 | to);
	at = mark % MARKS;
	if (h->mark[at] == mark) {
		h->mark[at] = 0;
		return false;
	}
	h->mark[at] = mark;
	return true;
}
#endif

ALWAYS_INLINE void state_changed(u32 worker, const void *sk, u64 from, u64 to)
{
	if (to != TCP_CLOSE)
		will_close(worker, sk);
	else if (from == TCP_SYN_SENT)
		found_no_port(worker, sk);
	else
		closed(worker, sk, from);
}

RAW_TRACEPOINT_PROBE(inet_sock_set_state)
{
	const void *sk = (void *)ctx->args[0];
	u64 from = ctx->args[1], to = ctx->args[2];

	if (to != TCP_CLOSE && to != TCP_FIN_WAIT1)
		return 0;
#ifdef PROBE_FENTRY
	state_changed(WORKER_BIRTH, sk, from, to);
#else
	u32 zero = 0;
	struct handling *h = handlings.lookup(&zero);
	u64 outer;

	if (!h)
		return 0;
	outer = h->depth++;
	if (outer || is_first(h, sk, from, to))
		state_changed(outer ? WORKER_AGAIN : WORKER_BIRTH, sk, from, to);
	h->depth--;
#endif
	return 0;
}

#ifdef PROBE_FENTRY
#include "teardown.h"
#endif
