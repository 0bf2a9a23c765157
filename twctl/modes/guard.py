"""The guard in one network namespace: its TC filters on every device, put there, kept there, taken away.

bpf/guard.c says what they do. The filters are told by their name; the class ID they carry tells the programs which
namespace they work in and whether the device has Ethernet headers.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink import nlmsg
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_DELQDISC, RTM_DELTFILTER, RTM_NEWLINK, RTNLGRP_LINK, RTNLGRP_TC

from twctl.errors import TwctlError
from twctl.linux import libbpf, tc
from twctl.linux.devices import Device, devices, find_device
from twctl.linux.netlink import LostError, RouteNetlink
from twctl.linux.netns import cookie as cookie_of
from twctl.linux.rtnl import decode
from twctl.linux.tc import EGRESS, INGRESS, Filter
from twctl.modes.qdiscs import Qdiscs
from twctl.table.shared import CONSTANTS

# First of all filters, and a handle that others do not use: with both given, what is there is replaced, not doubled.
PRIORITY, HANDLE = 1, 0x7477
NAMES = {INGRESS: "twctl_ingress", EGRESS: "twctl_egress"}
PROGRAMS = {INGRESS: "guard_ingress", EGRESS: "guard_egress"}
# linux/if_arp.h: devices that carry TCP, with an Ethernet header and without one.
LOOPBACK, VRF = 772, "vrf"
ETHERNET = frozenset((1, LOOPBACK))  # ETHER
BARE = frozenset((65534, 512, 519, 768, 769, 776, 778, 823))  # NONE (tun, wireguard), PPP, RAWIP, tunnels, GRE
OTHERS = {32: "InfiniBand"}  # carry TCP, and the guard cannot read their headers
# The traffic of such a port passes its master afterwards, which has the guard.
MASTERS = frozenset(("bridge", "bond", "team", "openvswitch"))
EVENT_BYTES = 1 << 20
# Notifications after which the guard may have to be put on a device; all of them name its number in `index`.
_TOUCHING = frozenset((RTM_NEWLINK, RTM_DELLINK, RTM_DELTFILTER, RTM_DELQDISC))


class Guard:
    """The guard in one network namespace. `reattached`: how often a filter had to be put back.

    disturbed: bool, whether devices or filters have changed; whoever looks at them sets it to False.
    netns: name or path of the namespace, None for our own. index: its number in the table. table: the pinned table.
    """

    def __init__(self, netns: str | None, cookie: int, index: int, table: Path) -> None:
        self._index = index
        self._cookie = cookie
        self._qdiscs = Qdiscs(table.parent)
        with contextlib.ExitStack() as undo:
            self._netlink = undo.enter_context(contextlib.closing(RouteNetlink(netns)))
            events = self._netlink.notifications((RTNLGRP_LINK, RTNLGRP_TC), EVENT_BYTES)
            self._events = undo.enter_context(contextlib.closing(events))
            self._programs = {parent: libbpf.obj_get(table / "programs" / name) for parent, name in PROGRAMS.items()}
            for fd in self._programs.values():
                undo.callback(os.close, fd)
            self._ids = {parent: libbpf.program_id(fd) for parent, fd in self._programs.items()}
            self._undo = undo.pop_all()
        self.devices: dict[int, str] = {}
        self.reattached = 0
        self.disturbed = False

    def close(self) -> None:
        """Close the sockets; the filters stay."""
        self._undo.close()

    def fileno(self) -> int:
        """Readable when links or filters have changed."""
        return self._events.fileno()

    def attach(self) -> None:
        """Put the guard on every device; harmless where it is already.

        :raises TwctlError: naming the device that cannot be guarded.
        """
        with self._netlink.requests() as requests:
            present = devices(requests)
            for gone in self.devices.keys() - {each.number for each in present}:
                del self.devices[gone]
            for each in present:
                self._ensure(requests, each)

    def follow(self) -> None:
        """Handle what has changed: new devices get the guard, a filter that was taken away comes back.

        :raises TwctlError: if a device can no longer be guarded.
        """
        try:
            touched = self._touched()
        except LostError:
            self.attach()
            return
        if not touched:
            return
        with self._netlink.requests() as requests:
            for number in touched:
                if present := find_device(requests, number):
                    self._ensure(requests, present)
                else:
                    self.devices.pop(number, None)

    def _touched(self) -> set[int]:
        """Devices about which a notification says that the guard may have to be put there."""
        touched: set[int] = set()
        while data := self._events.read():
            self.disturbed = True
            touched |= {message["index"] for message in decode(data) if _type(message) in _TOUCHING}
        return touched

    def remove(self) -> None:
        """Take the filters away, and the qdiscs that were made for them, unless somebody else uses them now."""
        with self._netlink.requests() as requests:
            for each in devices(requests):
                with contextlib.suppress(OSError):
                    self._remove_from(requests, each.number)
        self._qdiscs.forget(self._cookie)
        self.devices.clear()

    def _remove_from(self, requests: IPRoute, device: int) -> None:
        left = []
        for each in tc.filters(requests, device):
            if each.name in NAMES.values():
                tc.remove_filter(requests, device, each)
            else:
                left.append(each)
        if self._qdiscs.made(self._cookie, device) and not left:
            tc.remove_clsact(requests, device)

    def _ensure(self, requests: IPRoute, device: Device) -> None:
        """Put both filters on a device, if it needs them and they are not there."""
        if device.type in OTHERS:
            hint = "take the device out of this namespace, or use mode truncate"
            raise TwctlError(f"{device.name} is {OTHERS[device.type]}, which the guard cannot read", hint)
        if device.type not in ETHERNET | BARE or device.port_of in MASTERS:
            return
        try:
            found = tc.filters(requests, device.number)
            missing = [place for place in self._places(device) if place not in found]
            if missing:
                self._attach(requests, device, missing)
        except OSError as error:
            if error.errno in {errno.ENODEV, errno.ENXIO}:  # gone meanwhile
                return
            hint = f"'tc filter show dev {device.name} ingress' shows what else is there"
            raise TwctlError(f"the guard cannot be attached to {device.name}: {error.strerror}", hint) from error
        if device.number in self.devices:
            there = {(each.parent, each.program) for each in found}  # with another class ID it was not taken away
            self.reattached += sum((place.parent, place.program) not in there for place in missing)
        self.devices[device.number] = device.name

    def _places(self, device: Device) -> list[Filter]:
        """The two filters: these very programs, and not those of an earlier version."""
        class_id = class_id_of(self._index, device)
        return [Filter(side, PRIORITY, HANDLE, "bpf", NAMES[side], self._ids[side], class_id) for side in NAMES]

    def _attach(self, requests: IPRoute, device: Device, missing: Sequence[Filter]) -> None:
        if tc.add_clsact(requests, device.number):
            # After a crash before this the qdisc stays, empty: it does nothing.
            self._qdiscs.note(self._cookie, device.number)
        for place in missing:
            tc.put_filter(requests, device.number, place, self._programs[place.parent])


def class_id_of(index: int, device: Device) -> int:
    """What tells the programs their namespace, and what kind of device it is (bpf/guard/segment.h)."""
    kind = device.type in ETHERNET and CONSTANTS["DEVICE_ETHERNET"]
    kind |= (device.type == LOOPBACK or device.kind == VRF) and CONSTANTS["DEVICE_LOOPS"]
    kind |= device.port_of == VRF and CONSTANTS["DEVICE_IN_VRF"]
    return 1 << 16 | (index + 1) << CONSTANTS["DEVICE_BITS"] | kind


def _type(message: nlmsg) -> int:
    return int(message["header"]["type"])


def remove(enrolments: Mapping[int, tuple[int, str]], table: Path) -> Iterator[str]:
    """Take the guard out of the enrolled namespaces (index to cookie and name); yields what failed, a line each."""
    for index, (known, name) in enrolments.items():
        try:
            guard = Guard(name or None, known, index, table) if cookie_of(name or None) == known else None
        except (TwctlError, OSError):
            guard = None
        if guard is None:  # with the namespace its filters went
            Qdiscs(table.parent).forget(known)
            continue
        try:
            guard.remove()
        except OSError as error:
            yield f"the guard is left in network namespace {name or '(own)'}: {error.strerror}"
        finally:
            guard.close()
