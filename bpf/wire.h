/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How the tuple is learnt that a translated session has on the wire.
 *
 * A FIN of this host passes TC egress after all translation, with its socket still attached: the guard sees both tuples side by
 * side. Only where they differ it leaves a note, with the socket itself (BPF_MAP_TYPE_SK_STORAGE): it goes when the socket goes,
 * and there is room for every one. A session enters after the peer has acknowledged the FIN, so the note is there by then; the
 * entry finds it by the socket's own list, and where no program keeps anything with a socket that list is NULL.
 */
#ifndef TWCTL_WIRE_H
#define TWCTL_WIRE_H

#include "vestige.h"

/* Tells a note from what other programs keep with a socket. */
#define WIRE_MAGIC 0x7477d1a5c4e8b36fULL

struct wire {
	u64 magic;
	u32 local[4], remote[4];
	u16 local_port, remote_port;
	u32 device;	/* index of the one that the FIN left by */
	u32 looping;	/* it came back in by the same device */
	u32 unused;
};

BPF_SK_STORAGE(wires, struct wire);

#endif
