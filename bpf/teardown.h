/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * PROBE_FENTRY: birth, restart and end from the kernel's own functions.
 *
 *   tcp_time_wait(sk, state, timeo)            birth, with the substate and the time
 *   __inet_twsk_schedule(tw, timeo, rearm)     with rearm: the timer starts anew, also when the FIN ends FIN_WAIT2
 *   inet_twsk_kill(tw)                         end, of whatever cause; which is known from who came before it on this CPU:
 *   tw_timer_handler(timer)                      expired
 *   tcp_timewait_state_process(tw, skb, th)      a RST inside of it; what it returns says reopened, or RST sent
 *   tcp_twsk_unique(sk, tw, twp)                 1: connect() takes the tuple
 *                                                none of them: destroyed by another tool or with its namespace
 *
 * Verdict and end run with bottom halves disabled, so that both are on one CPU with nothing of ours in between.
 */

struct verdict {
	u64 tw;
	u32 reason;
};

BPF_PERCPU_ARRAY(verdicts, struct verdict, 1);

/* enum tcp_tw_status (net/tcp.h) */
#define TCP_TW_RST 1
#define TCP_TW_SYN 3

ALWAYS_INLINE void give_verdict(u64 tw, u32 reason)
{
	u32 zero = 0;
	struct verdict *verdict = verdicts.lookup(&zero);

	if (!verdict)
		return;
	verdict->tw = tw;
	verdict->reason = reason;
}

ALWAYS_INLINE u32 take_verdict(u64 tw)
{
	u32 zero = 0;
	struct verdict *verdict = verdicts.lookup(&zero);

	if (!verdict || verdict->tw != tw)
		return REASON_DESTROYED;
	verdict->tw = 0;
	return verdict->reason;
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

ALWAYS_INLINE void over(const void *tw, u32 reason)
{
	struct work *w = work_of(WORKER_END);
	struct line *line;

	if (!w || !find_mini(w, tw))
		return;
	line = line_at(w, w->home);
	if (line)
		vestige_end(w, &line->word[in_line(w, w->spare)], w->word, reason);
}

/* The mini-socket's own state is newer than the record's: the FIN moves rcv_nxt, segments move ts_recent. */
ALWAYS_INLINE void restarted(const void *tw, u64 jiffies)
{
	struct work *w = work_of(WORKER_RESTART);
	u8 substate = 0;

	if (!w || !find_mini(w, tw))
		return;
	read_record(w, slot_of(w->word));
	READ(substate, tw, inet_timewait_sock_tw_substate);
	READ(w->session.rcv_nxt, tw, sock_common_skc_tw_rcv_nxt);
	READ(w->session.ts_recent, tw, tcp_timewait_sock_tw_ts_recent);
	w->session.bits &= ~VESTIGE_FIN_WAIT2;
	w->session.bits |= substate == TCP_FIN_WAIT2 ? VESTIGE_FIN_WAIT2 : 0;
	vestige_restart(w, timer_nanoseconds(jiffies, jiffies) + LATE_NANOSECONDS);
}

ALWAYS_INLINE void taken_by_time_wait(const void *sk, int state, int timeo)
{
	u64 jiffies = state == TCP_TIME_WAIT ? TIME_WAIT_JIFFIES : at_least_rto(sk, timeo), *mine;
	struct common common;
	u32 zero = 0, *netns;

	if (read_common(&common, sk))
		return;
	netns = enrolled(&common);
	if (!netns)
		return;
	mine = taken.lookup(&zero);
	if (mine)
		*mine = (u64)sk;
	born(WORKER_BIRTH, sk, &common, *netns, state, jiffies);
}

KFUNC_PROBE(tcp_time_wait)
{
	taken_by_time_wait((void *)ctx[0], ctx[1], ctx[2]);
	return 0;
}

KFUNC_PROBE(__inet_twsk_schedule)
{
	if ((u8)ctx[2])
		restarted((void *)ctx[0], (u32)ctx[1]);
	return 0;
}

KFUNC_PROBE(tw_timer_handler)
{
	give_verdict(ctx[0] - OFFSET_inet_timewait_sock_tw_timer, REASON_EXPIRED);
	return 0;
}

KFUNC_PROBE(inet_twsk_kill)
{
	over((void *)ctx[0], take_verdict(ctx[0]));
	return 0;
}

KFUNC_PROBE(tcp_timewait_state_process)
{
	give_verdict(ctx[0], REASON_RESET);
	return 0;
}

/* The result follows the arguments, and how many there are differs between kernels. */
KRETFUNC_PROBE(tcp_timewait_state_process)
{
	u32 status = ctx[ARGUMENTS_tcp_timewait_state_process];

	if (status == TCP_TW_SYN)
		give_verdict(ctx[0], REASON_REUSED);
	else if (status != TCP_TW_RST)
		give_verdict(0, 0);
	return 0;
}

KRETFUNC_PROBE(tcp_twsk_unique)
{
	if ((u32)ctx[ARGUMENTS_tcp_twsk_unique] == 1)
		give_verdict(ctx[1], REASON_REUSED);
	return 0;
}
