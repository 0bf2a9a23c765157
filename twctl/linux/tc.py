"""BPF programs on a network interface: the clsact qdisc and its filters (tc-bpf(8)), through pyroute2."""

from functools import partial
from typing import NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink import nlmsg
from pyroute2.protocols import ETH_P_ALL

from twctl.linux.netlink import complete, refusals

# linux/pkt_sched.h: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS), TC_H_MIN_EGRESS
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
CLSACT_HANDLE = 0xFFFF0000
_OF_BPF: dict[str, str | int] = {"NAME": "", "ID": 0, "CLASSID": 0}


class Filter(NamedTuple):
    """A TC filter: where, and what.

    program: its number, and class_id: what it finds in skb->tc_classid; both 0 for other kinds than bpf.
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
    return Filter(*where, *(options.get_attr(f"TCA_BPF_{what}", none) for what, none in _OF_BPF.items()))


@refusals()
def put_filter(requests: IPRoute, device: int, place: Filter, program: int) -> None:
    """Attach a program with its open descriptor, in direct action mode; what is at its place is replaced.

    place: `kind` and `program` are not looked at. Raises OSError.
    """
    requests.tc(
        "replace-filter",
        "bpf",
        device,
        place.handle,
        parent=place.parent,
        prio=place.priority,
        protocol=ETH_P_ALL,
        fd=program,
        name=place.name,
        classid=place.class_id,
        direct_action=True,
    )


@refusals()
def remove_filter(requests: IPRoute, device: int, found: Filter) -> None:
    """Detach one. Raises OSError."""
    place = {"parent": found.parent, "prio": found.priority, "protocol": ETH_P_ALL}
    requests.tc("del-filter", found.kind, device, found.handle, **place)


def add_clsact(requests: IPRoute, device: int) -> bool:
    """Make the qdisc that filters stand on; False if there is one.

    :raises OSError: also where the qdisc at its place is of another kind: `ingress` would take both filters, and has no
        egress.
    """
    try:
        with refusals():
            requests.tc("add", "clsact", device)
    except FileExistsError:
        if _kind(requests, device) != "clsact":
            raise
        return False
    return True


@refusals()
def remove_clsact(requests: IPRoute, device: int) -> None:
    """Take the qdisc away, with all filters on it. Raises OSError."""
    requests.tc("del", "clsact", device)


def _kind(requests: IPRoute, device: int) -> str:
    """Of the qdisc that stands at clsact's handle."""
    found = complete(partial(requests.tc, "dump", index=device))
    return next((str(each.get_attr("TCA_KIND")) for each in found if each["handle"] == CLSACT_HANDLE), "")
