"""Network interfaces as TC and XDP see them, through pyroute2."""

import errno
from functools import partial
from typing import NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink import nlmsg

from twctl.linux.netlink import complete, refusals

IPVLAN_MODE_L3S = 2  # linux/if_link.h
RTEXT_FILTER_SKIP_STATS = 8  # linux/rtnetlink.h: without the counters that make up half of an answer


class Device(NamedTuple):
    """An interface: number, name, type (ARPHRD_*), kind, what it is a port of (both may be empty), if it has XDP.

    l3s: an ipvlan device of this mode. What comes in for it passes netfilter, and TC of its parent alone.
    """

    number: int
    name: str
    type: int
    kind: str
    port_of: str
    xdp: bool
    l3s: bool = False


def link_messages(requests: IPRoute) -> list[nlmsg]:
    """All interfaces of a namespace as RTM_NEWLINK messages. Raises OSError."""
    return complete(partial(requests.link, "dump", ext_mask=RTEXT_FILTER_SKIP_STATS))


def devices(requests: IPRoute) -> list[Device]:
    """All interfaces of a namespace. Raises OSError."""
    return [_device(message) for message in link_messages(requests)]


def find_device(requests: IPRoute, number: int) -> Device | None:
    """One interface, None where there is none (any more). Raises OSError."""
    try:
        with refusals():
            return _device(requests.link("get", index=number, ext_mask=RTEXT_FILTER_SKIP_STATS)[0])
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def packets(requests: IPRoute, number: int) -> int:
    """How many packets an interface has received and sent in its life; 0 where there is none (any more)."""
    try:
        with refusals():
            found = requests.link("get", index=number)[0].get_attr("IFLA_STATS64")
    except OSError:
        return 0
    return int(found["rx_packets"] + found["tx_packets"]) if found else 0


def _device(message: nlmsg) -> Device:
    info, xdp = message.get_attr("IFLA_LINKINFO"), message.get_attr("IFLA_XDP")
    kind, data = (info.get_attr("IFLA_INFO_KIND", ""), info.get_attr("IFLA_INFO_DATA")) if info else ("", None)
    return Device(
        message["index"],
        message.get_attr("IFLA_IFNAME"),
        message["ifi_type"],
        kind,
        info.get_attr("IFLA_INFO_SLAVE_KIND", "") if info else "",
        bool(xdp and xdp.get_attr("IFLA_XDP_ATTACHED")),
        bool(data and kind == "ipvlan" and data.get_attr("IFLA_IPVLAN_MODE") == IPVLAN_MODE_L3S),
    )
