/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a kernel socket to a session: which namespace, which tuple, which class, which sequence state, how long it lives.
 *
 * struct sock and struct inet_timewait_sock both begin with struct sock_common, so one function reads the tuple of either.
 */
#ifndef TWCTL_OBSERVE_SOCKET_H
#define TWCTL_OBSERVE_SOCKET_H

#include "kernel.h"
#include "observe/view.h"
#include "table.h"

#define SOCK_DEAD 1 /* bits of sock_common.skc_flags: orphaned */
#define SOCK_DONE 2 /* the peer's FIN was processed */

#define INET_FLAGS_TRANSPARENT 15 /* net/inet_sock.h; a bit field of its own before 6.6 */

#define TIME_WAIT_JIFFIES (60 * HZ) /* the kernel's TCP_TIMEWAIT_LEN */

BPF_HASH(namespaces, u64, u32, NAMESPACES); /* cookie of an enrolled network namespace -> NETNS_* */
BPF_F_TABLE("array", u32, struct enrolment, enrolments, NAMESPACES, BPF_F_MMAPABLE);
BPF_LPM_TRIE(classes_ipv4, struct prefix4, u32, PREFIXES);
BPF_LPM_TRIE(classes_ipv6, struct prefix6, u32, PREFIXES);

/* The front of struct sock_common, read at once: ten fields for the price of one. */
struct common {
	u8 bytes[(OFFSET_sock_common_skc_flags + 15) & ~7] __attribute__((aligned(8)));
};

#define COMMON(common, type, field) (*(type *)&(common)->bytes[OFFSET_sock_common_##field])

ALWAYS_INLINE int read_common(struct common *common, const void *sk)
{
	return read_kernel(common, sizeof(*common), sk);
}

/* The socket's namespace (NETNS_*); NULL if it is not enrolled. */
ALWAYS_INLINE u32 *enrolled(const struct common *common)
{
	u64 net = COMMON(common, u64, skc_net), cookie = 0;

	if (read_kernel(&cookie, sizeof(cookie), (void *)net + OFFSET_net_net_cookie))
		return NULL;
	return namespaces.lookup(&cookie);
}

ALWAYS_INLINE bool is_mapped(const u32 *address)
{
	return !address[0] && !address[1] && address[2] == bpf_htonl(0xffff);
}

/* Dual-stack sockets with mapped addresses are IPv4 on the wire and get IPv4 vestiges. The local port is given apart:
 * skc_num is already 0 when the kernel had bound the port itself. */
ALWAYS_INLINE void read_tuple_from(struct work *w, const struct common *common, u16 local_port, u32 netns)
{
	struct tuple *t = &w->session.tuple;

	w->family = FAMILY_IPV4;
	if (COMMON(common, u16, skc_family) == AF_INET6 && !is_mapped(&COMMON(common, u32, skc_v6_daddr)))
		w->family = FAMILY_IPV6;
	if (is_ipv4(w)) {
		t->local[0] = COMMON(common, u32, skc_rcv_saddr);
		t->remote[0] = COMMON(common, u32, skc_daddr);
	} else {
		__builtin_memcpy(t->local, &COMMON(common, u32, skc_v6_rcv_saddr), sizeof(t->local));
		__builtin_memcpy(t->remote, &COMMON(common, u32, skc_v6_daddr), sizeof(t->remote));
		t->scope = is_link_local(t->remote) ? COMMON(common, u32, skc_bound_dev_if) : 0;
	}
	t->local_port = local_port;
	t->remote_port = COMMON(common, u16, skc_dport);
	t->netns = netns & NETNS_INDEX;
}

/* Nearness of the peer: the longest matching prefix says it, and what no prefix covers is remote. */
ALWAYS_INLINE u32 classify(const struct work *w)
{
	const struct tuple *t = &w->session.tuple;
	u32 *class, found;

	if (is_ipv4(w)) {
		struct prefix4 key = { .length = 64, .netns = t->netns, .address = t->remote[0] };

		class = classes_ipv4.lookup(&key);
	} else {
		struct prefix6 key = { .length = 160, .netns = t->netns };

		__builtin_memcpy(key.address, t->remote, sizeof(key.address));
		class = classes_ipv6.lookup(&key);
	}
	found = class ? *class : CLASS_REMOTE;
	asm("" : "+r"(found));
	found &= 3; /* a bound that the verifier still knows when clang has put it on the stack */
	return found < CLASSES ? found : CLASS_REMOTE;
}

/* How long the kernel's timer really runs. Its wheel has levels of 64 buckets, each level eight times coarser, and rounds
 * an expiry up to the next bucket of the level that the whole time falls into (kernel/time/timer.c, calc_index): 60 s
 * last up to 2 s longer at 250 Hz. `whole` is the time that the timer was set to, `left` what is left of it. */
ALWAYS_INLINE u64 timer_nanoseconds(u64 left, u64 whole)
{
	u64 now = bpf_jiffies64();
	u64 shift = 0;

#pragma unroll
	for (int level = 0; level < 8; level++)
		shift += 3 - 3 * less(whole, 63ULL << 3 * level);
	return (((((now + left) >> shift) + 1) << shift) - now) * JIFFY_NANOSECONDS;
}

/* tcp_time_wait() never sets the timer below 3.5 times the retransmission timeout. */
ALWAYS_INLINE u64 at_least_rto(const void *sk, u64 jiffies)
{
	u32 rto = 0;
	u64 least;

	READ(rto, sk, inet_connection_sock_icsk_rto);
	least = 4ULL * rto - rto / 2;
	return jiffies < least ? least : jiffies;
}

/* net.ipv4.tcp_fin_timeout, jiffies. */
ALWAYS_INLINE int fin_timeout(const struct common *common)
{
	u64 net = COMMON(common, u64, skc_net);
	int jiffies = 0;

	READ(jiffies, net, net_ipv4_sysctl_tcp_fin_timeout);
	return jiffies;
}

/* tcp_fin_time(): how long an orphan may stay in FIN_WAIT2. */
ALWAYS_INLINE u64 fin_time(const void *sk, const struct common *common)
{
	int linger2 = 0;

	READ(linger2, sk, tcp_sock_linger2);
	return at_least_rto(sk, linger2 ? linger2 : fin_timeout(common));
}

/* What __tcp_close() and tcp_keepalive_timer() make of it: of a time above 60 s the full socket waits all but 60 s, and
 * the mini-socket as long again. Used where no argument tells it. */
ALWAYS_INLINE u64 fin_wait2_jiffies(const void *sk, const struct common *common)
{
	u64 jiffies = fin_time(sk, common);

	return jiffies > TIME_WAIT_JIFFIES ? jiffies - TIME_WAIT_JIFFIES : jiffies;
}

/* Whether an orphan's time was over before its socket closed. Where the guard is, tcp_fin_timeout is 60 s more than an orphan
 * is to have (modes/sysctls.py), so that its full socket stays for all of that time. Not where orphans become vestiges: there
 * a retransmission timeout above 17 s alone makes the time longer than 60 s. */
ALWAYS_INLINE bool is_over(const void *sk, const struct common *common, u32 netns)
{
	int linger2 = 0;

	READ(linger2, sk, tcp_sock_linger2);
	return netns & NETNS_GUARDED && !linger2 && fin_timeout(common) > TIME_WAIT_JIFFIES;
}

#ifdef OFFSET_inet_connection_sock_icsk_keepalive_timer_expires
#define OFFSET_orphan_timer_expires OFFSET_inet_connection_sock_icsk_keepalive_timer_expires
#define OFFSET_orphan_timer_pprev OFFSET_inet_connection_sock_icsk_keepalive_timer_entry_pprev
#else
#define OFFSET_orphan_timer_expires OFFSET_sock_sk_timer_expires
#define OFFSET_orphan_timer_pprev OFFSET_sock_sk_timer_entry_pprev
#endif

/* The latest that a timer fires after its time, and more: 1/8 of it, and what a busy CPU adds (jiffies). */
#define TIMER_LATENESS(jiffies) ((jiffies) / 8 + HZ)

/* Whether tcp_keepalive_timer() is what closes an orphan, of whose time its timer was set to a part: it was taken off the wheel,
 * and is not set again. One that still waits there may be past its time, too: SO_KEEPALIVE has set it. So may one that was
 * deleted; but seldom by so little. */
ALWAYS_INLINE bool orphan_timer_fired(const void *sk, u64 time)
{
	u64 expires = 0, waits = 0, now = bpf_jiffies64();

	READ(expires, sk, orphan_timer_expires);
	READ(waits, sk, orphan_timer_pprev);
	return !waits && expires && now - expires < TIMER_LATENESS(time);
}

/* TCP-MD5 and TCP-AO sessions sign what they answer: a vestige cannot. */
ALWAYS_INLINE bool is_signed(const void *sk)
{
	u64 key = 0;

#ifdef OFFSET_tcp_sock_md5sig_info
	READ(key, sk, tcp_sock_md5sig_info);
	if (key)
		return true;
#endif
#ifdef OFFSET_tcp_sock_ao_info
	READ(key, sk, tcp_sock_ao_info);
#endif
	return key != 0;
}

/* Whether a transparent proxy has it (IP_TRANSPARENT, of its listener). */
ALWAYS_INLINE bool is_transparent(const void *sk)
{
#ifdef OFFSET_inet_sock_transparent
	u8 flags = 0;

	READ(flags, sk, inet_sock_transparent);
	return bitfield(flags, BIT_inet_sock_transparent, BITS_inet_sock_transparent);
#else
	u64 flags = 0;

	READ(flags, sk, inet_sock_inet_flags);
	return flags >> INET_FLAGS_TRANSPARENT & 1;
#endif
}

/* How the session's segments are marked. Without a label of its own the flow label is that of the transmit hash
 * (ip6_make_flowlabel). */
ALWAYS_INLINE u32 read_marking(const struct work *w, const struct view *v)
{
	u32 label = 0, hash = OF_SOCK(v, u32, sock_sk_txhash);
	u64 inet6 = OF_SOCK(v, u64, inet_sock_pinet6);
	u8 class = 0;

	if (is_ipv4(w))
		return OF_SOCK(v, u8, inet_sock_tos);
	READ(class, inet6, ipv6_pinfo_tclass);
	READ(label, inet6, ipv6_pinfo_flow_label);
	label = label ? label : hash << 16 | hash >> 16;
	return (u32)class << 20 | (bpf_ntohl(label) & 0xfffff);
}

/* The device of the route that the socket has, as the kernel looked for it; 0 if it has none any more. Only IPv6 needs it: the
 * guard asks for the routes of IPv4 (guard/route.h). */
ALWAYS_INLINE u32 read_device(const struct work *w, const void *sk)
{
	u64 route = 0, device = 0;
	u32 index = 0;

	if (is_ipv4(w))
		return 0;
	READ(route, sk, sock_sk_dst_cache);
	if (!route || READ(device, route, dst_entry_dev) || READ(index, device, net_device_ifindex))
		return 0;
	return index;
}

/* The sequence state, equally valid at tcp_time_wait() and at the state event that it ends with. */
ALWAYS_INLINE bool read_state(struct session *s, struct view *v, const void *sk)
{
	u8 scale, flags = 0;
	u32 wnd;

	if (view_tcp(v, sk))
		return false;
	s->snd_nxt = OF_TCP(v, u32, tcp_sock_snd_nxt);
	s->rcv_nxt = OF_TCP(v, u32, tcp_sock_rcv_nxt);
	s->ts_recent = OF_TCP(v, u32, tcp_sock_rx_opt_ts_recent);
	s->ts_offset = OF_TCP(v, u32, tcp_sock_tsoffset);
	scale = bitfield(OF_TCP(v, u8, tcp_sock_rx_opt_rcv_wscale), BIT_tcp_sock_rx_opt_rcv_wscale,
			 BITS_tcp_sock_rx_opt_rcv_wscale);
	wnd = OF_TCP(v, u32, tcp_sock_rcv_wnd) + OF_TCP(v, u32, tcp_sock_rcv_wup) - s->rcv_nxt;
	s->window = (s32)wnd < 0 ? 0 : wnd >> scale > 0xffff ? 0xffff : wnd >> scale;
	flags |= OF_TCP(v, u32, tcp_sock_rx_opt_ts_recent_stamp) ? VESTIGE_TIMESTAMPS : 0;
#ifdef OFFSET_tcp_sock_tcp_usec_ts
	flags |= bitfield(OF_TCP(v, u8, tcp_sock_tcp_usec_ts), BIT_tcp_sock_tcp_usec_ts, BITS_tcp_sock_tcp_usec_ts) ? VESTIGE_USEC : 0;
#endif
	flags |= is_signed(sk) ? VESTIGE_SIGNED : 0;
	s->bits = scale << VESTIGE_SCALE_SHIFT | flags;
	return true;
}

#endif
