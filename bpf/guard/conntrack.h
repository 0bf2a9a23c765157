/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What conntrack has attached to a packet. */
#ifndef TWCTL_GUARD_CONNTRACK_H
#define TWCTL_GUARD_CONNTRACK_H

#include "kernel.h"
#include "table.h"

#define CONNTRACK_INFO 7ULL	 /* sk_buff._nfct: the rest is a pointer to struct nf_conn */
/* Bits of nf_conn.status: IPS_SRC_NAT, IPS_DST_NAT (linux/netfilter/nf_conntrack_common.h). */
#define SOURCE_TRANSLATED (1 << 4)
#define DESTINATION_TRANSLATED (1 << 5)

/* How its connection is translated. 0: not at all, or it is not tracked. Where nothing tells how conntrack keeps that: `unknown`. */
ALWAYS_INLINE u64 translation_of(struct __sk_buff *skb, u64 unknown)
{
	u64 entry = 0, status = unknown;

#ifdef OFFSET_sk_buff__nfct
	READ(entry, skb, sk_buff__nfct);
#endif
	entry &= ~CONNTRACK_INFO;
#ifdef OFFSET_nf_conn_status
	status = 0;
	READ(status, entry, nf_conn_status);
#endif
	return entry ? status & (SOURCE_TRANSLATED | DESTINATION_TRANSLATED) : 0;
}

#endif
