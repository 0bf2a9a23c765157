/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How the tuple is learnt that a translated session has on the wire.
 *
 * What this host sends passes TC egress after all translation, with its socket still attached: there the guard sees both tuples side
 * by side, of SYNs and of FINs. Only where they differ it leaves a note, with the socket itself (BPF_MAP_TYPE_SK_STORAGE): it goes
 * when the socket goes, and there is room for every one. A session enters after the peer has acknowledged the FIN, so the note is
 * there by then; the entry finds it by the socket's own list, and where no program keeps anything with a socket that list is NULL.
 * The note of a SYN tells whose a live socket's segments are: it may have another tuple on the wire than a session before it.
 */
#ifndef TWCTL_WIRE_H
#define TWCTL_WIRE_H

#include "kernel.h"
#include "table.h"

/* Tells a note from what other programs keep with a socket. */
#define WIRE_MAGIC 0x7477d1a5c4e8b36fULL

struct wire {
	u64 magic;
	u32 local[4], remote[4];
	u16 local_port, remote_port;
	u16 socket_port, socket_remote_port;	/* of the socket, by which its earlier connections are told */
	u32 device;	/* index of the one that the packet left by */
	u32 looping;	/* it came back in by the same device */
	u32 family;
	u32 unused;
};

BPF_SK_STORAGE(wires, struct wire);
BPF_F_TABLE("array", u32, struct witness, witnesses, NAMESPACES, BPF_F_MMAPABLE);

/* Whether the session's tuple is the one on the wire of a note. */
ALWAYS_INLINE bool has_wire(const struct work *w, const struct wire *wire)
{
	const struct tuple *t = &w->session.tuple;
	u32 difference = (wire->local_port ^ t->local_port) | (wire->remote_port ^ t->remote_port) | (wire->family ^ (u32)w->family);

	if (is_ipv4(w)) /* the other words are anything */
		return !(difference | (wire->local[0] ^ t->local[0]) | (wire->remote[0] ^ t->remote[0]));
	return !difference && is_same6(wire->local, t->local) && is_same6(wire->remote, t->remote);
}

#endif
