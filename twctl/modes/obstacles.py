"""Why the guard may not see on a device what a local socket sees: something changes or takes packets in between."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from pyroute2.netlink import NETLINK_XFRM, NLM_F_DUMP, NLM_F_REQUEST, nlmsg
from pyroute2.netlink.nlsocket import NetlinkSocket
from pyroute2.nftables.main import NFTables

from twctl.linux import libbpf
from twctl.linux.devices import devices
from twctl.linux.netlink import RouteNetlink, complete
from twctl.linux.netns import inside
from twctl.linux.tc import INGRESS, filters
from twctl.modes.guard import NAMES, PRIORITY

BPF_TCX_INGRESS = 46  # linux/bpf.h
XFRM_MSG_GETPOLICY = 0x15  # linux/xfrm.h


class PolicyId(nlmsg):  # type: ignore[misc]
    """struct xfrm_userpolicy_id, all zero: every policy. pyroute2 has nothing of XFRM but its generic socket."""

    fields = (("id", "64s"),)


def obstacles(netns: str | None) -> Iterator[str]:
    """One line for each in this network namespace.

    :raises TwctlError: if the namespace cannot be entered.
    """
    yield from _programs(netns)
    yield from _nat(netns)
    if policies := inside(netns, partial(_whole, _policies)):
        yield f"{len(policies)} IPsec policies: the guard does not see inside ESP"


def _programs(netns: str | None) -> Iterator[str]:
    """Programs that get packets before the guard does."""
    with contextlib.closing(RouteNetlink(netns)) as netlink, netlink.requests() as requests:
        for device in devices(requests):
            if device.xdp:
                yield f"XDP on {device.name}: what it redirects or drops does not reach the guard"
            if inside(netns, partial(libbpf.attached, device.number, BPF_TCX_INGRESS)):
                yield f"a TCX program on {device.name} runs before the guard"
            for each in filters(requests, device.number):
                if each.parent == INGRESS and each.priority <= PRIORITY and each.name not in NAMES.values():
                    yield f"another TC filter on {device.name} runs before the guard (pref {each.priority})"


def _nat(netns: str | None) -> Iterator[str]:
    """NAT of local addresses: the tuple on the wire is not the socket's."""
    for family in ("ip", "ip6"):
        names = inside(netns, partial(_read, Path(f"/proc/thread-self/net/{family}_tables_names")))
        if "nat" in names.split():
            yield f"{family}tables has a nat table: tuples on the wire may not be those of the sockets"
    for chain in inside(netns, partial(_whole, _chains)):
        if chain.get_attr("NFTA_CHAIN_TYPE") == "nat" and chain.get_attr("NFTA_CHAIN_USE"):
            where = f"{chain.get_attr('NFTA_CHAIN_TABLE')} {chain.get_attr('NFTA_CHAIN_NAME')}"
            yield f"nftables has NAT in {where}: tuples on the wire may not be those of the sockets"


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _whole(ask: Callable[[], Iterable[nlmsg]]) -> list[nlmsg]:
    """What a dump gives; none where the kernel has no such subsystem."""
    try:
        return complete(ask)
    except OSError:
        return []


def _chains() -> list[nlmsg]:
    """All of nftables in the thread's namespace."""
    with NFTables(nfgen_family=0) as nftables:
        return list(nftables.get_chains())


def _policies() -> list[nlmsg]:
    """All of IPsec in the thread's namespace."""
    request = PolicyId()
    request["id"] = bytes(64)
    with NetlinkSocket(family=NETLINK_XFRM) as xfrm:
        return list(xfrm.nlm_request(request, XFRM_MSG_GETPOLICY, NLM_F_REQUEST | NLM_F_DUMP))
