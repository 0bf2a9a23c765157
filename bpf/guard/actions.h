/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the guard did to segments, counted for each CPU. */
#ifndef TWCTL_GUARD_ACTIONS_H
#define TWCTL_GUARD_ACTIONS_H

#include "table.h"

/* What became of a segment that had a vestige, or might have had one. */
enum action {
	ACTION_ACKNOWLEDGED,	/* answered with an ACK */
	ACTION_LIMITED,		/* would have been, but for tcp_invalid_ratelimit */
	ACTION_ABSORBED,	/* nothing to say to it */
	ACTION_RESET,		/* answered with a RST; the session is over */
	ACTION_KILLED,		/* a RST that ended the session */
	ACTION_REOPENED,	/* a SYN from the peer that was let in */
	ACTION_REUSED,		/* a local SYN that was let out */
	ACTION_HELD,		/* a local SYN that was held back: not safe yet */
	ACTION_LIVE,		/* has a live socket after all */
	ACTION_DAMAGED,		/* its checksum is wrong */
	ACTION_UNANSWERABLE,	/* signed (TCP-MD5, TCP-AO), or of a session whose sequence numbers nobody saw */
	ACTION_RACED,		/* its vestige just changed: dropped, the peer sends it again */
	ACTION_FRAGMENT,	/* passed: no ports to look for */
	ACTION_UNPARSED,	/* passed: headers that cannot be followed */
	ACTION_MARTIAN,		/* passed: the kernel takes no segment of this peer from this device */
	ACTION_UNNOTED,		/* passed: a SYN or FIN whose tuple on the wire could not be kept */
	ACTIONS,
};

struct actions {
	u64 count[ACTIONS];
};

BPF_F_TABLE("array", u32, struct actions, actions, CPUS, BPF_F_MMAPABLE);

ALWAYS_INLINE void count(u64 action)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct actions *mine = actions.lookup(&cpu);

	asm("" : "+r"(action)); /* or clang compares a copy, and the verifier of 6.1 has no bound for the other */
	if (mine && action < ACTIONS)
		mine->count[action]++;
}

#endif
