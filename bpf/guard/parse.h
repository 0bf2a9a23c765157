/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a packet to a segment.
 *
 * Each packet of each live connection is looked at, so the usual ones are read where they lie (parse_in_place). Only what is
 * unusual, or has a vestige, is copied (read_headers), and only for a decision are options read (read_rest).
 */
#ifndef TWCTL_GUARD_PARSE_H
#define TWCTL_GUARD_PARSE_H

#include "guard/segment.h"
#include "kernel.h"
#include "table.h"

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

/* Going out, only a SYN that opens a connection and a FIN matter. */
ALWAYS_INLINE enum parsed matter(u8 flags, bool ingress)
{
	if (ingress || (flags & (SYN | ACK)) == SYN)
		return PARSED;
	return flags & FIN ? CLOSING : NOT_TCP;
}

/* The usual packet, where it lies: headers in one piece, no IP options or extension headers. NOT_TCP also where the
 * segment does not matter; ODD where a closer look is needed. */
ALWAYS_INLINE enum parsed parse_in_place4(struct __sk_buff *skb, struct work *w, u32 network, bool ingress)
{
	void *end = (void *)(long)skb->data_end;
	struct ipv4_header *ip = (void *)(long)skb->data + network;
	struct tcp_header *tcp = (void *)(ip + 1);
	enum parsed matters;

	if ((void *)(tcp + 1) > end || ip->version_length != 0x45)
		return ODD;
	if (ip->protocol != IPPROTO_TCP)
		return NOT_TCP;
	if (ip->fragment & bpf_htons(IPV4_FRAGMENT))
		return ODD;
	matters = matter(tcp->flags, ingress);
	if (matters != NOT_TCP)
		set_tuple4(&w->session.tuple, ip, tcp, ingress);
	return matters;
}

ALWAYS_INLINE enum parsed parse_in_place6(struct __sk_buff *skb, struct work *w, u32 network, bool ingress)
{
	void *end = (void *)(long)skb->data_end;
	struct ipv6_header *ip = (void *)(long)skb->data + network;
	struct tcp_header *tcp = (void *)(ip + 1);
	enum parsed matters;

	if ((void *)(tcp + 1) > end || ip->next_header != IPPROTO_TCP)
		return ODD;
	matters = matter(tcp->flags, ingress);
	if (matters != NOT_TCP)
		set_tuple6(&w->session.tuple, ip, tcp, ingress);
	return matters;
}

ALWAYS_INLINE enum parsed parse_in_place(struct __sk_buff *skb, struct work *w, u32 network, bool ingress)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		w->family = FAMILY_IPV4;
		return parse_in_place4(skb, w, network, ingress);
	}
	w->family = FAMILY_IPV6;
	return skb->protocol == bpf_htons(ETH_P_IPV6) ? parse_in_place6(skb, w, network, ingress) : NOT_TCP;
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

/* What a decision needs of a segment; false if it contradicts itself. */
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

#endif
