"""A TC program that gives packets other addresses and ports, without any state, as some network plugins do."""

import os
from contextlib import closing
from ipaddress import ip_address
from typing import Any

from tests.load.netns import Namespace
from twctl.linux import libbpf, tc
from twctl.linux.devices import devices
from twctl.linux.netlink import RouteNetlink
from twctl.linux.tc import EGRESS, INGRESS, Filter, Program
from twctl.table.shared import bpf_folder

# For devices without link headers. Some bits of each address, and the last of the peer's port, are turned over: so what
# is done to a packet that leaves is undone to one that comes.
TEXT = rb"""
#define UNSPEC -1
#define TCP 6
#define PSEUDO (16 | 4) /* BPF_F_PSEUDO_HDR; bytes */
#define INLINE static inline __attribute__((always_inline))

INLINE void turn(struct __sk_buff *skb, int at, u32 bits, int ip_sum, int tcp_sum)
{
	u32 old, new;

	if (bpf_skb_load_bytes(skb, at, &old, 4))
		return;
	new = old ^ bpf_htonl(bits);
	if (ip_sum)
		bpf_l3_csum_replace(skb, ip_sum, old, new, 4);
	bpf_l4_csum_replace(skb, tcp_sum, old, new, PSEUDO);
	bpf_skb_store_bytes(skb, at, &new, 4, 0);
}

/* own, peer, port: where each is; tcp: where its header begins. */
INLINE int rewrite(struct __sk_buff *skb, bool four, int own, int peer, int tcp, int port)
{
	int ip_sum = four ? 10 : 0, tcp_sum = tcp + 16;
	u8 protocol = 0;
	u16 old, new;

	if (bpf_skb_load_bytes(skb, four ? 9 : 6, &protocol, 1) || protocol != TCP)
		return UNSPEC;
	if (bpf_skb_load_bytes(skb, tcp + port, &old, 2))
		return UNSPEC;
	turn(skb, own, four ? OWN4 : OWN6, ip_sum, tcp_sum);
	turn(skb, peer, four ? PEER4 : PEER6, ip_sum, tcp_sum);
	new = old ^ bpf_htons(1);
	bpf_l4_csum_replace(skb, tcp_sum, old, new, 2);
	bpf_skb_store_bytes(skb, tcp + port, &new, 2, 0);
	return UNSPEC;
}

int rewrite_out(struct __sk_buff *skb)
{
	bool four = skb->protocol == bpf_htons(0x0800);

	return four ? rewrite(skb, four, 12, 16, 20, 2) : rewrite(skb, four, 8, 24, 40, 2);
}

int rewrite_in(struct __sk_buff *skb)
{
	bool four = skb->protocol == bpf_htons(0x0800);

	return four ? rewrite(skb, four, 16, 12, 20, 0) : rewrite(skb, four, 24, 8, 40, 0);
}
"""


def bits(one: str, other: str) -> int:
    """In which two addresses differ, in the first 32."""
    first, second = ip_address(one), ip_address(other)
    different = int(first) ^ int(second)
    rest = first.max_prefixlen - 32
    assert different % 2**rest == 0, "addresses differ in their first 32 bits alone"
    return different >> rest


def rewrite(ns: Namespace, device: str, own: dict[str, tuple[str, str]], peer: dict[str, tuple[str, str]]) -> None:
    """Put the program on a device, as filters, for as long as that is there.

    own, peer: by family, each end's address as sockets know it, and as it is on the wire.
    """
    import bcc  # noqa: PLC0415 - Debian's, and heavy

    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    ends = {"OWN": own, "PEER": peer}
    flags = [f"-D{name}{family[-1]}={bits(*two)}u" for name, by in ends.items() for family, two in by.items()]
    made: Any = bcc.BPF(text=TEXT, cflags=flags)
    with closing(RouteNetlink(ns.name)) as netlink, netlink.requests() as requests:
        index = next(each.number for each in devices(requests) if each.name == device)
        tc.attach(requests, index, [], [])
        for side, name in ((INGRESS, "rewrite_in"), (EGRESS, "rewrite_out")):
            fd = made.load_func(name.encode(), bcc.BPF.SCHED_CLS).fd
            place = Filter(side, 2, 1, "bpf", name, libbpf.program_id(fd), 0)
            tc.put_filter(requests, index, Program(place, fd))
    made.cleanup()
