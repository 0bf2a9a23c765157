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
		COUNT(WORKER_BIRTH, dropped[DROPPED_SIGNED]);
	if (is_ipv4(w) && marking)
		tos.update(&key, &marking);
	closing.delete(&key);
}

/* A session enters TIME_WAIT or orphaned FIN_WAIT2, for so many jiffies. */
ALWAYS_INLINE void born(const void *sk, const struct common *common, u32 netns, int state, u64 jiffies)
{
	struct work *w = work_of(WORKER_BIRTH);
	u16 port = 0;
	u32 class;

	if (!w)
		return;
	if (READ(port, sk, inet_sock_inet_sport) || !read_state(&w->session, sk)) {
		COUNT(WORKER_BIRTH, dropped[DROPPED_UNREADABLE]);
		return;
	}
	read_tuple_from(w, common, port, netns);
	w->session.bits |= state == TCP_FIN_WAIT2 ? VESTIGE_FIN_WAIT2 : 0;
	class = classify(w);
	if (class < CLASSES)
		COUNT(WORKER_BIRTH, entered[class][w->family % FAMILIES]);
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

#ifdef PROBE_FENTRY
/* The socket that tcp_time_wait() took on this CPU: its state event follows, bottom halves disabled all the while. */
BPF_PERCPU_ARRAY(taken, u64, 1);
#endif

ALWAYS_INLINE void closed(const void *sk, int from)
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
		born(sk, &common, *netns, into,
		     into == TCP_TIME_WAIT ? TIME_WAIT_JIFFIES : fin_wait2_jiffies(sk, &common));
#endif
	if (into == TCP_CLOSE)
		COUNT(WORKER_BIRTH, closed[ending(from, error)]);
}

#ifndef PROBE_FENTRY
/* The state event of a close comes when the socket is gone already, and for a moment there is neither socket nor vestige. So
 * what may close next is noted before, and the guard lets no FIN through to a kernel that would answer with a RST. */
ALWAYS_INLINE void will_close(const void *sk)
{
	struct work *w = work_of(WORKER_BIRTH);
	struct common common;
	u32 *netns, one = 1;
	u16 port = 0;
	u64 key;

	if (!w || read_common(&common, sk) || READ(port, sk, inet_sock_inet_sport))
		return;
	netns = enrolled(&common);
	if (!netns || !(*netns & NETNS_GUARDED))
		return;
	read_tuple_from(w, &common, port, *netns);
	key = hash_of(w, &w->session.tuple);
	closing.update(&key, &one);
}
#endif

RAW_TRACEPOINT_PROBE(inet_sock_set_state)
{
	if (ctx->args[2] == TCP_CLOSE)
		closed((void *)ctx->args[0], ctx->args[1]);
#ifndef PROBE_FENTRY
	else if (ctx->args[2] == TCP_FIN_WAIT2 || ctx->args[2] == TCP_CLOSING)
		will_close((void *)ctx->args[0]);
#endif
	return 0;
}

#ifdef PROBE_FENTRY
#include "teardown.h"
#endif
