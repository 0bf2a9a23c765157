"""BPF programs on a network interface: the clsact qdisc and its filters (tc-bpf(8)), through pyroute2."""

import socket
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, nlmsg
from pyroute2.netlink.rtnl import RTM_NEWQDISC, RTM_NEWTFILTER, TC_H_CLSACT
from pyroute2.netlink.rtnl.tcmsg import tcmsg
from pyroute2.protocols import ETH_P_ALL

from twctl.linux.netlink import complete, refusals

# linux/pkt_sched.h: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS), TC_H_MIN_EGRESS
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
CLSACT_HANDLE = 0xFFFF0000
DIRECT_ACTION = 1  # linux/pkt_cls.h: TCA_BPF_FLAG_ACT_DIRECT


class Filter(NamedTuple):
    """A TC filter: where, and what.

    program: its number, 0 for other kinds than bpf. class_id: its lower half is what the program finds in
    skb->tc_classid; the upper half nobody looks at.
    """

    parent: int
    priority: int
    handle: int
    kind: str
    name: str
    program: int
    class_id: int


def filters(requests: IPRoute, device: int) -> list[Filter]:
    """All filters on an interface's clsact qdisc; none where there is no such qdisc. Raises OSError."""
    found = [
        _filter(message)
        for parent in (INGRESS, EGRESS)
        for message in complete(partial(requests.get_filters, device, parent=parent))
    ]
    # Each priority is listed as well, without a handle.
    return [each for each in found if each.handle]


def _filter(message: nlmsg) -> Filter:
    kind = message.get_attr("TCA_KIND", "")
    where = message["parent"], message["info"] >> 16, message["handle"], kind
    options = message.get_attr("TCA_OPTIONS") if kind == "bpf" else None
    if options is None:
        return Filter(*where, "", 0, 0)
    name, program, class_id = (options.get_attr(f"TCA_BPF_{each}") for each in ("NAME", "ID", "CLASSID"))
    return Filter(*where, name or "", program or 0, class_id or 0)


class Program(NamedTuple):
    """A BPF program to attach, in direct action mode: where, and its open descriptor."""

    place: Filter
    fd: int


def attach(requests: IPRoute, device: int, there: Sequence[Program], made: Sequence[Program]) -> None:
    """Attach programs to the clsact that is there or, where there is none, to one that is made for them.

    All in one request: the kernel is not interrupted in it, so who is killed has done it or has not. What stands at a
    place stays. Whether it worked is for `filters` to tell.
    """
    qdisc = tcmsg()
    qdisc["index"], qdisc["parent"], qdisc["handle"] = device, TC_H_CLSACT, CLSACT_HANDLE
    qdisc["attrs"] = [("TCA_KIND", "clsact")]
    qdisc["header"]["type"] = RTM_NEWQDISC
    messages = [*(_new_filter(device, each) for each in there), qdisc, *(_new_filter(device, each) for each in made)]
    for message in messages:
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    requests.nlm_request_batch(messages, noraise=True)


def _new_filter(device: int, program: Program) -> tcmsg:
    message, place = tcmsg(), program.place
    message["index"], message["parent"], message["handle"] = device, place.parent, place.handle
    message["info"] = place.priority << 16 | socket.htons(ETH_P_ALL)
    options = [
        ("TCA_BPF_CLASSID", place.class_id),
        ("TCA_BPF_FD", program.fd),
        ("TCA_BPF_NAME", place.name),
        ("TCA_BPF_FLAGS", DIRECT_ACTION),
    ]
    message["attrs"] = [("TCA_KIND", "bpf"), ("TCA_OPTIONS", {"attrs": options})]
    message["header"]["type"] = RTM_NEWTFILTER
    return message


@refusals()
def put_filter(requests: IPRoute, device: int, program: Program) -> None:
    """Attach one; what is at its place is replaced. Raises OSError."""
    place = program.place
    requests.tc(
        "replace-filter",
        "bpf",
        device,
        place.handle,
        parent=place.parent,
        prio=place.priority,
        protocol=ETH_P_ALL,
        fd=program.fd,
        name=place.name,
        classid=place.class_id,
        direct_action=True,
    )


@refusals()
def remove_filter(requests: IPRoute, device: int, found: Filter) -> None:
    """Detach one. Raises OSError."""
    place = {"parent": found.parent, "prio": found.priority, "protocol": ETH_P_ALL}
    requests.tc("del-filter", found.kind, device, found.handle, **place)


@refusals()
def remove_clsact(requests: IPRoute, device: int) -> None:
    """Take the qdisc away, with all filters on it. Raises OSError."""
    requests.tc("del", "clsact", device)


def qdisc_kinds(requests: IPRoute) -> dict[int, str]:
    """Of each interface that has one, the kind of qdisc that takes filters for what comes in. Raises OSError."""
    found = complete(partial(requests.tc, "dump"))
    return {each["index"]: str(each.get_attr("TCA_KIND")) for each in found if each["handle"] == CLSACT_HANDLE}
