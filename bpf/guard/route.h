/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The route to the peer, which says two things: whether the kernel would take a segment of that peer from this device, and
 * where an answer has to go.
 *
 * The guard works before the kernel has looked at a segment's source. What ip_route_input_slow(), fib_validate_source() or
 * ip6_rcv_core() would drop is none of its business: it passes, and so has no effect.
 */
#ifndef TWCTL_GUARD_ROUTE_H
#define TWCTL_GUARD_ROUTE_H

#include "guard/conntrack.h"
#include "guard/segment.h"
#include "kernel.h"
#include "table.h"

#define LOOPBACK_DEVICE 1 /* LOOPBACK_IFINDEX: lo, in every namespace */
#define ANSWER_BYTES 72	  /* the longest: IPv6 header, TCP header, timestamps */

/* rp_filter: the most of what holds for all devices and for this one (linux/ip.h: IPV4_DEVCONF_RP_FILTER is 8, from 1 on). */
#define RP_FILTER_OFFSET (7 * sizeof(u32))
#define RP_FILTER_STRICT 1

/* bcc declares this one with three arguments. */
static long (*redirect_neigh)(u32 device, struct bpf_redir_neigh *hop, int size, u64 flags) = (void *)BPF_FUNC_redirect_neigh;

/* Looks up the route that an answer of the kernel would take, into s->route. The helper does so only for a device that
 * forwards. lo does (modes/sysctls.py), and a packet "from lo" is what the kernel itself calls one that is sent by this host.
 * IPv6 cannot have that without the loss of default routes that came by advertisements (addrconf_fixup_forwarding): there it
 * is unknown, unless the host is a router. It is in a VRF as well: lo does not see the VRF's table. */
ALWAYS_INLINE enum way find_way(struct __sk_buff *skb, const struct work *w, struct segment *s)
{
	const struct tuple *t = &w->session.tuple;
	struct bpf_fib_lookup *route = &s->route;
	long result;

	if (is_in_vrf(s->classid) || (!is_ipv4(w) && is_link_local(t->remote)))
		return WAY_UNKNOWN;
	__builtin_memset(route, 0, sizeof(*route));
	route->l4_protocol = IPPROTO_TCP;
	route->sport = t->local_port;
	route->dport = t->remote_port;
	route->tot_len = ANSWER_BYTES;
	route->ifindex = LOOPBACK_DEVICE;
	if (is_ipv4(w)) {
		route->family = AF_INET;
		route->ipv4_src = t->local[0];
		route->ipv4_dst = t->remote[0];
	} else {
		route->family = AF_INET6;
		__builtin_memcpy(route->ipv6_src, t->local, sizeof(t->local));
		__builtin_memcpy(route->ipv6_dst, t->remote, sizeof(t->remote));
	}
	result = bpf_fib_lookup(skb, route, sizeof(*route), 0);
	if (result == BPF_FIB_LKUP_RET_SUCCESS || result == BPF_FIB_LKUP_RET_NO_NEIGH)
		return WAY_KNOWN;
	return result > 0 && result <= BPF_FIB_LKUP_RET_NOT_FWDED ? WAY_NONE : WAY_UNKNOWN;
}

ALWAYS_INLINE bool is_strict(const struct segment *s)
{
	u64 all = 0, own = 0;
	u32 of_all = 0, of_own = 0;

	READ(all, s->net, net_ipv4_devconf_all);
	READ(own, s->device, net_device_ip_ptr);
	read_kernel(&of_all, sizeof(of_all), (u8 *)all + OFFSET_ipv4_devconf_data + RP_FILTER_OFFSET);
	read_kernel(&of_own, sizeof(of_own), (u8 *)own + OFFSET_in_device_cnf_data + RP_FILTER_OFFSET);
	return (of_all > of_own ? of_all : of_own) == RP_FILTER_STRICT;
}

/* Both ends are this host, whatever the routes say. */
ALWAYS_INLINE bool is_within_host(const struct work *w)
{
	const struct tuple *t = &w->session.tuple;

	if (is_ipv4(w))
		return t->remote[0] == t->local[0] || is_loopback4(t->remote[0]) || is_loopback4(t->local[0]);
	return is_same6(t->remote, t->local) || is_loopback6(t->remote) || is_loopback6(t->local);
}

/* Whether the kernel would take a segment of this peer from this device. The host's own addresses are believed on lo only,
 * and on a VRF's device, which is its lo; there is no route to them that leaves the host. */
ALWAYS_INLINE bool is_believed(struct __sk_buff *skb, const struct work *w, struct segment *s)
{
	if (is_looping(s->classid))
		return true;
	if (is_within_host(w))
		return false;
	s->way = find_way(skb, w, s);
	if (s->way == WAY_NONE)
		return false;
	if (!is_ipv4(w))
		return w->session.device != LOOPBACK_DEVICE;
	return s->way == WAY_UNKNOWN || s->route.ifindex == skb->ifindex || !is_strict(s);
}

/* The device that an answer leaves by. Where the route is not known, the kernel looks for one by the device of the session's own
 * socket, or else by that of the segment. */
ALWAYS_INLINE u32 device_to_peer(struct __sk_buff *skb, const struct work *w, const struct segment *s)
{
	if (is_looping(s->classid))
		return skb->ifindex;
	if (s->way != WAY_UNKNOWN)
		return s->route.ifindex;
	return !is_ipv4(w) && w->session.device ? w->session.device : skb->ifindex;
}

/* Sends the packet to the peer: its next hop is asked for as by any packet of the kernel's. */
ALWAYS_INLINE int send_to_peer(struct __sk_buff *skb, const struct work *w, struct segment *s)
{
	u32 device = device_to_peer(skb, w, s);

	/* What is translated was tracked on its way out. Its answer comes in anew, without that, and so is translated as what it is. */
	if (is_looping(s->classid))
		return bpf_redirect(device, device == LOOPBACK_DEVICE && translation_of(skb, SOURCE_TRANSLATED) ? BPF_F_INGRESS : 0);
	/* the helper takes away an Ethernet header, and puts one before the packet if the other device has one */
	if (!s->network && bpf_skb_change_head(skb, ETHERNET_BYTES, 0))
		return TC_ACT_SHOT;
	if (s->way == WAY_UNKNOWN)
		return redirect_neigh(device, NULL, 0, 0);
	s->hop.nh_family = s->route.family;
	__builtin_memcpy(s->hop.ipv6_nh, s->route.ipv6_dst, sizeof(s->hop.ipv6_nh));
	return redirect_neigh(device, &s->hop, sizeof(s->hop), 0);
}

#endif
