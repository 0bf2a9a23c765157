/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is to be done with a segment that has a vestige, as tcp_timewait_state_process() decides it: the comments name the
 * rules by what Linux does.
 */
#ifndef TWCTL_GUARD_DECIDE_H
#define TWCTL_GUARD_DECIDE_H

#include "guard/actions.h"
#include "guard/segment.h"
#include "guard/sockets.h"
#include "kernel.h"
#include "life.h"
#include "lookup.h"
#include "table.h"

#define PAWS_WINDOW_TICKS 895 /* 60 s: that long a RST is checked against the last timestamp (TCP_PAWS_WINDOW) */

/* When a session was last answered under the rate limit (ns), by the hash of its tuple and by its snd_nxt, which the next one of
 * the tuple does not have. Few sessions ever are. */
BPF_TABLE("lru_hash", u64, u64, answered, 65536);

struct decision {
	u32 action;
	u32 restart;	/* the timer starts anew */
	u32 changed;	/* FIN_WAIT2 has become TIME_WAIT */
	u32 reply;	/* TCP flags of the answer; 0: none */
	u32 ends;	/* the session is over, for this reason */
	u32 reason;
};

BPF_PERCPU_ARRAY(decisions, struct decision, 1);

ALWAYS_INLINE bool after(u32 a, u32 b)
{
	return (s32)(b - a) < 0;
}

ALWAYS_INLINE u64 age_of(const struct work *w)
{
	return age_at(w, slot_of(w->word));
}

/* tcp_paws_reject(): the timestamp is older than the last one. */
ALWAYS_INLINE bool paws_rejects(const struct work *w, const struct segment *s)
{
	u32 recent = w->session.ts_recent;

	if (!s->has_timestamp || !recent || (s32)(recent - s->tsval) <= 0)
		return false;
	return !(s->flags & RST) || age_of(w) < PAWS_WINDOW_TICKS;
}

/* tcp_in_window() */
ALWAYS_INLINE bool in_window(const struct work *w, const struct segment *s)
{
	u32 next = w->session.rcv_nxt, edge = next + ((u32)w->session.window << (w->session.bits >> VESTIGE_SCALE_SHIFT));

	return s->seq == next || (after(s->end, next) && after(edge, s->seq)) || (s->seq == edge && s->seq == s->end);
}

/* tcp_oow_rate_limited(): of what could be half of an endless exchange of ACKs, few are answered. */
ALWAYS_INLINE bool is_limited(const struct work *w, const struct segment *s)
{
	u64 now = bpf_ktime_get_ns(), key = w->own_hash ^ (u64)w->session.snd_nxt << 32, *last;
	int jiffies = 0;

	if (s->seq != s->end && !(s->flags & SYN))
		return false;
	READ(jiffies, s->net, net_ipv4_sysctl_tcp_invalid_ratelimit);
	last = answered.lookup(&key);
	if (last && now - *last < (u64)(u32)jiffies * JIFFY_NANOSECONDS)
		return true;
	answered.update(&key, &now);
	return false;
}

ALWAYS_INLINE void acknowledge_limited(const struct work *w, const struct segment *s, struct decision *v)
{
	if (is_limited(w, s)) {
		v->action = ACTION_LIMITED;
		return;
	}
	v->action = ACTION_ACKNOWLEDGED;
	v->reply = ACK;
}

ALWAYS_INLINE void end_session(struct decision *v, u32 action, u32 reason)
{
	v->action = action;
	v->ends = 1;
	v->reason = reason;
}

ALWAYS_INLINE void take_timestamp(struct work *w, const struct segment *s)
{
	if (s->has_timestamp)
		w->session.ts_recent = s->tsval;
}

/* The first half of tcp_timewait_state_process(): the peer's FIN has not come yet. */
ALWAYS_INLINE void decide_in_fin_wait2(struct work *w, const struct segment *s, struct decision *v)
{
	u32 next = w->session.rcv_nxt;

	if (paws_rejects(w, s) || !in_window(w, s)) {
		acknowledge_limited(w, s, v);
	} else if (s->flags & RST) {
		end_session(v, ACTION_KILLED, REASON_RESET);
	} else if (s->flags & SYN && !after(next, s->seq)) {
		end_session(v, ACTION_RESET, REASON_RESET);
		v->reply = RST;
	} else if (!(s->flags & ACK) || !after(s->end, next) || s->end == s->seq) {
		v->action = ACTION_ABSORBED;
	} else if (!(s->flags & FIN) || s->end != next + 1) { /* new data, which nobody will read */
		end_session(v, ACTION_RESET, REASON_RESET);
		v->reply = RST;
	} else {
		set_substate(&w->session, false);
		take_timestamp(w, s);
		v->restart = v->changed = 1;
		v->action = ACTION_ACKNOWLEDGED;
		v->reply = ACK;
	}
}

/* Whether a SYN opens a connection anew (RFC 6191, RFC 1122 section 4.2.2.13). */
ALWAYS_INLINE bool reopens(const struct work *w, const struct segment *s)
{
	if (!opens(s->flags))
		return false;
	return after(s->seq, w->session.rcv_nxt) || (s->has_timestamp && (s32)(w->session.ts_recent - s->tsval) < 0);
}

/* The second half: TIME_WAIT. */
ALWAYS_INLINE void decide_in_time_wait(struct work *w, const struct segment *s, struct decision *v, enum presence presence)
{
	bool rejected = paws_rejects(w, s);
	u8 rfc1337 = 0;

	if (!rejected && s->seq == w->session.rcv_nxt && (s->seq == s->end || s->flags & RST)) {
		READ(rfc1337, s->net, net_ipv4_sysctl_tcp_rfc1337);
		v->action = ACTION_ABSORBED;
		if (s->flags & RST && !rfc1337) {
			end_session(v, ACTION_KILLED, REASON_RESET);
			return;
		}
		take_timestamp(w, s);
		v->restart = !(s->flags & RST);
	} else if (!rejected && reopens(w, s)) {
		v->action = ACTION_ACKNOWLEDGED;
		v->reply = ACK;
		if (presence == PRESENCE_LISTENER) {
			end_session(v, ACTION_REOPENED, REASON_REUSED);
			v->reply = 0;
		}
	} else if (s->flags & RST) {
		v->action = ACTION_ABSORBED;
	} else {
		v->restart = rejected || s->flags & ACK;
		acknowledge_limited(w, s, v);
	}
}

/* Nothing can be said in a session whose sequence numbers or keys are not known; a new one may begin, in a signed session where
 * it may in any other. */
ALWAYS_INLINE void decide_unanswerable(const struct work *w, const struct segment *s, struct decision *v, enum presence presence)
{
	bool anew = w->session.bits & VESTIGE_UNKNOWN ? opens(s->flags) :
							!w->session.fin_wait2 && !paws_rejects(w, s) && reopens(w, s);

	v->action = ACTION_UNANSWERABLE;
	if (anew && presence == PRESENCE_LISTENER)
		end_session(v, ACTION_REOPENED, REASON_REUSED);
}

/* Of a transparent proxy the kernel looks for the listener by its rule, and lets any SYN in (nf_tproxy_handle_time_wait4). */
ALWAYS_INLINE bool opens_by_proxy(const struct work *w, const struct segment *s)
{
	return w->flags & TRANSPARENT && (s->flags & (SYN | RST | ACK | FIN)) == SYN;
}

ALWAYS_INLINE void decide(struct work *w, struct segment *s, struct decision *v, enum presence presence)
{
	v->restart = v->changed = v->reply = v->ends = 0;
	if (!(w->session.bits & VESTIGE_TIMESTAMPS)) /* what the connection does not have is not looked at */
		s->has_timestamp = 0;
	if (opens_by_proxy(w, s))
		end_session(v, ACTION_REOPENED, REASON_REUSED);
	else if (w->session.bits & (VESTIGE_UNKNOWN | VESTIGE_SIGNED))
		decide_unanswerable(w, s, v, presence);
	else if (w->session.fin_wait2)
		decide_in_fin_wait2(w, s, v);
	else
		decide_in_time_wait(w, s, v, presence);
}

#endif
