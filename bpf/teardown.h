/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * PROBE_FENTRY: birth, restart and end from the kernel's own functions.
 *
 *   tcp_time_wait(sk, state, timeo)            birth, with the substate and the time
 *   __inet_twsk_schedule(tw, timeo, rearm)     with rearm: the timer starts anew, also when the FIN ends FIN_WAIT2
 *   tw_timer_handler(timer)                    end: expired
 *   inet_twsk_deschedule_put(tw)               end before the time; why is known from who came before it on this CPU:
 *   tcp_timewait_state_process(tw, skb, th)      a RST inside of it; what it returns says reopened or RST sent
 *   tcp_twsk_unique(sk, tw, twp)                 1: connect() takes the tuple
 *                                                neither: destroyed by another tool or with its namespace
 *
 * All but the last run with bottom halves disabled, so that a verdict and the end it explains share a CPU.
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

ALWAYS_INLINE struct match find_mini(int family, const void *tw, const struct common *common, u32 netns,
				     struct session *s, struct place *place)
{
	struct match none = {};
	u16 port = 0;

	if (READ(port, tw, inet_timewait_sock_tw_sport))
		return none;
	tuple_from(family, &s->tuple, common, port, netns);
	return vestige_find(family, &s->tuple, place);
}

ALWAYS_INLINE void over_family(int family, const void *tw, const struct common *common, u32 netns, u32 reason)
{
	struct place place = { .now = tick_now() };
	struct session s = {};
	struct match match = find_mini(family, tw, common, netns, &s, &place);

	if (match.at)
		vestige_end(family, match.at, match.word, place.now, reason);
}

ALWAYS_INLINE void over(const void *tw, u32 reason)
{
	struct common common;
	u32 *netns;

	if (!read_common(&common, tw))
		return;
	netns = enrolled(&common);
	if (!netns)
		return;
	if (family_of(&common) == FAMILY_IPV4)
		over_family(FAMILY_IPV4, tw, &common, *netns, reason);
	else
		over_family(FAMILY_IPV6, tw, &common, *netns, reason);
}

/* The mini-socket's own state is newer than the record's: the FIN moves rcv_nxt, segments move ts_recent. */
ALWAYS_INLINE void restarted_family(int family, const void *tw, const struct common *common, u32 netns, u64 jiffies)
{
	struct place place = { .now = tick_now() };
	struct session s = {};
	struct match match = find_mini(family, tw, common, netns, &s, &place);
	u8 substate = 0;

	if (!match.at)
		return;
	read_session(family, slot_of(match.word), &s);
	READ(substate, tw, inet_timewait_sock_tw_substate);
	READ(s.rcv_nxt, tw, sock_common_skc_tw_rcv_nxt);
	READ(s.ts_recent, tw, tcp_timewait_sock_tw_ts_recent);
	s.bits = (s.bits & ~VESTIGE_FIN_WAIT2) | (substate == TCP_FIN_WAIT2 ? VESTIGE_FIN_WAIT2 : 0);
	vestige_restart(family, &match, &s, &place, timer_nanoseconds(jiffies, jiffies) + LATE_NANOSECONDS);
}

ALWAYS_INLINE void restarted(const void *tw, u64 jiffies)
{
	struct common common;
	u32 *netns;

	if (!read_common(&common, tw))
		return;
	netns = enrolled(&common);
	if (!netns)
		return;
	if (family_of(&common) == FAMILY_IPV4)
		restarted_family(FAMILY_IPV4, tw, &common, *netns, jiffies);
	else
		restarted_family(FAMILY_IPV6, tw, &common, *netns, jiffies);
}

ALWAYS_INLINE void taken_by_time_wait(const void *sk, int state, int timeo)
{
	u64 jiffies = state == TCP_TIME_WAIT ? TIME_WAIT_JIFFIES : at_least_rto(sk, timeo), *mine;
	struct common common;
	u32 zero = 0, *netns;

	if (!read_common(&common, sk))
		return;
	netns = enrolled(&common);
	if (!netns)
		return;
	mine = taken.lookup(&zero);
	if (mine)
		*mine = (u64)sk;
	born(sk, &common, *netns, state, jiffies);
}

int kfunc__tcp_time_wait(unsigned long long *ctx)
{
	taken_by_time_wait((void *)ctx[0], ctx[1], ctx[2]);
	return 0;
}

int kfunc____inet_twsk_schedule(unsigned long long *ctx)
{
	if ((u8)ctx[2])
		restarted((void *)ctx[0], (u32)ctx[1]);
	return 0;
}

int kfunc__tw_timer_handler(unsigned long long *ctx)
{
	over((u8 *)ctx[0] - OFFSET_inet_timewait_sock_tw_timer, REASON_EXPIRED);
	return 0;
}

int kfunc__inet_twsk_deschedule_put(unsigned long long *ctx)
{
	over((void *)ctx[0], take_verdict(ctx[0]));
	return 0;
}

int kfunc__tcp_timewait_state_process(unsigned long long *ctx)
{
	give_verdict(ctx[0], REASON_RESET);
	return 0;
}

/* The result follows the arguments, and how many there are differs between kernels. */
int kretfunc__tcp_timewait_state_process(unsigned long long *ctx)
{
	u32 status = ctx[ARGUMENTS_tcp_timewait_state_process];

	if (status == TCP_TW_SYN)
		give_verdict(ctx[0], REASON_REUSED);
	else if (status != TCP_TW_RST)
		give_verdict(0, 0);
	return 0;
}

int kretfunc__tcp_twsk_unique(unsigned long long *ctx)
{
	if ((u32)ctx[ARGUMENTS_tcp_twsk_unique] == 1)
		give_verdict(ctx[1], REASON_REUSED);
	return 0;
}
