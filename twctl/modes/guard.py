"""The guard in one network namespace: on every device, put there as they come, kept there, taken away."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink import nlmsg
from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_NEWLINK,
    RTM_NEWTFILTER,
    RTNLGRP_LINK,
    RTNLGRP_TC,
)

from twctl.errors import TwctlError
from twctl.linux import libbpf, netns, tcx
from twctl.linux.devices import Device, devices, find_device, packets
from twctl.linux.netlink import LostError, RouteNetlink
from twctl.linux.procsys import Kernel
from twctl.linux.rtnl import decode
from twctl.linux.sysctl import FOLDER, VITAL, Journal, journal_of
from twctl.linux.tc import EGRESS, INGRESS
from twctl.modes.filters import Ours, Sides, any_left, needs_guard, remove_all
from twctl.modes.histogram import Histogram
from twctl.modes.links import array_of, guarded, is_any_left, remove_links
from twctl.modes.places import Places
from twctl.modes.sysctls import LO_ACCEPT_LOCAL
from twctl.table.pins import GUARD
from twctl.table.published import known_as

PROGRAMS = {INGRESS: "guard_ingress", EGRESS: "guard_egress"}
DELAY_EDGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0)  # s
EVENT_BYTES = 1 << 20
# A namespace that was just given up keeps its devices for a moment (cleanup_net).
GOING_TRIES, GOING_PAUSE = 10, 0.1  # s
# Notifications after which the guard may have to be put on a device; all of them name its number in `index`.
_TOUCHING = frozenset((RTM_NEWLINK, RTM_DELLINK, RTM_NEWTFILTER, RTM_DELTFILTER, RTM_DELQDISC))

Made = TypeVar("Made")


class Guard:
    """The guard in one network namespace.

    path: name or path of the namespace, None for our own. index: its number in the table. table: the pinned table.
    delays: gets the seconds that each new device had no guard.

    devices: numbers of those that have it. reattached: how often a filter had to be put back. late: new devices that
    had carried a packet before. disturbed: whether devices or filters have changed; whoever looks at them sets it to
    False.
    """

    def __init__(self, path: str | None, index: int, table: Path, ours: Ours, delays: Histogram) -> None:
        self._ours, self._delays = ours, delays
        with contextlib.ExitStack() as undo:
            self._netlink = undo.enter_context(contextlib.closing(RouteNetlink(path)))
            events = self._netlink.notifications((RTNLGRP_LINK, RTNLGRP_TC), EVENT_BYTES)
            self._events = undo.enter_context(contextlib.closing(events))
            descriptors = {parent: libbpf.obj_get(table / "programs" / name) for parent, name in PROGRAMS.items()}
            for fd in descriptors.values():
                undo.callback(os.close, fd)
            sides = Sides({parent: libbpf.program_id(fd) for parent, fd in descriptors.items()}, descriptors)
            array = array_of(ours.folder, descriptors) if tcx.is_available() else None
            if array is not None:
                undo.callback(os.close, array)
            self._undo = undo.pop_all()
        self._places = Places(str(table.parent), ours, path, index, sides, array)
        self._looked: float | None = None  # when all devices were looked at last (monotonic)
        self.devices: set[int] = set()
        self._put_back_before, self._put_back = set[int](), set[int]()  # up to the last look at all; since then
        self.reattached = self.late = 0
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
        since, self._looked = self._looked, time.monotonic()
        with self._netlink.requests() as requests:
            present = devices(requests)
            numbers = {each.number for each in present}
            self._places.keep(numbers)
            self.devices &= numbers
            self._ensure_all(requests, present, since)
        self._put_back_before, self._put_back = self._put_back, set()

    def follow(self, since: float) -> None:
        """Handle what has changed since (monotonic, s): new devices get the guard, a filter that was taken comes back.

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
            found = {number: find_device(requests, number) for number in touched}
            for number in [number for number, present in found.items() if not present]:
                self._places.forget(number)
                self.devices.discard(number)
            self._ensure_all(requests, [present for present in found.values() if present], since)

    def _ensure_all(self, requests: IPRoute, present: Sequence[Device], since: float | None) -> None:
        self._places.look(present)
        for each in present:
            self._ensure(requests, each, since)
        if self._places.turn():
            self.attach()

    @property
    def witnessed(self) -> bool:
        """Whether each FIN that leaves has a note, as the guard may miss some (places.py)."""
        return self._places.witnessed

    @property
    def missing(self) -> int:
        """Devices on which it was put back at the last look, or since that before. A scrape's thread asks, too."""
        return len((self._put_back | self._put_back_before) & self.devices)

    def _touched(self) -> set[int]:
        """Devices about which a notification says that the guard may have to be put there."""
        touched: set[int] = set()
        while data := self._events.read():
            self.disturbed = True
            touched |= {message["index"] for message in decode(data) if _type(message) in _TOUCHING}
        return touched

    def counts(self) -> Counter[str]:
        """What counts on when the guard has left."""
        return Counter(reattached=self.reattached, late=self.late)

    def remove(self) -> None:
        """Take the filters away. Raises OSError."""
        self._places.keep(set())
        with self._netlink.requests() as requests:
            remove_all(requests, self._ours)
        self.devices.clear()

    def _ensure(self, requests: IPRoute, device: Device, since: float | None) -> None:
        """Put both filters on a device, if it needs them. since: when it was not there yet; None: nobody had looked."""
        known = device.number in self.devices
        try:
            if not needs_guard(device):
                if known or since is None:  # it has become a port: its master has the guard, others' frames pass here
                    self._places.take_off(requests, device.number)
                    self.devices.discard(device.number)
                return
            if not known:
                self._places.attach(requests, device)
            put = self._places.mend(requests, device)
        except OSError as error:
            if not find_device(requests, device.number):  # it has gone meanwhile
                return
            hint = f"'tc filter show dev {device.name} egress' shows what else is there"
            raise TwctlError(f"the guard cannot be attached to {device.name}: {error.strerror}", hint) from error
        if known and put:
            self._put_back.add(device.number)
        self.devices.add(device.number)
        if known:
            self.reattached += put
        elif since is not None:
            self._delays.add(time.monotonic() - since)
            self.late += packets(requests, device.number) > 0


def _type(message: nlmsg) -> int:
    return int(message["header"]["type"])


def ours_at(pins: Path) -> Ours:
    """How the filters are told that belong to what is pinned in this folder now."""
    programs = set()
    for name in PROGRAMS.values():
        with contextlib.suppress(OSError):  # no guard is loaded
            fd = libbpf.obj_get(pins / "current" / "programs" / name)
            programs.add(libbpf.program_id(fd))
            os.close(fd)
    return Ours(frozenset(known_as(pins)), frozenset(programs), pins / GUARD)


def journal_at(pins: Path, name: Path | None = None) -> Journal:
    """The journal of what is pinned in a folder. name: another path that a daemon had for it."""
    return journal_of(name or pins, lambda: _unseen(pins / GUARD))


def refuse_unjournalled(ours: Ours, journals: Iterable[Journal]) -> None:
    """Refuse to go on where the guard does TIME_WAIT's duty and no journal tells what tcp_max_tw_buckets was.

    It could not be put back, and so the guard must not go.

    :raises TwctlError: naming the namespace.
    """
    known = {cookie for journal in journals for cookie in journal.cookies()}
    for inode, cookie in _on_duty(ours):
        if cookie in known:
            continue
        message = f"{VITAL} is 0 in network namespace {inode}, and no journal in {FOLDER} tells what it was"
        hint = "in a container mount the host's; if it is lost, set the sysctl by hand as docs/troubleshooting.md says"
        raise TwctlError(message, hint)


def _on_duty(ours: Ours) -> Iterator[tuple[int, int]]:
    """Inode and cookie of the namespaces that have the guard, and by it no TIME_WAIT sockets.

    An administrator's 0 is told from ours by what else the guard needs, which a stop puts back.
    """
    read = Kernel().read
    for where in netns.reachable():
        with contextlib.suppress(TwctlError, OSError):  # it may not be entered, or has just gone
            if read(where, VITAL) == 0 and read(where, LO_ACCEPT_LOCAL) and _is_in(where, ours):
                yield netns.inode(where), netns.cookie(where)


def _is_in(where: str | None, ours: Ours) -> bool:
    """Whether the guard stands in a namespace. Raises OSError."""
    return netns.inode(where) in guarded(ours.folder) or bool(_in(where, lambda requests: any_left(requests, ours)))


def _unseen(folder: Path) -> set[int]:
    """Namespaces (inodes) that have the guard and cannot be entered; only its links tell (Linux 6.6)."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for _ in range(GOING_TRIES):
            if found := guarded(folder):
                found -= {netns.inode(path) for path, _ in netns.entered()}
            if not found:
                break
            time.sleep(GOING_PAUSE)
    return found


def remove(ours: Ours, stay: Collection[int] = ()) -> Iterator[str]:
    """Take the guard out of every namespace that can be entered, but for those to stay (inodes).

    The filters tell whose they are: it does not matter what became of the table. Yields what failed, a line each.
    """
    try:
        remove_links(ours.folder, stay)
    except OSError as error:
        yield f"the guard is left: {error}"
    for path in netns.reachable():
        if (inode := netns.inode(path)) in stay:
            continue
        try:
            _in(path, lambda requests: remove_all(requests, ours))
        except OSError as error:
            yield f"the guard is left in network namespace {inode}: {error.strerror}"


def is_left(ours: Ours) -> bool:
    """Whether the guard stands in any namespace that can be entered. Raises OSError."""
    return is_any_left(ours.folder) or any(
        _in(path, lambda requests: any_left(requests, ours)) for path in netns.reachable()
    )


def _in(path: str | None, ask: Callable[[IPRoute], Made]) -> Made | None:
    """Ask in a namespace; None where it may not be entered. Raises OSError."""
    with contextlib.suppress(TwctlError), contextlib.closing(RouteNetlink(path)) as netlink, netlink.requests() as made:
        return ask(made)
    return None
