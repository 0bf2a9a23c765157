"""Programs on a device that are not the guard's, as a network plugin has them."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from tests.load.netns import Namespace
from twctl.linux import libbpf, tc
from twctl.linux.devices import devices
from twctl.linux.netlink import RouteNetlink
from twctl.linux.tc import EGRESS, INGRESS, Filter, Program
from twctl.linux.tcx import FIRST, LAST, PLACES
from twctl.table.shared import bpf_folder

TEXT = rb"""
#define UNSPEC -1
#define IN 36   /* IPv4 over Ethernet: the destination's port, the source's, the checksum of TCP */
#define OUT 34
#define SUM 50

/* IPv4 and TCP alone: the last bit of a port, in both directions, so that both ends see one connection. */
static inline __attribute__((always_inline)) int rewrite(struct __sk_buff *skb, int offset)
{
	u8 protocol = 0;
	u16 port, other;

	if (skb->protocol != bpf_htons(0x0800) || bpf_skb_load_bytes(skb, 23, &protocol, 1) || protocol != 6)
		return UNSPEC;
	if (bpf_skb_load_bytes(skb, offset, &port, 2))
		return UNSPEC;
	other = port ^ bpf_htons(1);
	bpf_l4_csum_replace(skb, SUM, port, other, 2);
	bpf_skb_store_bytes(skb, offset, &other, 2, 0);
	return UNSPEC;
}

int rewrite_in(struct __sk_buff *skb) { return rewrite(skb, IN); }
int rewrite_out(struct __sk_buff *skb) { return rewrite(skb, OUT); }
int passes(struct __sk_buff *skb) { return UNSPEC; }
int ends(struct __sk_buff *skb) { return 0; }

/* In by the same device once more. */
int around(struct __sk_buff *skb)
{
	if (skb->mark == 7)
		return UNSPEC;
	skb->mark = 7;
	return bpf_redirect(skb->ifindex, 1);
}
"""
NAMES = ("rewrite_in", "rewrite_out", "passes", "ends", "around")
TCX, CLSACT = "tcx", "clsact"


@contextmanager
def loaded() -> Iterator[Mapping[str, int]]:
    """Descriptors of the programs, by name."""
    import bcc  # noqa: PLC0415 - Debian's, and heavy

    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    made: Any = bcc.BPF(text=TEXT)
    yield {name: made.load_func(name.encode(), bcc.BPF.SCHED_CLS).fd for name in NAMES}
    made.cleanup()


@contextmanager
def attached(
    ns: Namespace, device: str, form: str, ingress: Mapping[str, int], egress: Mapping[str, int]
) -> Iterator[None]:
    """Programs on both sides of a device, in this order: before all that come in, behind all that go out.

    As filters they have priorities that follow each other.
    """
    with ExitStack() as stack:
        netlink = stack.enter_context(closing(RouteNetlink(ns.name)))
        requests = stack.enter_context(netlink.requests())
        index = next(each.number for each in devices(requests) if each.name == device)
        if form == TCX:
            with ns.entered():
                for side, fds, flag in (
                    (INGRESS, reversed(list(ingress.values())), FIRST),
                    (EGRESS, egress.values(), LAST),
                ):
                    for fd in fds:
                        stack.callback(os.close, libbpf.link_create(fd, index, PLACES[side], flag))
        else:
            tc.attach(requests, index, [], [])
            for side, programs in ((INGRESS, ingress), (EGRESS, egress)):
                for priority, (name, fd) in enumerate(programs.items(), 2):
                    place = Filter(side, priority, 1, "bpf", name, libbpf.program_id(fd), 0)
                    tc.put_filter(requests, index, Program(place, fd))
                    stack.callback(tc.remove_filter, requests, index, place)
        yield
