/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What an entry reads of its socket, in two pieces: to read a field costs as much as to read the 300 bytes around it.
 */
#ifndef TWCTL_OBSERVE_VIEW_H
#define TWCTL_OBSERVE_VIEW_H

#include "kernel.h"
#include "table.h"

#define LOWER(a, b) ((a) < (b) ? (a) : (b))
#define HIGHER(a, b) ((a) > (b) ? (a) : (b))
#define ENDS(of, a, b, c, d, e, f) of(of(of(a, b), of(c, d)), of(e, f))

#ifdef OFFSET_sock_sk_cgrp_data
#define OFFSET_OWNER OFFSET_sock_sk_cgrp_data
#else
#define OFFSET_OWNER OFFSET_sock_sk_uid
#endif
#ifdef OFFSET_tcp_sock_tcp_usec_ts
#define OFFSET_UNIT OFFSET_tcp_sock_tcp_usec_ts
#else
#define OFFSET_UNIT OFFSET_tcp_sock_tsoffset
#endif
#define SOCK_ENDS(of) \
	of(ENDS(of, OFFSET_sock_sk_protocol, OFFSET_sock_sk_uid, OFFSET_OWNER, OFFSET_sock_sk_txhash, \
		OFFSET_inet_sock_inet_sport, OFFSET_inet_sock_tos), \
	   of(OFFSET_inet_sock_pinet6, OFFSET_sock_sk_bpf_storage))
#define TCP_ENDS(of) \
	of(ENDS(of, OFFSET_tcp_sock_snd_nxt, OFFSET_tcp_sock_rcv_nxt, OFFSET_tcp_sock_rcv_wup, OFFSET_tcp_sock_rcv_wnd, \
		OFFSET_tcp_sock_rx_opt_rcv_wscale, OFFSET_tcp_sock_tsoffset), \
	   of(OFFSET_UNIT, of(OFFSET_tcp_sock_rx_opt_ts_recent, OFFSET_tcp_sock_rx_opt_ts_recent_stamp)))

/* From a multiple of 8 to one: no field is longer than 8 bytes. */
#define BEGIN(ends) (ends(LOWER) & ~7)
#define BYTES(ends) ((ends(HIGHER) & ~7) + 8 - BEGIN(ends))

struct view {
	u8 sock[BYTES(SOCK_ENDS)] __attribute__((aligned(8)));
	u8 tcp[BYTES(TCP_ENDS)] __attribute__((aligned(8)));
};

BPF_PERCPU_ARRAY(views, struct view, WORKERS);

#define OF_SOCK(view, type, field) (*(type *)&(view)->sock[OFFSET_##field - BEGIN(SOCK_ENDS)])
#define OF_TCP(view, type, field) (*(type *)&(view)->tcp[OFFSET_##field - BEGIN(TCP_ENDS)])

/* The piece that all sockets have; not 0 if it cannot be read. (Linux 6.1 does not follow a pointer that is NULL then.) */
ALWAYS_INLINE int view_sock(struct view *v, const void *sk)
{
	return read_kernel(v->sock, sizeof(v->sock), (const u8 *)sk + BEGIN(SOCK_ENDS));
}

/* And that of a TCP socket. */
ALWAYS_INLINE int view_tcp(struct view *v, const void *sk)
{
	return read_kernel(v->tcp, sizeof(v->tcp), (const u8 *)sk + BEGIN(TCP_ENDS));
}

#endif
