// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The guard: does TIME_WAIT's duty from the vestige where the kernel keeps no socket.
 *
 * It equals tcp_timewait_state_process() segment by segment: the comments name the rules by what Linux does. A segment
 * that has a live socket is never touched. Attached by TC to each device of a guarded namespace:
 *
 *   guard_ingress   answers, absorbs or lets in what arrives for a vestige
 *   guard_egress    holds a local SYN back as long as the peer could take it for an old duplicate
 *
 * A packet without a vestige costs one copy of its headers and one cache line. Both return TC_ACT_UNSPEC for what they
 * let pass, so that other filters on the device still see it.
 *
 * WHAT IT DOES NOT DO AS LINUX DOES. An answer goes back to where the segment came from and does not pass routing,
 * netfilter or conntrack; it has none of the IP options of the segment. The window is known only as it goes on the
 * wire, so its last bytes below one unit of its scale count as outside. When ts_recent was set is known as the timer's
 * last start. Fragments are not put together: they pass.
 */
#include "vestige.h"
#include "table.h"
#include "kernel.h"
#include "packet.h"

#define BETWEEN_TICKS 2
#define BETWEEN_LOOKS 128
#define BETWEEN_NANOSECONDS 10000
#define OVERTAKING_NANOSECONDS 15000
#define PAWS_WINDOW_TICKS 895 /* 60 s: a RST is held against a timestamp for so long (TCP_PAWS_WINDOW) */
#define NANOSECONDS_A_MILLISECOND 1000000
#define ECN_IPV4 0x3u
#define ECN_IPV6 0x300000u
#define DSCP_IPV6 0xfc00000u
#define FLOW_LABEL 0xfffffu
#define NANOSECONDS_A_MICROSECOND 1000

/* What became of a segment that had a vestige, or might have had one. */
enum action {
	ACTION_ACKNOWLEDGED,	/* answered with an ACK */
	ACTION_LIMITED,		/* would have been, but for tcp_invalid_ratelimit */
	ACTION_ABSORBED,	/* nothing to say to it */
	ACTION_RESET,		/* answered with a RST; the session is over */
	ACTION_KILLED,		/* a RST that ended the session */
	ACTION_REOPENED,	/* a SYN from the peer that was let in */
	ACTION_REUSED,		/* a local SYN that was let out */
	ACTION_HELD,		/* a local SYN that was held back: not safe yet */
	ACTION_LIVE,		/* has a live socket after all */
	ACTION_DAMAGED,		/* its checksum is wrong */
	ACTION_UNANSWERABLE,	/* signed (TCP-MD5, TCP-AO), or of a session whose sequence numbers nobody saw */
	ACTION_RACED,		/* its vestige was just being made, or changed: dropped, the peer sends it again */
	ACTION_FRAGMENT,	/* passed: no ports to look for */
	ACTION_UNPARSED,	/* passed: headers that cannot be followed */
	ACTIONS,
};

struct actions {
	u64 count[ACTIONS];
};

BPF_F_TABLE("array", u32, struct actions, actions, CPUS, BPF_F_MMAPABLE);

/* When a session was last answered under the rate limit (ns), by the hash of its tuple. Few sessions ever are. */
BPF_TABLE("lru_hash", u64, u64, answered, 65536);

struct verdict {
	u32 action;
	u32 restart;	/* the timer starts anew */
	u32 changed;	/* the record is to hold what w->session then holds */
	u32 reply;	/* TCP flags of the answer; 0: none */
	u32 ends;	/* the session is over, for this reason */
	u32 reason;
};

BPF_PERCPU_ARRAY(verdicts, struct verdict, 1);

ALWAYS_INLINE void count(u32 action)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct actions *mine = actions.lookup(&cpu);

	if (mine && action < ACTIONS)
		mine->count[action]++;
}

ALWAYS_INLINE bool after(u32 a, u32 b)
{
	return (s32)(b - a) < 0;
}

/* Copies the record of the vestige that was found; false if it changed meanwhile. */
ALWAYS_INLINE bool read_vestige(struct work *w)
{
	struct line *line = line_at(w, w->home);

	read_record(w, slot_of(w->word));
	return line && *(volatile u64 *)&line->word[in_line(w, w->spare)] == w->word;
}

ALWAYS_INLINE u64 age_of(const struct work *w)
{
	u16 *start = start_at(w, slot_of(w->word));
	u64 age = start ? (u16)(w->now - *start) : 0;

	return age <= HORIZON_TICKS ? age : 0; /* another CPU started it after we looked at the clock */
}

enum presence { PRESENCE_NONE, PRESENCE_LISTENER, PRESENCE_LIVE };

#define NOT_HASHED (-95) /* EOPNOTSUPP of bpf_sk_assign */

/* Which socket the kernel would give the segment to. A live one gets it for sure: if it became a vestige before the kernel
 * looked for it, nobody would be found, and the answer would be a RST. A socket that is closed by then drops it. */
ALWAYS_INLINE enum presence socket_for(struct __sk_buff *skb, const struct work *w)
{
	const struct tuple *t = &w->session.tuple;
	struct bpf_sock_tuple ends = {};
	struct bpf_sock *sk;
	u32 state;
	s64 error = 0;

	if (is_ipv4(w)) {
		ends.ipv4.saddr = t->remote[0];
		ends.ipv4.daddr = t->local[0];
		ends.ipv4.sport = t->remote_port;
		ends.ipv4.dport = t->local_port;
		sk = bpf_skc_lookup_tcp(skb, &ends, sizeof(ends.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(ends.ipv6.saddr, t->remote, sizeof(t->remote));
		__builtin_memcpy(ends.ipv6.daddr, t->local, sizeof(t->local));
		ends.ipv6.sport = t->remote_port;
		ends.ipv6.dport = t->local_port;
		sk = bpf_skc_lookup_tcp(skb, &ends, sizeof(ends.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return PRESENCE_NONE;
	state = sk->state;
	if (state != TCP_LISTEN && state != TCP_SYN_SENT)
		error = bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	if (state == TCP_LISTEN)
		return PRESENCE_LISTENER;
	/* SYN_SENT: its SYN is held back as long as there is a vestige, and what arrives is meant for that */
	return state == TCP_SYN_SENT || error == NOT_HASHED ? PRESENCE_NONE : PRESENCE_LIVE;
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
	u32 next = w->session.rcv_nxt, edge = next + ((u32)w->session.window << (w->session.bits >> 4));

	return s->seq == next || (after(s->end, next) && after(edge, s->seq)) || (s->seq == edge && s->seq == s->end);
}

/* tcp_oow_rate_limited(): of what could be half of an endless exchange of ACKs, few are answered. */
ALWAYS_INLINE bool is_limited(const struct work *w, const struct segment *s)
{
	u64 now = bpf_ktime_get_ns(), key = w->own_hash, *last;
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

ALWAYS_INLINE void acknowledge_limited(const struct work *w, const struct segment *s, struct verdict *v)
{
	if (is_limited(w, s)) {
		v->action = ACTION_LIMITED;
		return;
	}
	v->action = ACTION_ACKNOWLEDGED;
	v->reply = ACK;
}

ALWAYS_INLINE void end_session(struct verdict *v, u32 action, u32 reason)
{
	v->action = action;
	v->ends = 1;
	v->reason = reason;
}

ALWAYS_INLINE void take_timestamp(struct work *w, const struct segment *s, struct verdict *v)
{
	if (!s->has_timestamp)
		return;
	v->changed |= w->session.ts_recent != s->tsval;
	w->session.ts_recent = s->tsval;
}

/* The first half of tcp_timewait_state_process(): the peer's FIN has not come yet. */
ALWAYS_INLINE void judge_fin_wait2(struct work *w, const struct segment *s, struct verdict *v)
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
		w->session.rcv_nxt = s->end;
		w->session.bits &= ~VESTIGE_FIN_WAIT2;
		take_timestamp(w, s, v);
		v->restart = v->changed = 1;
		v->action = ACTION_ACKNOWLEDGED;
		v->reply = ACK;
	}
}

/* Whether a SYN opens a connection anew (RFC 6191, RFC 1122 section 4.2.2.13). */
ALWAYS_INLINE bool reopens(const struct work *w, const struct segment *s)
{
	if ((s->flags & (SYN | RST | ACK)) != SYN)
		return false;
	return after(s->seq, w->session.rcv_nxt) || (s->has_timestamp && (s32)(w->session.ts_recent - s->tsval) < 0);
}

/* The second half: TIME_WAIT. */
ALWAYS_INLINE void judge_time_wait(struct work *w, const struct segment *s, struct verdict *v, enum presence presence)
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
		take_timestamp(w, s, v);
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

/* Nothing can be said in a session whose sequence numbers or keys are not known; a new one may begin. */
ALWAYS_INLINE void judge_silent(const struct segment *s, struct verdict *v, enum presence presence)
{
	v->action = ACTION_UNANSWERABLE;
	if ((s->flags & (SYN | RST | ACK)) == SYN && presence == PRESENCE_LISTENER)
		end_session(v, ACTION_REOPENED, REASON_REUSED);
}

ALWAYS_INLINE void judge(struct work *w, struct segment *s, struct verdict *v, enum presence presence)
{
	v->restart = v->changed = v->reply = v->ends = 0;
	if (!(w->session.bits & VESTIGE_TIMESTAMPS)) /* what the connection does not have is not looked at */
		s->has_timestamp = 0;
	if (w->session.bits & VESTIGE_SILENT)
		judge_silent(s, v, presence);
	else if (w->session.bits & VESTIGE_FIN_WAIT2)
		judge_fin_wait2(w, s, v);
	else
		judge_time_wait(w, s, v, presence);
}

ALWAYS_INLINE void finish_session(struct work *w, u32 reason)
{
	struct line *line = line_at(w, w->home);
	u64 key = w->own_hash;

	answered.delete(&key);
	if (line)
		vestige_end(w, &line->word[in_line(w, w->spare)], w->word, reason);
}

/* The timer is started anew at most once a tick: a flood for one session must not drive the others out of the ring. */
ALWAYS_INLINE void change_session(struct work *w, const struct verdict *v)
{
	u32 class = class_of(w, slot_of(w->word)), zero = 0;
	struct meta *m = meta.lookup(&zero);
	u64 left = remaining(w->word, w->now);

	if (!m || class >= CLASSES)
		return;
	if (v->restart && (v->changed || left < life_ticks(m->time_wait[class]))) {
		vestige_restart(w, m->time_wait[class]);
	} else if (v->changed) {
		w->expiry = w->now + left;
		vestige_move(w, class);
	}
}

ALWAYS_INLINE u32 timestamp_now(const struct session *s)
{
	u64 unit = s->bits & VESTIGE_USEC ? NANOSECONDS_A_MICROSECOND : NANOSECONDS_A_MILLISECOND;

	return bpf_ktime_get_ns() / unit + s->ts_offset;
}

/* TOS of an IPv4 session's segments; nearly always there is none. */
ALWAYS_INLINE u32 tos_of(const struct work *w)
{
	u64 key = w->own_hash;
	u32 *found = tos.lookup(&key);

	return found ? *found : 0;
}

/* An ACK has the marking of its connection, without ECN (RFC 3168 section 6.1.4); a RST the DSCP of what it answers. */
ALWAYS_INLINE int answer(struct __sk_buff *skb, const struct work *w, struct segment *s, u32 reply)
{
	const struct session *session = &w->session;
	struct answer a = { .flags = reply, .marking = session->marking };

	if (reply == ACK) {
		a.seq = session->snd_nxt;
		a.ack = session->rcv_nxt;
		a.window = session->window;
		a.tsval = timestamp_now(session);
		a.tsecr = session->ts_recent;
		if (is_ipv4(w))
			a.marking = tos_of(w);
		a.marking &= ~(is_ipv4(w) ? ECN_IPV4 : ECN_IPV6);
		return send_answer(skb, w, s, &a);
	}
	if (s->malformed)
		return TC_ACT_SHOT;
	if (s->flags & ACK) {
		a.seq = s->ack;
	} else {
		a.flags |= ACK;
		a.ack = s->end;
	}
	a.marking = is_ipv4(w) ? s->in.ip4.tos & ~ECN_IPV4 :
				 (a.marking & FLOW_LABEL) | (bpf_ntohl(s->in.ip6.version_class_label) & DSCP_IPV6);
	return send_answer(skb, w, s, &a);
}

ALWAYS_INLINE int execute(struct __sk_buff *skb, struct work *w, struct segment *s, const struct verdict *v)
{
	count(v->action);
	if (v->ends)
		finish_session(w, v->reason);
	else
		change_session(w, v);
	if (v->action == ACTION_REOPENED)
		return TC_ACT_UNSPEC;
	return v->reply ? answer(skb, w, s, v->reply) : TC_ACT_SHOT;
}

/* A segment that has a vestige, and perhaps a live socket. */
ALWAYS_INLINE int face(struct __sk_buff *skb, struct work *w, struct segment *s)
{
	u32 zero = 0;
	struct verdict *v = verdicts.lookup(&zero);
	enum presence presence;

	if (!v)
		return TC_ACT_UNSPEC;
	presence = socket_for(skb, w);
	if (presence == PRESENCE_LIVE) {
		count(ACTION_LIVE);
		return TC_ACT_UNSPEC;
	}
	if (!is_sound(skb, w, s) || !read_rest(skb, s) || !read_buffer(skb, s)) {
		count(ACTION_UNPARSED);
		return TC_ACT_UNSPEC;
	}
	if (!checksum_is_right(skb, w, s)) {
		count(ACTION_DAMAGED);
		return TC_ACT_SHOT;
	}
	if (!read_vestige(w)) {
		count(ACTION_RACED);
		return TC_ACT_SHOT;
	}
	judge(w, s, v, presence);
	return execute(skb, w, s, v);
}

/* Whether the peer will take a local SYN for a new one: its sequence number is beyond the last, or its timestamp is newer than
 * any that the old connection can have sent. In FIN_WAIT2 never: the peer's end is still open, would answer with an ACK, and our
 * RST to that would break it (as tcp_twsk_unique() refuses it to connect()). */
ALWAYS_INLINE bool is_safe(const struct work *w, const struct segment *s)
{
	u64 age = age_of(w), unit = w->session.bits & VESTIGE_USEC ? NANOSECONDS_A_MICROSECOND : NANOSECONDS_A_MILLISECOND;
	u32 last;

	if (w->session.bits & VESTIGE_FIN_WAIT2)
		return false;
	if (w->session.bits & VESTIGE_SILENT || after(s->seq, w->session.snd_nxt))
		return true;
	if (!s->has_timestamp || !(w->session.bits & VESTIGE_TIMESTAMPS) || age < 2)
		return false;
	last = (bpf_ktime_get_ns() - ((age - 1) << TICK_SHIFT)) / unit + w->session.ts_offset;
	return (s32)(s->tsval - last) > 0;
}

/* A local SYN that has a vestige. */
ALWAYS_INLINE int release(struct __sk_buff *skb, struct work *w, struct segment *s)
{
	if (!read_rest(skb, s))
		return TC_ACT_UNSPEC;
	if (!read_vestige(w) || !is_safe(w, s)) {
		count(ACTION_HELD);
		return TC_ACT_SHOT;
	}
	count(ACTION_REUSED);
	finish_session(w, REASON_REUSED);
	return TC_ACT_UNSPEC;
}

/* Whether the tuple last looked at is that of a connection that may become a vestige any moment. Asked before the vestige is
 * looked for, as it is no longer noted once that is there. */
ALWAYS_INLINE bool is_noted(const struct work *w)
{
	u64 key = w->hash, *connections = pending_at(key);

	return connections && *(volatile u64 *)connections && closing.lookup(&key);
}

/* The rest of the tuple, which no header says. */
ALWAYS_INLINE bool has_vestige(struct __sk_buff *skb, struct work *w, u32 classid)
{
	struct tuple *t = &w->session.tuple;
	struct line *line;

	t->netns = netns_of(classid);
	if (!is_ipv4(w))
		t->scope = is_link_local(t->remote) ? skb->ifindex : 0;
	line = find_line(w, t);
	w->noted = is_noted(w);
	return find_in_line(w, line);
}

/* A packet that a glance did not settle: whether it is a segment with a vestige, and its headers. */
ALWAYS_INLINE bool look_closer(struct __sk_buff *skb, struct work *w, struct segment *s, u32 classid, enum parsed parsed,
			       bool ingress)
{
	enum parsed now;

	s->network = network_offset(classid);
	now = read_headers(skb, w, s);
	if (now == FRAGMENT && ingress)
		count(ACTION_FRAGMENT);
	if (now == UNPARSED && ingress)
		count(ACTION_UNPARSED);
	if (now != PARSED || !matters(s->in.tcp.flags, ingress))
		return false;
	if (parsed == PARSED) /* found already */
		return true;
	if (is_ipv4(w))
		set_tuple4(&w->session.tuple, &s->in.ip4, &s->in.tcp, ingress);
	else
		set_tuple6(&w->session.tuple, &s->in.ip6, &s->in.tcp, ingress);
	w->flags = s->in.tcp.flags;
	return has_vestige(skb, w, classid);
}

/* Whether a noted connection without a socket is just becoming a vestige. That takes a moment, not two ticks: then no vestige
 * will come, and a note that stayed would keep the peer from the kernel's RST. */
ALWAYS_INLINE bool is_between(u64 key)
{
	u64 *since = closing.lookup(&key), now = tick_now();

	if (!since)
		return true;
	if (*since & NOTE_SOCKET)
		*since = now;
	if (now - *since <= BETWEEN_TICKS)
		return true;
	forget_note(key);
	return false;
}

ALWAYS_INLINE u64 here_and_now(void)
{
	return (bpf_ktime_get_ns() & ~NOTE_CPU) | (bpf_get_smp_processor_id() & NOTE_CPU);
}

ALWAYS_INLINE void note_led(const struct work *w)
{
	u64 key = w->hash, *note = closing.lookup(&key);

	if (note && *note & NOTE_SOCKET)
		*note = NOTE_SOCKET | here_and_now();
}

/* Whether a segment follows at once what another CPU led to the socket: if that is the acknowledgement of our FIN, a FIN would
 * wait for the socket's lock, find it closed, and be lost. */
ALWAYS_INLINE bool is_overtaking(const struct work *w)
{
	u64 key = w->hash, *note = closing.lookup(&key), now = here_and_now(), last;

	if (!note)
		return false;
	last = *note & ~NOTE_SOCKET;
	return (last & NOTE_CPU) != (now & NOTE_CPU) && (s64)(now - last) < OVERTAKING_NANOSECONDS;
}

/* The time (ns) some 100 ns later: the verifier allows only so many looks. */
ALWAYS_INLINE u64 a_moment_later(void)
{
	bpf_ktime_get_ns();
	bpf_ktime_get_ns();
	return bpf_ktime_get_ns();
}

/* Waits for the vestige that is just being made on another CPU, some us: a FIN that is lost leaves the peer's end open until
 * it is sent again, and our tuple held back as long. */
ALWAYS_INLINE bool has_come(struct work *w)
{
	u64 until = bpf_ktime_get_ns() + BETWEEN_NANOSECONDS;

#pragma clang loop unroll(disable)
	for (u32 looks = 0; looks < BETWEEN_LOOKS; looks++) {
		struct line *line = line_at(w, w->line);

		if (!line || has_tag(w, line) || a_moment_later() > until)
			break;
	}
	return find_in_line(w, line_at(w, w->line));
}

enum fate { FATE_PASSES, FATE_HAS_VESTIGE, FATE_LOST };

/* A segment without a vestige. If its connection may become one any moment (observe.c, will_close), it is led to the socket; if
 * that is gone, or just going, the vestige is waited for. Before it is led: what is made an answer must not have that socket,
 * for a peer on this host would take it for its own. */
ALWAYS_INLINE enum fate escort(struct __sk_buff *skb, struct work *w, bool can_wait)
{
	if (!w->noted || w->flags & SYN)
		return FATE_PASSES;
	if (!(w->flags & FIN))
		note_led(w);
	else if (is_overtaking(w) && can_wait && has_come(w))
		return FATE_HAS_VESTIGE;
	if (socket_for(skb, w) == PRESENCE_LIVE || !is_between(w->hash))
		return FATE_PASSES;
	return can_wait && has_come(w) ? FATE_HAS_VESTIGE : FATE_LOST;
}

/* The peer sends it again. */
ALWAYS_INLINE int lose(void)
{
	count(ACTION_RACED);
	return TC_ACT_SHOT;
}

ALWAYS_INLINE int look(struct __sk_buff *skb, bool ingress)
{
	struct work *w = work_of(WORKER_GUARD);
	struct segment *s;
	u32 classid = skb->tc_classid;
	enum parsed parsed;
	enum fate fate;

	/* a VLAN's own device has the guard too; VLAN 0 is only a priority */
	if (!w || (skb->vlan_present && skb->vlan_tci & VLAN_ID))
		return TC_ACT_UNSPEC;
	w->noted = 0;
	parsed = glance(skb, w, network_offset(classid), ingress);
	if (parsed == NOT_TCP)
		return TC_ACT_UNSPEC;
	if (parsed == PARSED && !has_vestige(skb, w, classid)) {
		fate = ingress ? escort(skb, w, true) : FATE_PASSES;
		if (fate != FATE_HAS_VESTIGE)
			return fate == FATE_LOST ? lose() : TC_ACT_UNSPEC;
	}
	s = the_segment();
	if (!s)
		return TC_ACT_UNSPEC;
	if (!look_closer(skb, w, s, classid, parsed, ingress))
		return ingress && escort(skb, w, false) == FATE_LOST ? lose() : TC_ACT_UNSPEC;
	return ingress ? face(skb, w, s) : release(skb, w, s);
}

int guard_ingress(struct __sk_buff *skb)
{
	return skb->pkt_type == PACKET_HOST ? look(skb, true) : TC_ACT_UNSPEC;
}

int guard_egress(struct __sk_buff *skb)
{
	return look(skb, false);
}
