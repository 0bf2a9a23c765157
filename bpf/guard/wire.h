/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What leaves this host: its tuple, beside that of the socket which sent it. */
#ifndef TWCTL_GUARD_WIRE_H
#define TWCTL_GUARD_WIRE_H

#include "guard/segment.h"
#include "kernel.h"
#include "table.h"
#include "wire.h"

#define SOCK_STREAM 1
#define ROUTE_NOT_COUNTED 1ULL /* SKB_DST_NOREF: the rest of sk_buff._skb_refdst is a pointer to struct dst_entry */

/* Whether a tuple is that of a socket. One that is mapped to IPv6 has the IPv4 addresses, too. */
ALWAYS_INLINE bool is_of_socket(const struct work *w, const struct tuple *t, struct bpf_sock *sk)
{
	u32 difference = (bpf_htons(sk->src_port) ^ t->local_port) | ((u16)sk->dst_port ^ t->remote_port);

	if (is_ipv4(w))
		return !(difference | (sk->src_ip4 ^ t->local[0]) | (sk->dst_ip4 ^ t->remote[0]));
	difference |= (sk->src_ip6[0] ^ t->local[0]) | (sk->dst_ip6[0] ^ t->remote[0]);
	difference |= (sk->src_ip6[1] ^ t->local[1]) | (sk->dst_ip6[1] ^ t->remote[1]);
	difference |= (sk->src_ip6[2] ^ t->local[2]) | (sk->dst_ip6[2] ^ t->remote[2]);
	return !(difference | (sk->src_ip6[3] ^ t->local[3]) | (sk->dst_ip6[3] ^ t->remote[3]));
}

/* Whether a socket belongs to the network namespace of the device: with ipvlan it may be another's. (The verifier allows no pointer
 * to a socket's inside, so all is read from its beginning.) */
ALWAYS_INLINE bool is_of_netns(struct __sk_buff *skb, struct bpf_sock *sk)
{
	u64 device = 0, net = 0, socket[OFFSET_sock_common_skc_net / 8 + 1];

	return !READ(device, skb, sk_buff_dev) && !READ(net, device, net_device_nd_net) &&
	       !read_kernel(socket, sizeof(socket), sk) && socket[OFFSET_sock_common_skc_net / 8] == net;
}

/* Whether a socket has connections; those of whoever writes packets himself (raw, packet, tap) have none. */
ALWAYS_INLINE bool has_connections(struct bpf_sock *sk)
{
	sk = bpf_sk_fullsock(sk);
	return sk && sk->type == SOCK_STREAM;
}

ALWAYS_INLINE bool has_address_of(struct __sk_buff *skb, u64 device)
{
	u16 own[3], source[3];
	u64 address = 0;

	if (READ(address, device, net_device_dev_addr) || read_kernel(own, sizeof(own), (void *)address) ||
	    bpf_skb_load_bytes(skb, sizeof(own), source, sizeof(source)))
		return false;
	return !((own[0] ^ source[0]) | (own[1] ^ source[1]) | (own[2] ^ source[2]));
}

/* Whether this namespace has forwarded a packet: it came in by a device, and its route leads to the one that it leaves by. What
 * another's device sends by this one (macvlan, ipvlan, VLAN) has the route to that. What a program has redirected has none, but the
 * device's hardware address; so can have what another sends by it, but then a handler tells apart what comes in for him. */
ALWAYS_INLINE bool is_forwarded_here(struct __sk_buff *skb, u32 classid)
{
	u64 device = 0, route = 0, leads_to = 0, handler = 0;

	if (READ(device, skb, sk_buff_dev) || READ(route, skb, sk_buff__skb_refdst))
		return false;
	route &= ~ROUTE_NOT_COUNTED;
	if (route)
		return skb->ingress_ifindex && !READ(leads_to, route, dst_entry_dev) && leads_to == device;
	if (!(classid & DEVICE_ETHERNET))
		return true;
	return !READ(handler, device, net_device_rx_handler) && !handler && has_address_of(skb, device);
}

/* Whether a note says just what a packet would: that of a FIN nearly always does, after its SYN's. */
ALWAYS_INLINE bool is_noted(struct __sk_buff *skb, const struct work *w, u32 classid, struct bpf_sock *sk, const struct wire *wire)
{
	u32 difference = (wire->socket_port ^ bpf_htons(sk->src_port)) | (wire->socket_remote_port ^ (u16)sk->dst_port);

	return !(difference | (wire->device ^ skb->ifindex) | (wire->looping ^ is_looping(classid))) && has_wire(w, wire);
}

ALWAYS_INLINE void leave_unnoted(u32 classid)
{
	u32 index = netns_of(classid);
	struct witness *witness = witnesses.lookup(&index);

	count(ACTION_UNNOTED);
	if (witness)
		__sync_fetch_and_add(&witness->unnoted, 1);
}

/* A SYN or a FIN leaves: where its tuple is not that of its socket, that is noted; where it is WITNESSED, in any case. */
ALWAYS_INLINE void note_wire(struct __sk_buff *skb, const struct work *w, u32 classid)
{
	const struct tuple *t = &w->session.tuple;
	struct bpf_sock *sk = skb->sk;
	struct wire *wire;

	if (!sk)
		return;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return;
	wire = wires.sk_storage_get(sk, NULL, 0);
	if (is_of_socket(w, t, sk) && !(classid & DEVICE_WITNESSED)) {
		/* of the connection before: connect() may use a socket again */
		if (wire && is_of_netns(skb, sk))
			wires.sk_storage_delete(sk);
		return;
	}
	if ((wire && is_noted(skb, w, classid, sk, wire)) || !is_of_netns(skb, sk))
		return;
	wire = wires.sk_storage_get(sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!wire) {
		leave_unnoted(classid);
		return;
	}
	__builtin_memcpy(wire->local, t->local, sizeof(wire->local));
	__builtin_memcpy(wire->remote, t->remote, sizeof(wire->remote));
	wire->local_port = t->local_port;
	wire->remote_port = t->remote_port;
	wire->socket_port = bpf_htons(sk->src_port);
	wire->socket_remote_port = (u16)sk->dst_port;
	wire->family = w->family;
	wire->device = skb->ifindex;
	wire->looping = is_looping(classid);
	wire->magic = WIRE_MAGIC;
}

/* What comes back in by the device that it left by has been translated for its receiver on the way out, and is translated back for
 * its sender on the way out, too: there a session is known by its socket's tuple. */
ALWAYS_INLINE void take_tuple_of_socket(struct __sk_buff *skb, struct work *w)
{
	struct tuple *t = &w->session.tuple;
	struct bpf_sock *sk = skb->sk;

	if (!sk)
		return;
	t->local_port = bpf_htons(sk->src_port);
	t->remote_port = (u16)sk->dst_port;
	if (is_ipv4(w)) {
		t->local[0] = sk->src_ip4;
		t->remote[0] = sk->dst_ip4;
		KEEP_APART; /* of addresses within a socket, too, which the verifier does not allow */
		return;
	}
#define TAKE(i) (t->local[i] = sk->src_ip6[i], t->remote[i] = sk->dst_ip6[i])
	TAKE(0), TAKE(1), TAKE(2), TAKE(3);
#undef TAKE
}

#endif
