/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the guard noted of a socket: the entry takes the tuple from it that the session has on the wire. */
#ifndef TWCTL_OBSERVE_WIRE_H
#define TWCTL_OBSERVE_WIRE_H

#include "kernel.h"
#include "observe/view.h"
#include "table.h"
#include "wire.h"

#define STORED 8 /* programs that keep something with a socket and are looked at; the newest come first */

/* The kernel gives a socket's storage to programs of its own types alone (BTF), which a raw tracepoint is not. */
ALWAYS_INLINE bool read_wire(struct wire *wire, const struct view *v)
{
	u64 list = OF_SOCK(v, u64, sock_sk_bpf_storage), node = 0;

	if (!list || READ(node, list, bpf_local_storage_list_first))
		return false;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < STORED && node; i++) {
		u64 stored = node - OFFSET_bpf_local_storage_elem_snode + OFFSET_bpf_local_storage_elem_sdata;

		if (READ(*wire, stored, bpf_local_storage_data_data))
			return false;
		if (wire->magic == WIRE_MAGIC)
			return true;
		if (read_kernel(&node, sizeof(node), (void *)node))
			return false;
	}
	return false;
}

/* The peer has acknowledged a FIN of this session: the guard has seen it leave, or it never will. */
ALWAYS_INLINE void witness(u32 netns, bool noted)
{
	u32 index = netns & NETNS_INDEX;
	struct witness *witness = witnesses.lookup(&index);

	if (witness)
		__sync_fetch_and_add(noted ? &witness->noted : &witness->missed, 1);
}

/* Whether a note is of this connection, not of one that its socket had before. */
ALWAYS_INLINE bool is_of_session(const struct work *w, const struct wire *wire)
{
	const struct tuple *t = &w->session.tuple;

	return wire->family == w->family && wire->socket_port == t->local_port && wire->socket_remote_port == t->remote_port;
}

/* Exchanges the session's tuple for that on the wire, if it has another; false if not. */
ALWAYS_INLINE bool take_wire(struct work *w, const struct view *v, u32 netns, struct wire *wire)
{
	struct tuple *t = &w->session.tuple;
	bool noted = netns & (NETNS_GUARDED | NETNS_WITNESSED) && read_wire(wire, v) && is_of_session(w, wire);

	if (netns & NETNS_WITNESSED)
		witness(netns, noted);
	if (!noted || !(netns & NETNS_GUARDED) || has_wire(w, wire))
		return false;
	w->socket = *t;
	__builtin_memcpy(t->local, wire->local, sizeof(t->local));
	__builtin_memcpy(t->remote, wire->remote, sizeof(t->remote));
	t->local_port = wire->local_port;
	t->remote_port = wire->remote_port;
	if (!is_ipv4(w))
		t->scope = is_link_local(t->remote) ? wire->device : 0;
	w->session.device = is_ipv4(w) ? 0 : wire->device;
	return true;
}

#endif
