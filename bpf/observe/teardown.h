/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * PROBE_FENTRY: entry, restart and end from the kernel's own functions.
 *
 *   tcp_time_wait(sk, state, timeo)            entry, with the substate and the time
 *   __inet_twsk_schedule(tw, timeo, rearm)     with rearm: the timer starts anew, also when the FIN ends FIN_WAIT2
 *   inet_twsk_kill(tw)                         end, of whatever cause; which is known from who came before it on this CPU:
 *   tw_timer_handler(timer)                      expired
 *   tcp_timewait_state_process(tw, skb, th)      a RST inside of it; what it returns says reopened, or RST sent
 *   tcp_twsk_unique(sk, tw, twp)                 1: connect() takes the tuple
 *                                                none of them: destroyed by another tool or with its namespace
 *
 * Cause and end are seen with bottom halves disabled, so that both are on one CPU with nothing of ours in between.
 */
#ifndef TWCTL_OBSERVE_TEARDOWN_H
#define TWCTL_OBSERVE_TEARDOWN_H

#include "kernel.h"
#include "life.h"
#include "lookup.h"
#include "observe/close.h"
#include "observe/entry.h"
#include "observe/socket.h"

struct cause {
	u64 tw;
	u32 reason;
};

BPF_PERCPU_ARRAY(causes, struct cause, 1);

/* enum tcp_tw_status (net/tcp.h) */
#define TCP_TW_RST 1
#define TCP_TW_SYN 3

ALWAYS_INLINE void note_cause(u64 tw, u32 reason)
{
	u32 zero = 0;
	struct cause *cause = causes.lookup(&zero);

	if (!cause)
		return;
	cause->tw = tw;
	cause->reason = reason;
}

ALWAYS_INLINE u32 take_cause(u64 tw)
{
	u32 zero = 0;
	struct cause *cause = causes.lookup(&zero);

	if (!cause || cause->tw != tw)
		return REASON_DESTROYED;
	cause->tw = 0;
	return cause->reason;
}

/* Looks for a mini-socket's vestige; false too if its namespace is not enrolled. */
ALWAYS_INLINE bool find_mini(struct work *w, const void *tw)
{
	struct common common;
	u32 *netns;
	u16 port = 0;

	if (read_common(&common, tw) || READ(port, tw, inet_timewait_sock_tw_sport))
		return false;
	netns = enrolled(&common);
	if (!netns)
		return false;
	read_tuple_from(w, &common, port, *netns);
	return vestige_find(w);
}

ALWAYS_INLINE void end_mini(const void *tw, u32 reason)
{
	struct work *w = work_of(WORKER_END);
	struct line *line;

	if (!w || !find_mini(w, tw))
		return;
	line = line_at(w, w->home);
	if (line)
		vestige_end(w, &line->word[in_line(w, w->spare)], w->word, reason);
}

/* The mini-socket's own state is newer than the record's: the FIN ends FIN_WAIT2, segments move ts_recent. */
ALWAYS_INLINE void restart_mini(const void *tw, u64 jiffies)
{
	struct work *w = work_of(WORKER_RESTART);
	u8 substate = 0;

	if (!w || !find_mini(w, tw) || !vestige_read(w))
		return;
	READ(substate, tw, inet_timewait_sock_tw_substate);
	READ(w->session.ts_recent, tw, tcp_timewait_sock_tw_ts_recent);
	set_substate(&w->session, substate == TCP_FIN_WAIT2);
	if (vestige_restart(w, 0, timer_nanoseconds(jiffies, jiffies) + LATE_NANOSECONDS))
		renew_timestamp(w, slot_of(w->word));
}

ALWAYS_INLINE void enter_by_call(const void *sk, int state, int timeo)
{
	u64 jiffies = state == TCP_TIME_WAIT ? TIME_WAIT_JIFFIES : at_least_rto(sk, timeo), *mine;
	u32 zero = 0, worker = WORKER_ENTRY, *netns;
	struct view *v = views.lookup(&worker);
	struct common common;

	if (!v || read_common(&common, sk))
		return;
	netns = enrolled(&common);
	if (!netns || view_sock(v, sk))
		return;
	mine = taken.lookup(&zero);
	if (mine)
		*mine = (u64)sk;
	enter_table(WORKER_ENTRY, sk, v, &common, *netns, state, jiffies);
}

#endif
