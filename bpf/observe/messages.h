/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the daemon and its own programs (observe.c, the last of them) hand each other: netlink messages of sock_diag(7) as
 * they come and go, and what the programs found.
 */
#ifndef TWCTL_OBSERVE_MESSAGES_H
#define TWCTL_OBSERVE_MESSAGES_H

#include "vestige.h"

#define INBOX_BYTES 65536
#define SWEEP_LINES 16

/* struct nlmsghdr and struct inet_diag_msg (linux/inet_diag.h): of each message the first 88 bytes. */
struct diag_message {
	u32 length;
	u16 type, netlink_flags;
	u32 sequence, port_id;
	u8 family, state, timer, retransmits;
	u16 local_port, remote_port;
	u32 local[4], remote[4];
	u32 interface;
	u32 cookie[2];
	u32 expires; /* ms */
	u32 queues[2], uid, inode;
};
#define DIAG_BY_FAMILY 20  /* SOCK_DIAG_BY_FAMILY */
#define DIAG_TIMER_TIME_WAIT 3 /* idiag_timer of a mini-socket */

struct inbox {
	u8 bytes[INBOX_BYTES + sizeof(struct diag_message)];
};

struct unseen {
	u64 word;
	u32 line, index;
	struct tuple tuple;
};

struct outbox {
	u64 adopted, restarted; /* sums since the daemon zeroed them */
	u64 unseen_count;
	struct unseen unseen[SWEEP_LINES * LINE_WORDS];
};

#define DUE_SLOTS 16

/* struct nlmsghdr, struct inet_diag_req_v2 (linux/inet_diag.h) */
struct diag_request {
	u32 length;
	u16 type, flags;
	u32 sequence, port_id;
	u8 family, protocol, extensions, pad;
	u32 states;
	u16 local_port, remote_port;
	u32 local[4], remote[4];
	u32 interface;
	u32 cookie[2];
};

/* An entry, by its number, that is due; or that is to be looked at again: then no more is said of it. */
struct due {
	struct diag_request request;
	u64 entry;
	u64 word;
	u32 line, index;
	u32 netns;
	u32 wait;	/* ticks until it is to be looked at again; 0: it is due */
	u32 age;	/* ticks since its timer was started */
	u32 unused;
};

struct dues {
	u64 next;	/* entry number at which to go on */
	u64 count;
	u64 wait;	/* ticks until the entry at which the walk stopped is due; 0: it did not stop for that */
	struct due due[DUE_SLOTS];
};

#endif
