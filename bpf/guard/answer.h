/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a decision to the segment that answers: the packet is rewritten in place and sent to the peer. */
#ifndef TWCTL_GUARD_ANSWER_H
#define TWCTL_GUARD_ANSWER_H

#include "guard/checksum.h"
#include "guard/route.h"
#include "guard/segment.h"
#include "kernel.h"
#include "lookup.h"
#include "table.h"

#define NANOSECONDS_A_MILLISECOND 1000000
#define ECN_IPV4 0x3u
#define ECN_IPV6 0x300000u
#define DSCP_IPV6 0xfc00000u
#define FLOW_LABEL 0xfffffu
#define NANOSECONDS_A_MICROSECOND 1000

/* Fields of the answer that follow from the decision. */
struct answer {
	u32 seq, ack;
	u32 tsval, tsecr;	/* no timestamp option if tsecr is 0 */
	u32 marking;
	u16 window;
	u8 flags;
};

ALWAYS_INLINE void write_ipv4(const struct work *w, struct segment *s, u32 marking, u32 tcp_bytes)
{
	struct ipv4_header *ip = &s->out.ip4;
	u8 ttl = 64;

	READ(ttl, s->net, net_ipv4_sysctl_ip_default_ttl);
	ip->version_length = 0x45;
	ip->tos = marking;
	ip->total_length = bpf_htons(sizeof(*ip) + tcp_bytes);
	ip->id = 0;
	ip->fragment = bpf_htons(IPV4_DONT_FRAGMENT);
	ip->ttl = ttl;
	ip->protocol = IPPROTO_TCP;
	ip->checksum = 0;
	ip->source = w->session.tuple.local[0];
	ip->destination = w->session.tuple.remote[0];
	ip->checksum = ~fold(bpf_csum_diff(NULL, 0, (u32 *)ip, sizeof(*ip), 0));
}

ALWAYS_INLINE void write_ipv6(const struct work *w, struct segment *s, u32 marking, u32 tcp_bytes)
{
	struct ipv6_header *ip = &s->out.ip6;
	u64 inet6 = 0;
	int hops = 64;

	READ(inet6, s->device, net_device_ip6_ptr);
	READ(hops, inet6, inet6_dev_cnf_hop_limit);
	ip->version_class_label = bpf_htonl(0x60000000 | marking);
	ip->payload_length = bpf_htons(tcp_bytes);
	ip->next_header = IPPROTO_TCP;
	ip->hop_limit = hops;
	__builtin_memcpy(ip->source, w->session.tuple.local, sizeof(ip->source));
	__builtin_memcpy(ip->destination, w->session.tuple.remote, sizeof(ip->destination));
}

#define TIMESTAMPS_BYTES 12 /* two NOPs and the option */

ALWAYS_INLINE void write_tcp(const struct work *w, struct segment *s, const struct answer *a, u32 tcp_bytes)
{
	struct tcp_header *tcp = &s->out.tcp;
	u32 *options = (u32 *)s->out.options;
	u64 sum = pseudo_sum(w, s, tcp_bytes);

	tcp->source = w->session.tuple.local_port;
	tcp->destination = w->session.tuple.remote_port;
	tcp->seq = bpf_htonl(a->seq);
	tcp->ack = bpf_htonl(a->ack);
	tcp->offset = tcp_bytes / 4 << 4;
	tcp->flags = a->flags;
	tcp->window = bpf_htons(a->window);
	tcp->checksum = 0;
	tcp->urgent = 0;
	options[0] = bpf_htonl(OPTION_NOP << 24 | OPTION_NOP << 16 | OPTION_TIMESTAMP << 8 | OPTION_TIMESTAMP_BYTES);
	options[1] = bpf_htonl(a->tsval);
	options[2] = bpf_htonl(a->tsecr);
	if (s->summed == CHECKSUM_PARTIAL) { /* whoever sends the packet on adds the rest */
		tcp->checksum = fold(sum);
		return;
	}
	sum = bpf_csum_diff(NULL, 0, (u32 *)tcp, sizeof(*tcp), sum);
	if (a->tsecr)
		sum = bpf_csum_diff(NULL, 0, options, TIMESTAMPS_BYTES, sum);
	tcp->checksum = ~fold(sum);
}

ALWAYS_INLINE int store_headers(struct __sk_buff *skb, const struct work *w, struct segment *s, u32 transport)
{
	u64 flags = INVALIDATE_HASH | RECOMPUTE_CSUM;
	int failed = is_ipv4(w) ? bpf_skb_store_bytes(skb, s->network, &s->out.ip4, sizeof(s->out.ip4), flags) :
				  bpf_skb_store_bytes(skb, s->network, &s->out.ip6, sizeof(s->out.ip6), flags);

	return failed | bpf_skb_store_bytes(skb, transport, &s->out.tcp, sizeof(s->out.tcp), flags);
}

/* Turns the packet into its answer and sends it. Returns what TC is to do. */
ALWAYS_INLINE int send_answer(struct __sk_buff *skb, const struct work *w, struct segment *s, const struct answer *a)
{
	u32 options = a->tsecr ? TIMESTAMPS_BYTES : 0, tcp_bytes = sizeof(struct tcp_header) + options;
	u32 transport = s->network + (is_ipv4(w) ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header));

	if (skb->vlan_present && bpf_skb_vlan_pop(skb))
		return TC_ACT_SHOT;
	/* The answer has no IP options. What is in their place goes, so that the TCP header stays where the kernel knows it. */
	if (transport != s->transport && bpf_skb_adjust_room(skb, (s32)(transport - s->transport), BPF_ADJ_ROOM_MAC, 0))
		return TC_ACT_SHOT;
	if (is_ipv4(w))
		write_ipv4(w, s, a->marking, tcp_bytes);
	else
		write_ipv6(w, s, a->marking, tcp_bytes);
	write_tcp(w, s, a, tcp_bytes);
	if (bpf_skb_change_tail(skb, transport + tcp_bytes, 0) || store_headers(skb, w, s, transport))
		return TC_ACT_SHOT;
	if (options && bpf_skb_store_bytes(skb, transport + sizeof(struct tcp_header), s->out.options, TIMESTAMPS_BYTES,
					   INVALIDATE_HASH | RECOMPUTE_CSUM))
		return TC_ACT_SHOT;
	s->sent = is_looping(s->classid) ? 0 : tcp_bytes;
	s->sent_family = w->family;
	s->sent_netns = netns_of(s->classid);
	s->sent_device = device_to_peer(skb, w, s);
	return send_to_peer(skb, w, s);
}

/* Whether a packet is the last answer of this CPU, but for what a translation changes. (Its socket does not tell: it can still have
 * that of who sent the segment, over a veth or a tun device.) */
ALWAYS_INLINE bool is_answer(struct __sk_buff *skb, const struct work *w, struct segment *s, u32 transport)
{
	const struct tcp_header *in = &s->in.tcp, *out = &s->out.tcp;

	if (skb->protocol != (is_ipv4(w) ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6)) || skb->len != transport + s->sent)
		return false;
	if (bpf_skb_load_bytes(skb, transport, &s->in.tcp, sizeof(s->in.tcp)))
		return false;
	return in->seq == out->seq && in->ack == out->ack && in->flags == out->flags && in->window == out->window;
}

ALWAYS_INLINE bool has_own_tuple(struct __sk_buff *skb, const struct work *w, struct segment *s)
{
	const struct headers *in = &s->in, *out = &s->out;

	if (in->tcp.source != out->tcp.source || in->tcp.destination != out->tcp.destination)
		return false;
	if (is_ipv4(w))
		return !bpf_skb_load_bytes(skb, s->network, &s->in.ip4, sizeof(s->in.ip4)) &&
		       in->ip4.source == out->ip4.source && in->ip4.destination == out->ip4.destination;
	return !bpf_skb_load_bytes(skb, s->network, &s->in.ip6, sizeof(s->in.ip6)) &&
	       is_same6(in->ip6.source, out->ip6.source) && is_same6(in->ip6.destination, out->ip6.destination);
}

/* An answer is made for the wire. A program before the guard that translates what sockets send does that to the answer, too: the
 * guard, which is last, gives it its own headers back. */
ALWAYS_INLINE void mend_answer(struct __sk_buff *skb, struct work *w, u32 classid)
{
	struct segment *s = the_segment();
	u32 transport;

	if (!s || !s->sent || s->sent_device != skb->ifindex || s->sent_netns != netns_of(classid))
		return;
	w->family = s->sent_family;
	s->network = network_offset(classid);
	transport = s->network + (is_ipv4(w) ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header));
	if (!is_answer(skb, w, s, transport))
		return;
	s->sent = 0;
	if (!has_own_tuple(skb, w, s))
		store_headers(skb, w, s, transport);
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

#endif
