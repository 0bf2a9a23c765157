/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a state event tells: that a connection is over, and into what it has passed.
 */
#ifndef TWCTL_OBSERVE_CLOSE_H
#define TWCTL_OBSERVE_CLOSE_H

#include "observe/entry.h"
#ifdef MEASURE_SEARCH
#include "observe/search.h"
#endif
#include "observe/socket.h"
#include "table.h"

/* How a connection that did not enter TIME_WAIT ended. A RST sets ECONNRESET (EPIPE in CLOSE_WAIT) before the event, the
 * timers set ETIMEDOUT or the last ICMP error, an abort by the application sets nothing yet. */
ALWAYS_INLINE u32 ending(const void *sk, int from)
{
	int error = 0;

	READ(error, sk, sock_sk_err);
	if (error == 104 || error == 32)
		return CLOSE_RESET;
	if (error == 110 || error == 113 || error == 101 || error == 111)
		return CLOSE_TIMEOUT;
	return from == TCP_LAST_ACK ? CLOSE_PASSIVE : CLOSE_ABORT;
}

ALWAYS_INLINE bool was_connected(int state)
{
	return state == TCP_ESTABLISHED || state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSE_WAIT ||
	       state == TCP_LAST_ACK || state == TCP_CLOSING;
}

/* Into what a closing socket passes, from its last state alone. SOCK_DONE is set by nothing but the peer's FIN, and
 * tcp_time_wait() follows it at once in FIN_WAIT2; in CLOSING the last acknowledgement alone makes snd_una equal to
 * write_seq. An orphan in FIN_WAIT2 without a FIN, an error or a negative linger2 becomes a FIN_WAIT2 mini-socket: of a
 * time above 60 s when its timer fires, of another at once. Then one abort looks like it: data that came together with
 * the acknowledgement of our FIN. */
ALWAYS_INLINE int passes_into(const void *sk, const struct common *common, int from)
{
	u64 flags = COMMON(common, u64, skc_flags);
	u32 una = 0, written = 0;
	int linger2 = 0, error = 0;
	u64 time;

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
	READ(error, sk, sock_sk_err);
	if (!(flags & SOCK_DEAD) || linger2 < 0 || error)
		return TCP_CLOSE;
	time = fin_time(sk, common);
	return orphan_timer_fired(sk, time) == (time > TIME_WAIT_JIFFIES) ? TCP_FIN_WAIT2 : TCP_CLOSE;
}

/* connect() gives up before it has a port in one case only: all are taken (inet_hash_connect: EADDRNOTAVAIL). Where the
 * application has bound a port, the same error cannot be told from others. */
ALWAYS_INLINE void found_no_port(u32 worker, const void *sk)
{
	struct view *v = views.lookup(&worker);
	struct work *w = work_of(worker);
	struct common common;
	u32 *netns;

#ifdef MEASURE_SEARCH
	u64 since = take_search((u64)sk);
#endif
	if (!v || !w || read_common(&common, sk))
		return;
	netns = enrolled(&common);
	if (!netns || view_sock(v, sk) || OF_SOCK(v, u16, inet_sock_inet_sport) || OF_SOCK(v, u16, sock_sk_protocol) != IPPROTO_TCP)
		return;
	read_tuple_from(w, &common, 0, *netns);
	COUNT(worker, no_port);
#ifdef MEASURE_SEARCH
	end_search((u64)sk, since, OUTCOME_NO_PORT);
#endif
	prepare_attribution(w);
	attribute(w, v, false);
}

#ifdef PROBE_FENTRY
/* The socket that tcp_time_wait() took on this CPU: its state event follows, bottom halves disabled all the while. */
BPF_PERCPU_ARRAY(taken, u64, 1);
#endif

ALWAYS_INLINE void closed(u32 worker, const void *sk, int from)
{
	struct view *v = views.lookup(&worker);
	struct common common;
	u32 *netns;
	int into;

	if (!v || !was_connected(from) || read_common(&common, sk))
		return;
	netns = enrolled(&common);
	if (!netns || view_sock(v, sk) || OF_SOCK(v, u16, sock_sk_protocol) != IPPROTO_TCP)
		return;
#ifdef PROBE_FENTRY
	u32 zero = 0;
	u64 *mine = taken.lookup(&zero);

	into = mine && *mine == (u64)sk ? TCP_TIME_WAIT : TCP_CLOSE;
	if (into == TCP_TIME_WAIT)
		*mine = 0;
#else
	into = passes_into(sk, &common, from);
	if (into != TCP_CLOSE)
		enter_table(worker, sk, v, &common, *netns, into,
		     into == TCP_TIME_WAIT ? TIME_WAIT_JIFFIES : fin_wait2_jiffies(sk, &common));
#endif
	if (into == TCP_CLOSE)
		COUNT(worker, closed[ending(sk, from)]);
}

/* A connection, or an attempt at one, is over. */
ALWAYS_INLINE void ended(u32 worker, const void *sk, u64 from)
{
	if (from == TCP_SYN_SENT)
		found_no_port(worker, sk);
	else
		closed(worker, sk, from);
}

#endif
