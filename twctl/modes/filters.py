"""The guard's TC filters on one device: how they are told from others, put there and taken away.

All that has to be remembered stands in the filter itself, and so goes where the device goes. Its name tells the side
and the folder of the pins it belongs to ("twctl_ingress /sys/fs/bpf/twctl"). Its class ID tells the program which
namespace it works in and what kind of device it is on, and us, whether the qdisc was made for it.
"""

import errno
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from pyroute2 import IPRoute

from twctl.errors import TwctlError
from twctl.linux import tc
from twctl.linux.devices import Device, find_device
from twctl.linux.tc import EGRESS, INGRESS, Filter, Program
from twctl.table.shared import CONSTANTS

# First of all filters that come in, last of all that go out; and a handle that others do not use: there is room for one
# guard, of one twctl.
PRIORITIES, HANDLE = {INGRESS: 1, EGRESS: 0xFFFF}, 0x7477
NAMES = {INGRESS: "twctl_ingress", EGRESS: "twctl_egress"}
# The upper half of the class ID, where no program looks; the lower one is theirs.
QDISC_FOUND, QDISC_MADE = 1 << 16, 2 << 16
FOR_PROGRAM = 0xFFFF
# linux/if_arp.h: devices that carry TCP, with an Ethernet header and without one.
LOOPBACK, VRF = 772, "vrf"
ETHERNET = frozenset((1, LOOPBACK))  # ETHER
BARE = frozenset((65534, 512, 519, 768, 769, 776, 778, 823))  # NONE (tun, wireguard), PPP, RAWIP, tunnels, GRE
# Devices that carry no TCP, and need no guard.
WITHOUT_TCP = {
    280: "CAN",
    290: "MCTP",
    779: "PIM register",
    801: "802.11 monitor",
    802: "802.11 monitor",
    803: "802.11 monitor",
    804: "802.15.4",
    805: "802.15.4 monitor",
    820: "Phonet",
    821: "Phonet",
    824: "netlink monitor",
    826: "vsock monitor",
}
# The traffic of such a port passes its master afterwards, which has the guard.
MASTERS = frozenset(("bridge", "bond", "team", "openvswitch"))


class Sides(NamedTuple):
    """The guard's programs, by the side that they stand on: number and open descriptor."""

    ids: Mapping[int, int]
    descriptors: Mapping[int, int]


class Ours(NamedTuple):
    """By what our filters are told: names of the folder of the pins, and numbers of the guard's programs in it.

    An earlier version's filters do not say whose they are: their program does. folder: where the links are pinned
    (links.py).
    """

    names: frozenset[str]
    programs: frozenset[int]
    folder: Path

    def has(self, found: Filter) -> bool:
        """Whether a filter is one of them."""
        pins = owner(found)
        return found.program in self.programs if pins == "" else pins in self.names


def owner(found: Filter) -> str | None:
    """Folder of the pins that a filter of a guard belongs to; empty: an earlier version's, which does not say."""
    name, _, pins = found.name.partition(" ")
    return pins if name in NAMES.values() else None


def needs_guard(device: Device) -> bool:
    """Whether TCP passes here, and nowhere else that has the guard.

    :raises TwctlError: if TCP may pass here, and the guard could not read it.
    """
    if device.port_of in MASTERS or device.type in WITHOUT_TCP:
        return False
    if device.type in ETHERNET | BARE:
        return True
    message = f"the guard cannot read what passes {device.name}: it is of type {device.type} (linux/if_arp.h)"
    raise TwctlError(message, "take the device out of this namespace, or use mode truncate")


class Filters:
    """Puts them on the devices of one namespace.

    pins: the folder that they are named after. index: the namespace's. witnessed: what their class IDs say of it.
    """

    def __init__(self, pins: str, ours: Ours, index: int, sides: Sides) -> None:
        self._pins, self._ours, self._index, self._sides = pins, ours, index, sides

        self.witnessed = False

    def attach(self, requests: IPRoute, device: Device) -> None:
        """Put them on a device that has none, before anything is looked at; whether it worked is for `mend` to tell."""
        there, made = (
            [self._program(device, parent, qdisc) for parent in NAMES] for qdisc in (QDISC_FOUND, QDISC_MADE)
        )
        tc.attach(requests, device.number, there, made)

    def mend(self, requests: IPRoute, device: Device, sides: Collection[int] = tuple(NAMES)) -> int:
        """Put right what is missing, or takes the device for another kind; returns how many are missing.

        Raises OSError.

        :raises TwctlError: if another twctl has its guard there.
        """
        found = tc.filters(requests, device.number)
        if others := {pins for each in found if (pins := owner(each)) is not None} - self._ours.names - {""}:
            message = f"{device.name} has the guard of another twctl, which pins at {min(others)}"
            raise TwctlError(message, f"stop that one, then 'twctl release --pins {min(others)}'")
        if wrong := self._wrong(device, found, sides):
            self._put(requests, device, found, wrong)
        wanted = {(side, self._sides.ids[side]) for side in sides}
        return len(wanted - {(each.parent, each.program) for each in found})

    def _wrong(self, device: Device, found: Collection[Filter], sides: Collection[int]) -> list[int]:
        """Sides without the very program, by its present name, place and class ID; it may be an earlier version's."""
        right = {each._replace(class_id=each.class_id & FOR_PROGRAM) for each in found}
        return [side for side in sides if self._program(device, side, 0).place not in right]

    def _put(self, requests: IPRoute, device: Device, found: Collection[Filter], wrong: Collection[int]) -> None:
        kind = tc.qdisc_kinds(requests).get(device.number, "clsact")
        if kind != "clsact":  # `ingress` takes both filters, and has no egress
            remove_from(requests, device.number, self._ours)
            raise FileExistsError(errno.EEXIST, f"its qdisc {kind} has no filters for what goes out")
        if not any(owner(each) is not None for each in found):
            self.attach(requests, device)
            found = tc.filters(requests, device.number)
        qdisc = QDISC_MADE if any(map(_says_made, found)) else QDISC_FOUND
        for parent in self._wrong(device, found, wrong):
            tc.put_filter(requests, device.number, self._program(device, parent, qdisc))
        for each in found:  # an earlier version's, which stood first on both sides
            if each.parent in wrong and owner(each) is not None and each.priority != PRIORITIES[each.parent]:
                tc.remove_filter(requests, device.number, each)

    def _name(self, parent: int) -> str:
        return f"{NAMES[parent]} {self._pins}"

    def _program(self, device: Device, parent: int, qdisc: int) -> Program:
        class_id = qdisc | class_id_of(self._index, device, witnessed=self.witnessed)
        place = Filter(parent, PRIORITIES[parent], HANDLE, "bpf", self._name(parent), self._sides.ids[parent], class_id)
        return Program(place, self._sides.descriptors[parent])


def class_id_of(index: int, device: Device, *, witnessed: bool = False) -> int:
    """What tells the programs their namespace, and what kind of device it is (bpf/guard/segment.h)."""
    kind = device.type in ETHERNET and CONSTANTS["DEVICE_ETHERNET"]
    kind |= (device.type == LOOPBACK or device.kind == VRF) and CONSTANTS["DEVICE_LOOPS"]
    kind |= device.port_of == VRF and CONSTANTS["DEVICE_IN_VRF"]
    kind |= witnessed and CONSTANTS["DEVICE_WITNESSED"]
    return (index + 1) << CONSTANTS["DEVICE_BITS"] | kind


def _says_made(found: Filter) -> bool:
    return owner(found) is not None and bool(found.class_id & QDISC_MADE)


def remove_from(requests: IPRoute, device: int, ours: Ours, sides: Collection[int] = tuple(NAMES)) -> None:
    """Take ours off a device. Raises OSError.

    A qdisc that was made for them and has no others goes with them, in one request: who is killed has done all or
    nothing.
    """
    found = tc.filters(requests, device)
    mine = [each for each in found if ours.has(each) and each.parent in sides]
    if mine and len(mine) == len(found) and any(map(_says_made, mine)):
        tc.remove_clsact(requests, device)
        return
    for each in dict.fromkeys(mine):  # on `ingress` each is listed for both sides
        tc.remove_filter(requests, device, each)


def remove_all(requests: IPRoute, ours: Ours) -> None:
    """Take ours off every device of a namespace. Raises OSError."""
    for device in tc.qdisc_kinds(requests):
        try:
            remove_from(requests, device, ours)
        except OSError:
            if find_device(requests, device):  # else it has gone meanwhile
                raise


def any_left(requests: IPRoute, ours: Ours) -> bool:
    """Whether any of ours is on a device of a namespace. Raises OSError."""
    return any(ours.has(each) for device in tc.qdisc_kinds(requests) for each in tc.filters(requests, device))
