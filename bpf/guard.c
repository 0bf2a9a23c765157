// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The guard: does TIME_WAIT's duty from the vestige where the kernel keeps no socket.
 *
 * It equals tcp_timewait_state_process() segment by segment: the comments name the rules by what Linux does. A segment
 * that has a live socket is never touched. Attached by TC to each device of a guarded namespace:
 *
 *   guard_ingress   answers, absorbs or lets in what arrives for a vestige
 *   guard_egress    holds a local SYN back as long as the peer could take it for an old duplicate, or the session is younger
 *                   than its class's reuse_age, notes the tuple that a SYN and a FIN have after all translation (wire.h), and
 *                   undoes what others have translated in an answer
 *
 * A packet without a vestige costs one copy of its headers and one cache line. Both return TC_ACT_UNSPEC for what they
 * let pass, so that other filters on the device still see it.
 *
 * WHAT IT DOES NOT DO AS LINUX DOES. An answer takes the kernel's route (guard/route.h), but does not pass netfilter or
 * conntrack; it has none of the IP options of the segment. The window is known only as it goes on the wire, so its last
 * bytes below one unit of its scale count as outside. When ts_recent was set is known as the timer's last start.
 * Fragments are not put together: they pass.
 */
#include "vestige.h"
#include "table.h"
#include "kernel.h"
#include "guard/actions.h"
#include "guard/answer.h"
#include "guard/checksum.h"
#include "guard/conntrack.h"
#include "guard/decide.h"
#include "guard/parse.h"
#include "guard/route.h"
#include "guard/sockets.h"
#include "guard/wire.h"
#include "insert.h"

ALWAYS_INLINE void finish_session(struct work *w, u32 reason)
{
	struct line *line = line_at(w, w->home);

	if (line)
		vestige_end(w, &line->word[in_line(w, w->spare)], w->word, reason);
}

/* What the segment changes, where the vestige lies. The timer's start is known by the tick: once in each is enough. */
ALWAYS_INLINE void change_session(struct work *w, const struct decision *v)
{
	u32 class = class_of(w, slot_of(w->word));
	struct meta *m = the_meta();

	if (!m || class >= CLASSES)
		return;
	if (v->restart && (v->changed || remaining(w->word, w->now) < life_ticks(m->time_wait[class])) &&
	    !vestige_restart(w, 0, m->time_wait[class]))
		return;
	renew_timestamp(w, slot_of(w->word));
}

ALWAYS_INLINE int execute(struct __sk_buff *skb, struct work *w, struct segment *s, const struct decision *v)
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

/* Whether a segment begins a connection that has the session's tuple: a SYN where a live socket has it already, or what answers a SYN
 * that went past the guard. The session is over, as on a stock host, and is not to answer when that connection has ended. */
ALWAYS_INLINE bool is_taken(const struct segment *s, enum presence presence)
{
	return presence == PRESENCE_ANSWERED || (presence == PRESENCE_LIVE && opens(s->in.tcp.flags));
}

/* A segment that has a vestige, and perhaps a live socket. */
ALWAYS_INLINE int handle_vestige(struct __sk_buff *skb, struct work *w, struct segment *s)
{
	u32 zero = 0;
	struct decision *v = decisions.lookup(&zero);
	enum presence presence;
	bool known, taken;

	if (!v)
		return TC_ACT_UNSPEC;
	known = vestige_socket(w);
	if (!known)
		w->flags = 0;
	presence = socket_for(skb, w, s);
	taken = is_taken(s, presence);
	if (presence == PRESENCE_LIVE && !taken) {
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
	if (!known || !vestige_read(w)) {
		count(ACTION_RACED);
		return taken ? TC_ACT_UNSPEC : TC_ACT_SHOT;
	}
	if (!is_believed(skb, w, s)) {
		count(ACTION_MARTIAN);
		return TC_ACT_UNSPEC;
	}
	if (taken) {
		count(ACTION_LIVE);
		finish_session(w, REASON_REUSED);
		return TC_ACT_UNSPEC;
	}
	decide(w, s, v, presence);
	return execute(skb, w, s, v);
}

/* Whether the peer will take a local SYN for a new one: its sequence number is beyond the last, or its timestamp is newer than
 * any that the old connection can have sent. In FIN_WAIT2 never: the peer's end is still open, would answer with an ACK, and our
 * RST to that would break it (as tcp_twsk_unique() refuses it to connect()). */
ALWAYS_INLINE bool is_safe(struct __sk_buff *skb, const struct work *w, struct segment *s)
{
	u64 age = age_of(w), unit = w->session.bits & VESTIGE_USEC ? NANOSECONDS_A_MICROSECOND : NANOSECONDS_A_MILLISECOND;
	u32 last;

	if (w->session.fin_wait2)
		return false;
	if (w->session.bits & VESTIGE_UNKNOWN || after(bpf_ntohl(s->in.tcp.seq), w->session.snd_nxt))
		return true;
	if (!(w->session.bits & VESTIGE_TIMESTAMPS) || age < 2 || !read_rest(skb, s) || !s->has_timestamp)
		return false;
	last = (bpf_ktime_get_ns() - ((age - 1) << TICK_SHIFT)) / unit + w->session.ts_offset;
	return (s32)(s->tsval - last) > 0;
}

/* A firewall on the way may not bear that a tuple comes again so soon. */
ALWAYS_INLINE bool is_old_enough(const struct work *w)
{
	u32 class = class_of(w, slot_of(w->word));
	struct meta *m = the_meta();

	if (!m || class >= CLASSES || !m->reuse_age[class])
		return true;
	return age_of(w) >= life_ticks(m->reuse_age[class]);
}

/* Where a SYN has the tuple of a session whose socket had another, conntrack has chosen it, and the kernel without the guard would let
 * it out: TIME_WAIT holds back whoever asks for the same tuple with connect(). */
ALWAYS_INLINE bool may_leave(struct __sk_buff *skb, struct work *w, struct segment *s)
{
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return true;
	if (!is_old_enough(w) || !vestige_socket(w))
		return false;
	return !is_of_socket(w, tuple_of_socket(w), sk) || (vestige_read(w) && is_safe(skb, w, s));
}

/* Whether a SYN that is only forwarded has its source from a translation, not from whoever claims our name. Conntrack says so of its
 * own; else the kernel forwards no IPv4 that came with an address of this host (fib_validate_source), but IPv6 for whoever asks. */
ALWAYS_INLINE bool is_given_our_name(struct __sk_buff *skb, struct work *w, u32 classid)
{
	if (!is_forwarded_here(skb, classid))
		return false;
	return translation_of(skb, 0) & SOURCE_TRANSLATED || (is_ipv4(w) && vestige_socket(w) && !(w->flags & TRANSLATED));
}

/* A SYN that has a vestige. One without a socket is only forwarded. If a translation has given it our name it takes the place of the
 * session, as far as the kernel goes without the guard: what answers it is not for this host. */
ALWAYS_INLINE int let_out_or_hold(struct __sk_buff *skb, struct work *w, struct segment *s)
{
	struct bpf_sock *sk = skb->sk;

	if (sk ? !has_connections(sk) || !is_of_netns(skb, sk) : !is_given_our_name(skb, w, s->classid))
		return TC_ACT_UNSPEC;
	if (!may_leave(skb, w, s)) {
		count(ACTION_HELD);
		return TC_ACT_SHOT;
	}
	count(ACTION_REUSED);
	finish_session(w, REASON_REUSED);
	return TC_ACT_UNSPEC;
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
	return find_in_line(w, line);
}

/* Whether a segment whose tuple is known needs a closer look: it has a vestige, and does not only leave a note. */
ALWAYS_INLINE bool is_wanted(struct __sk_buff *skb, struct work *w, u32 classid, enum parsed parsed, bool ingress)
{
	if (!ingress && (parsed == CLOSING || parsed == PARSED))
		note_wire(skb, w, classid);
	if (parsed != PARSED)
		return false;
	if (!ingress && is_looping(classid))
		take_tuple_of_socket(skb, w);
	return has_vestige(skb, w, classid);
}

/* A packet that a parse_in_place did not settle: whether it is a segment with a vestige, and its headers. */
ALWAYS_INLINE bool parse_fully(struct __sk_buff *skb, struct work *w, struct segment *s, u32 classid, enum parsed parsed,
			       bool ingress)
{
	enum parsed now;

	s->classid = classid;
	s->network = network_offset(classid);
	now = read_headers(skb, w, s);
	if (now == FRAGMENT && ingress)
		count(ACTION_FRAGMENT);
	if (now == UNPARSED && ingress)
		count(ACTION_UNPARSED);
	if (now != PARSED)
		return false;
	if (parsed == PARSED) /* found already */
		return true;
	if (is_ipv4(w))
		set_tuple4(&w->session.tuple, &s->in.ip4, &s->in.tcp, ingress);
	else
		set_tuple6(&w->session.tuple, &s->in.ip6, &s->in.tcp, ingress);
	return is_wanted(skb, w, classid, matter(s->in.tcp.flags, ingress), ingress);
}

/* Other programs do not get to see it: of TCX the kernel takes it for the packet's tc_index. */
ALWAYS_INLINE u32 take_classid(struct __sk_buff *skb)
{
	u32 classid = skb->tc_classid;

	skb->tc_classid = 0;
	return classid;
}

ALWAYS_INLINE int guard_packet(struct __sk_buff *skb, u32 classid, bool ingress)
{
	struct work *w = work_of(WORKER_GUARD);
	struct segment *s;
	enum parsed parsed;

	/* a VLAN's own device has the guard too; VLAN 0 is only a priority */
	if (!w || (skb->vlan_present && skb->vlan_tci & VLAN_ID))
		return TC_ACT_UNSPEC;
	if (!ingress && classid & DEVICE_WITNESSED)
		mend_answer(skb, w, classid);
	parsed = parse_in_place(skb, w, network_offset(classid), ingress);
	if (parsed == NOT_TCP)
		return TC_ACT_UNSPEC;
	if (parsed != ODD && !is_wanted(skb, w, classid, parsed, ingress))
		return TC_ACT_UNSPEC;
	s = the_segment();
	if (!s || !parse_fully(skb, w, s, classid, parsed, ingress))
		return TC_ACT_UNSPEC;
	return ingress ? handle_vestige(skb, w, s) : let_out_or_hold(skb, w, s);
}

/* What a VRF's sockets send to its own addresses is marked until it has passed TC (vrf_local_xmit, vrf_ip_rcv). */
ALWAYS_INLINE bool is_for_this_host(struct __sk_buff *skb, u32 classid)
{
	return skb->pkt_type == PACKET_HOST || (skb->pkt_type == PACKET_LOOPBACK && is_looping(classid));
}

int guard_ingress(struct __sk_buff *skb)
{
	u32 classid = take_classid(skb);

	return is_for_this_host(skb, classid) ? guard_packet(skb, classid, true) : TC_ACT_UNSPEC;
}

int guard_egress(struct __sk_buff *skb)
{
	return guard_packet(skb, take_classid(skb), false);
}
