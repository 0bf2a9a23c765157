/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the IP layer and TCP drop without an answer: a damaged segment. */
#ifndef TWCTL_GUARD_CHECKSUM_H
#define TWCTL_GUARD_CHECKSUM_H

#include "guard/parse.h"
#include "guard/segment.h"
#include "table.h"

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

#define IP_OPTION_LOOSE_ROUTE 131
#define IP_OPTION_STRICT_ROUTE 137

/* What the IP layer drops before TCP sees it: a wrong checksum of the IPv4 header, options that run over its end, and routes
 * that the sender chose (accept_source_route is 0 unless somebody wants it). */
ALWAYS_INLINE bool is_sound(struct __sk_buff *skb, const struct work *w, struct segment *s)
{
	u32 header = s->transport - s->network;

	if (!is_ipv4(w))
		return true;
	__builtin_memset(s->chunk, 0, OPTIONS_SPACE);
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
		if (kind == IP_OPTION_LOOSE_ROUTE || kind == IP_OPTION_STRICT_ROUTE)
			return false;
		s->at = at + size;
	}
	return true;
}

#endif
