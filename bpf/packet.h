/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a packet to a segment, and from a verdict to the segment that answers it.
 *
 * Each packet of each live connection is looked at, so the usual ones are read where they lie (glance). Only what is odd, or
 * has a vestige, is copied (read_headers), and only for a verdict are options and checksum read (read_rest).
 */
#ifndef TWCTL_PACKET_H
#define TWCTL_PACKET_H

#define ETHERNET_BYTES 14
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define PACKET_HOST 0

/* IPv6 next headers (RFC 8200 section 4) */
#define NEXT_HOP_BY_HOP 0
#define NEXT_FRAGMENT 44
#define NEXT_DESTINATION 60
#define EXTENSIONS 4 /* headers that are followed; a packet with more counts as one that cannot be parsed */

#define IPV4_FRAGMENT 0x3fff /* more fragments, or an offset */
#define IPV4_DONT_FRAGMENT 0x4000

#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define ACK 0x10

#define OPTION_END 0
#define OPTION_NOP 1
#define OPTION_TIMESTAMP 8
#define OPTION_TIMESTAMP_BYTES 10
#define OPTIONS_BYTES 40 /* the most that a header's length can say */
#define OPTIONS_SPACE 64

/* sk_buff.ip_summed: who has checked the checksum, or will fill it in (linux/skbuff.h). */
#define CHECKSUM_UNNECESSARY 1
#define CHECKSUM_PARTIAL 3

#define INVALIDATE_HASH 2 /* BPF_F_INVALIDATE_HASH */
#define RECOMPUTE_CSUM 1  /* BPF_F_RECOMPUTE_CSUM */

struct ipv4_header {
	u8 version_length, tos;
	u16 total_length, id, fragment;
	u8 ttl, protocol;
	u16 checksum;
	u32 source, destination;
};

struct ipv6_header {
	u32 version_class_label;
	u16 payload_length;
	u8 next_header, hop_limit;
	u32 source[4], destination[4];
};

struct tcp_header {
	u16 source, destination;
	u32 seq, ack;
	u8 offset, flags; /* offset: header length in words of 4 bytes, in the upper half */
	u16 window, checksum, urgent;
};

/* Headers as they lie in a packet: an IPv4 header fills the end of the space that an IPv6 header takes. */
struct headers {
	union {
		struct ipv6_header ip6;
		struct {
			u8 unused[sizeof(struct ipv6_header) - sizeof(struct ipv4_header)];
			struct ipv4_header ip4;
		};
	};
	struct tcp_header tcp;
	u8 options[OPTIONS_SPACE];
};

#define CHUNK_BYTES 128
#define CHUNKS 128 /* 16 kB: more comes only from offloads, which have checked the checksum */

struct segment {
	struct headers in, out;
	u32 network, transport;	/* where its headers are: bytes from the packet's start */
	u32 length;		/* TCP header and payload */
	u32 seq, end, ack;	/* end: seq and payload, SYN and FIN counted */
	u32 tsval, has_timestamp;
	u32 flags;
	u32 malformed;		/* its TCP options are, and so is no RST sent */
	u32 at, size;		/* a loop's position; one_to's own */
	u32 summed;		/* sk_buff.ip_summed */
	u64 sum;
	u64 device, net;	/* struct net_device and struct net */
	u8 chunk[CHUNK_BYTES];
	u32 pseudo[10];		/* pseudo-header for the checksum */
	u8 ethernet[2][6];
};

#define VLAN_ID 0xfff

BPF_PERCPU_ARRAY(segments, struct segment, 1);

ALWAYS_INLINE struct segment *the_segment(void)
{
	u32 zero = 0;

	return segments.lookup(&zero);
}

/* The class ID that the guard's filter was attached with says what the packet does not: the namespace's index, and whether
 * the device has Ethernet headers. So one program serves all namespaces, also where bpf_get_netns_cookie is missing. */
ALWAYS_INLINE u32 netns_of(u32 classid)
{
	return (classid >> 1) - 1;
}

ALWAYS_INLINE u32 network_offset(u32 classid)
{
	return classid & 1 ? ETHERNET_BYTES : 0;
}

/* What a TC program returns (linux/pkt_cls.h): go on with the next filter; drop. */
#define TC_ACT_UNSPEC -1
#define TC_ACT_SHOT 2

enum parsed { PARSED, NOT_TCP, FRAGMENT, UNPARSED, ODD };

/* The tuple of a segment that comes in (its destination is local), or goes out. */
ALWAYS_INLINE void set_tuple4(struct tuple *t, const struct ipv4_header *ip, const struct tcp_header *tcp, bool ingress)
{
	t->local[0] = ingress ? ip->destination : ip->source;
	t->remote[0] = ingress ? ip->source : ip->destination;
	t->local_port = ingress ? tcp->destination : tcp->source;
	t->remote_port = ingress ? tcp->source : tcp->destination;
}

ALWAYS_INLINE void set_tuple6(struct tuple *t, const struct ipv6_header *ip, const struct tcp_header *tcp, bool ingress)
{
	__builtin_memcpy(t->local, ingress ? ip->destination : ip->source, sizeof(t->local));
	__builtin_memcpy(t->remote, ingress ? ip->source : ip->destination, sizeof(t->remote));
	t->local_port = ingress ? tcp->destination : tcp->source;
	t->remote_port = ingress ? tcp->source : tcp->destination;
}

/* Going out, only a SYN that opens a connection matters. */
ALWAYS_INLINE bool matters(u8 flags, bool ingress)
{
	return ingress || (flags & (SYN | ACK)) == SYN;
}

/* The usual packet, where it lies: headers in one piece, no IP options or extension headers. NOT_TCP also where the
 * segment does not matter; ODD where a closer look is needed. */
ALWAYS_INLINE enum parsed glance4(struct __sk_buff *skb, struct work *w, u32 network, bool ingress)
{
	void *end = (void *)(long)skb->data_end;
	struct ipv4_header *ip = (void *)(long)skb->data + network;
	struct tcp_header *tcp = (void *)(ip + 1);

	if ((void *)(tcp + 1) > end || ip->version_length != 0x45)
		return ODD;
	if (ip->protocol != IPPROTO_TCP)
		return NOT_TCP;
	if (ip->fragment & bpf_htons(IPV4_FRAGMENT))
		return ODD;
	if (!matters(tcp->flags, ingress))
		return NOT_TCP;
	w->flags = tcp->flags;
	set_tuple4(&w->session.tuple, ip, tcp, ingress);
	return PARSED;
}

ALWAYS_INLINE enum parsed glance6(struct __sk_buff *skb, struct work *w, u32 network, bool ingress)
{
	void *end = (void *)(long)skb->data_end;
	struct ipv6_header *ip = (void *)(long)skb->data + network;
	struct tcp_header *tcp = (void *)(ip + 1);

	if ((void *)(tcp + 1) > end || ip->next_header != IPPROTO_TCP)
		return ODD;
	if (!matters(tcp->flags, ingress))
		return NOT_TCP;
	w->flags = tcp->flags;
	set_tuple6(&w->session.tuple, ip, tcp, ingress);
	return PARSED;
}

ALWAYS_INLINE enum parsed glance(struct __sk_buff *skb, struct work *w, u32 network, bool ingress)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		w->family = FAMILY_IPV4;
		return glance4(skb, w, network, ingress);
	}
	w->family = FAMILY_IPV6;
	return skb->protocol == bpf_htons(ETH_P_IPV6) ? glance6(skb, w, network, ingress) : NOT_TCP;
}

ALWAYS_INLINE enum parsed read_ipv4(struct __sk_buff *skb, struct segment *s)
{
	struct ipv4_header *ip = &s->in.ip4;
	u32 header;

	/* what is shorter than both headers is no TCP segment */
	if (bpf_skb_load_bytes(skb, s->network, ip, sizeof(*ip) + sizeof(struct tcp_header)) || ip->protocol != IPPROTO_TCP)
		return NOT_TCP;
	if (ip->fragment & bpf_htons(IPV4_FRAGMENT))
		return FRAGMENT;
	header = (ip->version_length & 15) * 4;
	if (ip->version_length >> 4 != 4 || header < sizeof(*ip) || s->network + bpf_ntohs(ip->total_length) > skb->len)
		return UNPARSED;
	s->transport = s->network + header;
	s->length = bpf_ntohs(ip->total_length) - header;
	if (header == sizeof(*ip))
		return PARSED;
	return bpf_skb_load_bytes(skb, s->transport, &s->in.tcp, sizeof(s->in.tcp)) ? UNPARSED : PARSED;
}

/* An extension header of 8 bytes whose options the stack would skip: padding, or what it does not know and may pass over
 * (RFC 8200 section 4.2: the upper two bits are 0). */
ALWAYS_INLINE bool is_harmless(const u8 *header)
{
	u8 first = header[2], second;

	if (!first) /* Pad1: then all the rest, in whatever pieces */
		return !(header[3] | header[4] | header[5] | header[6] | header[7]);
	second = header[3] < 4 ? header[4 + header[3]] : 0;
	return !(first & 0xc0) && header[3] <= 4 && !(header[3] < 4 && second & 0xc0);
}

/* Hop-by-hop options (which must come first), destination options and fragments that are the whole are skipped; with a
 * routing header the destination is not the last one. */
ALWAYS_INLINE enum parsed skip_extensions(struct __sk_buff *skb, struct segment *s)
{
	u8 next = s->in.ip6.next_header;

#pragma unroll
	for (int i = 0; i < EXTENSIONS; i++) {
		u8 header[8]; /* next header; length in units of 8 bytes, the first not counted; options or fragment offset */

		if (next == IPPROTO_TCP)
			break;
		if (bpf_skb_load_bytes(skb, s->transport, header, sizeof(header)))
			return UNPARSED;
		if (next == NEXT_FRAGMENT) {
			if (header[2] | (header[3] & 0xf9))
				return FRAGMENT;
		} else if ((next != NEXT_DESTINATION && (next != NEXT_HOP_BY_HOP || i)) || header[1] || !is_harmless(header)) {
			return UNPARSED;
		}
		next = header[0];
		s->transport += sizeof(header);
		s->length -= sizeof(header);
	}
	if (next != IPPROTO_TCP)
		return UNPARSED;
	return bpf_skb_load_bytes(skb, s->transport, &s->in.tcp, sizeof(s->in.tcp)) ? UNPARSED : PARSED;
}

ALWAYS_INLINE enum parsed read_ipv6(struct __sk_buff *skb, struct segment *s)
{
	struct ipv6_header *ip = &s->in.ip6;

	if (bpf_skb_load_bytes(skb, s->network, ip, sizeof(*ip) + sizeof(struct tcp_header)))
		return NOT_TCP;
	s->transport = s->network + sizeof(*ip);
	s->length = bpf_ntohs(ip->payload_length);
	if (s->transport + s->length > skb->len)
		return UNPARSED;
	if (ip->next_header == IPPROTO_TCP)
		return PARSED;
	if (ip->next_header != NEXT_HOP_BY_HOP && ip->next_header != NEXT_DESTINATION && ip->next_header != NEXT_FRAGMENT)
		return NOT_TCP;
	return skip_extensions(skb, s);
}

/* A copy of the headers, whatever they look like. */
ALWAYS_INLINE enum parsed read_headers(struct __sk_buff *skb, const struct work *w, struct segment *s)
{
	return is_ipv4(w) ? read_ipv4(skb, s) : read_ipv6(skb, s);
}

ALWAYS_INLINE u32 be32_at(const u8 *bytes)
{
	return (u32)bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

/* The kernel looks for keys in what it answers with a RST, and sends none where the options are malformed before less is left
 * than a key takes (tcp_do_parse_auth_options, since 6.7). */
#if defined(OFFSET_tcp_sock_ao_info)
#define LEAST_KEY_BYTES 5
#elif defined(OFFSET_tcp_sock_tcp_usec_ts)
#define LEAST_KEY_BYTES 18
#else
#define LEAST_KEY_BYTES 64
#endif

/* As tcp_parse_options does: the last timestamp option counts, and one that is cut off ends the list. */
ALWAYS_INLINE void read_timestamp(struct segment *s, u32 bytes)
{
	s->at = 0;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < OPTIONS_BYTES; i++) {
		u32 at = *(volatile u32 *)&s->at;
		u8 kind, size;

		if (at >= OPTIONS_BYTES - 1 || at >= bytes)
			return;
		kind = s->in.options[at];
		size = s->in.options[at + 1];
		if (kind == OPTION_END)
			return;
		if (kind == OPTION_NOP) {
			s->at = at + 1;
			continue;
		}
		if (size < 2 || at + size > bytes) {
			s->malformed = bytes - at >= LEAST_KEY_BYTES;
			return;
		}
		if (kind == OPTION_TIMESTAMP && size == OPTION_TIMESTAMP_BYTES && at <= OPTIONS_BYTES - OPTION_TIMESTAMP_BYTES) {
			s->tsval = be32_at(&s->in.options[at + 2]);
			s->has_timestamp = 1;
		}
		s->at = at + size;
	}
}

/* A size from 1 to `most`, a power of two. It passes through memory, or clang drops the mask that the verifier needs to see. */
ALWAYS_INLINE u32 one_to(u32 most, struct segment *s, u32 size)
{
	*(volatile u32 *)&s->size = size - 1;
	return (*(volatile u32 *)&s->size & (most - 1)) + 1;
}

/* What a verdict needs of a segment; false if it contradicts itself. */
ALWAYS_INLINE bool read_rest(struct __sk_buff *skb, struct segment *s)
{
	u32 header = (s->in.tcp.offset >> 4) * 4, options = header - sizeof(s->in.tcp);

	s->has_timestamp = s->malformed = 0;
	if (header < sizeof(s->in.tcp) || header > s->length || s->length > 0xffff)
		return false;
	if (options) {
		if (bpf_skb_load_bytes(skb, s->transport + sizeof(s->in.tcp), s->in.options, one_to(OPTIONS_SPACE, s, options)))
			return false;
		read_timestamp(s, options);
	}
	s->flags = s->in.tcp.flags;
	s->seq = bpf_ntohl(s->in.tcp.seq);
	s->ack = bpf_ntohl(s->in.tcp.ack);
	s->end = s->seq + s->length - header + !!(s->flags & SYN) + !!(s->flags & FIN);
	return true;
}

/* What struct __sk_buff does not show: its context is the kernel's own sk_buff. */
ALWAYS_INLINE bool read_buffer(struct __sk_buff *skb, struct segment *s)
{
	u8 summed = 0;

	if (READ(s->device, skb, sk_buff_dev) || READ(summed, skb, sk_buff_ip_summed) ||
	    READ(s->net, s->device, net_device_nd_net))
		return false;
	s->summed = bitfield(summed, BIT_sk_buff_ip_summed, BITS_sk_buff_ip_summed);
	return true;
}

/* RFC 9293 section 3.1, RFC 8200 section 8.1. The ends' order does not change the sum. */
ALWAYS_INLINE u64 pseudo_sum(const struct work *w, struct segment *s, u32 length)
{
	const struct tuple *t = &w->session.tuple;

	s->pseudo[8] = bpf_htonl(length);
	s->pseudo[9] = bpf_htonl(IPPROTO_TCP);
	if (is_ipv4(w)) {
		s->pseudo[6] = t->local[0];
		s->pseudo[7] = t->remote[0];
		return bpf_csum_diff(NULL, 0, &s->pseudo[6], 16, 0);
	}
	__builtin_memcpy(&s->pseudo[0], t->local, sizeof(t->local));
	__builtin_memcpy(&s->pseudo[4], t->remote, sizeof(t->remote));
	return bpf_csum_diff(NULL, 0, s->pseudo, sizeof(s->pseudo), 0);
}

ALWAYS_INLINE u16 fold(u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* TIME_WAIT does not answer to a segment that is damaged. Where a device or an offload vouches for it, it is not. */
ALWAYS_INLINE bool checksum_is_right(struct __sk_buff *skb, const struct work *w, struct segment *s)
{
	if (s->summed == CHECKSUM_UNNECESSARY || s->summed == CHECKSUM_PARTIAL)
		return true;
	s->sum = pseudo_sum(w, s, s->length);
	s->at = 0;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < CHUNKS; i++) {
		u32 at = *(volatile u32 *)&s->at, left = s->length - at;

		if (at >= s->length)
			return fold(s->sum) == 0xffff;
		__builtin_memset(s->chunk, 0, CHUNK_BYTES);
		if (bpf_skb_load_bytes(skb, s->transport + at, s->chunk, one_to(CHUNK_BYTES, s, left < CHUNK_BYTES ? left : CHUNK_BYTES)))
			return false;
		s->sum = bpf_csum_diff(NULL, 0, (u32 *)s->chunk, CHUNK_BYTES, s->sum);
		s->at = at + CHUNK_BYTES;
	}
	return false;
}

/* What the IP layer drops before TCP sees it: a wrong checksum of the IPv4 header, options that run over its end. */
ALWAYS_INLINE bool is_sound(struct __sk_buff *skb, const struct work *w, struct segment *s)
{
	u32 header = s->transport - s->network;

	if (!is_ipv4(w))
		return true;
	__builtin_memset(s->chunk, 0, CHUNK_BYTES);
	if (bpf_skb_load_bytes(skb, s->network, s->chunk, one_to(OPTIONS_SPACE, s, header)))
		return false;
	if (fold(bpf_csum_diff(NULL, 0, (u32 *)s->chunk, OPTIONS_SPACE, 0)) != 0xffff)
		return false;
	s->at = sizeof(struct ipv4_header);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < OPTIONS_BYTES; i++) {
		u32 at = *(volatile u32 *)&s->at;
		u8 kind, size;

		if (at >= header || at >= OPTIONS_SPACE)
			return true;
		kind = s->chunk[at];
		size = kind == OPTION_NOP ? 1 : s->chunk[at + 1];
		if (kind == OPTION_END)
			return true;
		if (!size || (kind != OPTION_NOP && size < 2) || at + size > header)
			return false;
		s->at = at + size;
	}
	return true;
}

/* Fields of the answer that the verdict decides. */
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

ALWAYS_INLINE int swap_ethernet(struct __sk_buff *skb, struct segment *s)
{
	if (bpf_skb_load_bytes(skb, 0, s->ethernet, sizeof(s->ethernet)))
		return -1;
	return bpf_skb_store_bytes(skb, 0, s->ethernet[1], 6, 0) | bpf_skb_store_bytes(skb, 6, s->ethernet[0], 6, 0);
}

ALWAYS_INLINE int store_headers(struct __sk_buff *skb, const struct work *w, struct segment *s, u32 transport)
{
	u64 flags = INVALIDATE_HASH | RECOMPUTE_CSUM;
	int failed = is_ipv4(w) ? bpf_skb_store_bytes(skb, s->network, &s->out.ip4, sizeof(s->out.ip4), flags) :
				  bpf_skb_store_bytes(skb, s->network, &s->out.ip6, sizeof(s->out.ip6), flags);

	return failed | bpf_skb_store_bytes(skb, transport, &s->out.tcp, sizeof(s->out.tcp), flags);
}

/* Turns the packet into its answer and sends it back out of the device that it came in by. Returns what TC is to do. */
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
	if (bpf_skb_change_tail(skb, transport + tcp_bytes, 0) || (s->network && swap_ethernet(skb, s)) ||
	    store_headers(skb, w, s, transport))
		return TC_ACT_SHOT;
	if (options && bpf_skb_store_bytes(skb, transport + sizeof(struct tcp_header), s->out.options, TIMESTAMPS_BYTES,
					   INVALIDATE_HASH | RECOMPUTE_CSUM))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, 0);
}

#endif
