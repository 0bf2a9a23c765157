/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet's headers, and the working memory in which the guard keeps a segment and its answer.
 */
#ifndef TWCTL_GUARD_SEGMENT_H
#define TWCTL_GUARD_SEGMENT_H

#include "table.h"

#define ETHERNET_BYTES 14
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define PACKET_HOST 0 /* sk_buff.pkt_type (linux/if_packet.h) */
#define PACKET_LOOPBACK 5

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

/* Whether a segment opens a connection, by its flags. */
ALWAYS_INLINE bool opens(u32 flags)
{
	return (flags & (SYN | RST | ACK)) == SYN;
}

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

#define CHUNK_BYTES 512 /* the most that bpf_csum_diff() takes */
#define CHUNKS 128	/* 64 kB: all that an IP packet can have */

struct segment {
	struct headers in, out;
	u32 classid;		/* of the filter */
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
	struct bpf_fib_lookup route; /* to the peer, if it is known */
	struct bpf_redir_neigh hop;
	u32 way;
	u32 sent, sent_family;	/* the answer in `out`, until it is seen to leave: bytes of TCP (0: none), and its family */
	u32 sent_netns, sent_device; /* where it leaves */
};

#define VLAN_ID 0xfff

BPF_PERCPU_ARRAY(segments, struct segment, 1);

ALWAYS_INLINE struct segment *the_segment(void)
{
	u32 zero = 0;

	return segments.lookup(&zero);
}

ALWAYS_INLINE u32 netns_of(u32 classid)
{
	return (classid >> DEVICE_BITS) - 1;
}

ALWAYS_INLINE u32 network_offset(u32 classid)
{
	return classid & DEVICE_ETHERNET ? ETHERNET_BYTES : 0;
}

ALWAYS_INLINE bool is_looping(u32 classid)
{
	return classid & DEVICE_LOOPS;
}

ALWAYS_INLINE bool is_in_vrf(u32 classid)
{
	return classid & DEVICE_IN_VRF;
}

/* What a TC program returns (linux/pkt_cls.h): go on with the next filter; drop. */
#define TC_ACT_UNSPEC -1
#define TC_ACT_SHOT 2

/* What is known of the route to a peer: all, that there is none, or nothing. */
enum way { WAY_KNOWN, WAY_NONE, WAY_UNKNOWN };

/* CLOSING: as PARSED, a FIN that leaves. */
enum parsed { PARSED, CLOSING, NOT_TCP, FRAGMENT, UNPARSED, ODD };

#endif
