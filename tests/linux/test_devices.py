"""Network interfaces as the kernel's messages tell of them."""

import struct

import pytest

from tests.linux.test_rtnl import RTM_NEWLINK, attribute, one, raw
from twctl.linux.devices import Device, devices

# include/uapi/linux/if_link.h
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_IPVLAN_MODE, IFLA_IPVLAN_FLAGS = 3, 18, 1, 2, 1, 2
L2, L3, L3S = 0, 1, 2


class Requests:
    """Answers with one device."""

    def __init__(self, kind: bytes, mode: int) -> None:
        data = attribute(IFLA_IPVLAN_MODE, struct.pack("=H", mode)) + attribute(IFLA_IPVLAN_FLAGS, bytes(2))
        info = attribute(IFLA_INFO_KIND, kind) + attribute(IFLA_INFO_DATA, data)
        body = struct.pack("=BxHiII", 0, 1, 7, 0, 0)  # struct ifinfomsg
        body += attribute(IFLA_IFNAME, b"eth0\0") + attribute(IFLA_LINKINFO, info)
        self._message = one(raw(RTM_NEWLINK, body))

    def link(self, *_: object, **__: object) -> list[object]:
        """As the route socket does it."""
        return [self._message]


def device(kind: bytes, mode: int) -> Device:
    """The one that the kernel tells of."""
    (found,) = devices(Requests(kind, mode))
    return found


@pytest.mark.parametrize(("mode", "l3s"), [(L2, False), (L3, False), (L3S, True)])
def test_an_ipvlan_device_tells_whether_its_packets_come_in_past_tc(mode: int, l3s: bool) -> None:  # noqa: FBT001
    """As those of mode l3s do (ipvlan_nf_input)."""
    assert Device(7, "eth0", 1, "ipvlan", "", xdp=False, l3s=l3s) == device(b"ipvlan", mode)


def test_a_device_of_another_kind_does_not_whatever_its_own_data_say() -> None:
    """Their attributes have the same numbers."""
    assert not device(b"macvlan", L3S).l3s
