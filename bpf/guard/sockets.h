/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which socket the kernel would give a segment to. */
#ifndef TWCTL_GUARD_SOCKETS_H
#define TWCTL_GUARD_SOCKETS_H

#include "guard/wire.h"
#include "kernel.h"
#include "table.h"

/* ANSWERED: one whose SYN the segment answers. It has left, past the guard, which would have held it or ended the session. */
enum presence { PRESENCE_NONE, PRESENCE_LISTENER, PRESENCE_LIVE, PRESENCE_ANSWERED };

/* The tuple of the socket that the session found had. */
ALWAYS_INLINE const struct tuple *tuple_of_socket(const struct work *w)
{
	return w->flags & TRANSLATED ? &w->socket : &w->session.tuple;
}

/* Whether the note of a live socket's SYN says that the segment is not its own. */
ALWAYS_INLINE bool has_other_wire(struct bpf_sock *sk, const struct work *w)
{
	struct wire *wire;

	sk = bpf_sk_fullsock(sk);
	wire = sk ? wires.sk_storage_get(sk, NULL, 0) : NULL;
	return wire && !has_wire(w, wire);
}

#define SYN_DATA 0xffff /* the most that a SYN can have (TCP Fast Open) */

/* Whether a segment acknowledges the SYN of a socket. (Its snd_nxt is still before that while tcp_connect() sends it, so a SYN|ACK may
 * acknowledge what data there can be. The peer of an old connection sends none.) */
ALWAYS_INLINE bool answers(struct bpf_sock *sk, const struct segment *s)
{
	struct bpf_tcp_sock *tcp = s->in.tcp.flags & ACK ? bpf_tcp_sock(sk) : NULL;

	return tcp && bpf_ntohl(s->in.tcp.ack) - tcp->snd_una - 1 <= (s->in.tcp.flags & SYN ? SYN_DATA : 0);
}

ALWAYS_INLINE enum presence socket_for(struct __sk_buff *skb, const struct work *w, const struct segment *s)
{
	const struct tuple *t = tuple_of_socket(w);
	struct bpf_sock_tuple ends = {};
	enum presence presence;
	struct bpf_sock *sk;
	u32 state;

	if (is_ipv4(w)) {
		ends.ipv4.saddr = t->remote[0];
		ends.ipv4.daddr = t->local[0];
		ends.ipv4.sport = t->remote_port;
		ends.ipv4.dport = t->local_port;
		sk = bpf_skc_lookup_tcp(skb, &ends, sizeof(ends.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(ends.ipv6.saddr, t->remote, sizeof(t->remote));
		__builtin_memcpy(ends.ipv6.daddr, t->local, sizeof(t->local));
		ends.ipv6.sport = t->remote_port;
		ends.ipv6.dport = t->local_port;
		sk = bpf_skc_lookup_tcp(skb, &ends, sizeof(ends.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return PRESENCE_NONE;
	state = sk->state;
	presence = state == TCP_LISTEN ? PRESENCE_LISTENER : PRESENCE_LIVE;
	/* SYN_SENT: its SYN is held back as long as there is a vestige, and what arrives is meant for that. So it is where the socket
	 * has another tuple on the wire. */
	if (state == TCP_SYN_SENT)
		presence = answers(sk, s) ? PRESENCE_ANSWERED : PRESENCE_NONE;
	if (w->flags & TRANSLATED && state != TCP_LISTEN && has_other_wire(sk, w))
		presence = PRESENCE_NONE;
	bpf_sk_release(sk);
	return presence;
}

#endif
