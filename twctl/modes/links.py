"""The guard's TCX links on the devices of one namespace: how they are found, put there and taken away.

TCX tells a program no class ID. So each link has a program of its own, a label of seven instructions, which writes that
number and goes on with the guard, by a tail call through an array of the two guard programs. The array is pinned beside
the links, not with the table: where another table takes the place of the last, the old guard stays for its sessions. A
link's pin is named after namespace (inode), device, side and the link itself.
"""

import contextlib
import os
import stat
import struct
from collections.abc import Collection, Container, Iterator, Mapping
from pathlib import Path

from twctl.errors import TwctlError
from twctl.linux import libbpf, netns, tcx
from twctl.linux.capabilities import Capability, in_force
from twctl.linux.devices import Device
from twctl.linux.tc import EGRESS, INGRESS
from twctl.linux.tcx import LO, PLACES
from twctl.table.pins import GUARD

# Numbers in the array, and the words of pins.
ELEMENTS = {INGRESS: 0, EGRESS: 1}
SIDES = {INGRESS: "ingress", EGRESS: "egress"}
FOLDER, ARRAY = Path("links"), Path("maps", "guards")  # below the guard's own folder of pins
# So deep in a bpffs another twctl's folder is looked for: each level may have thousands of others' pins.
DEPTH = 4


def array_of(folder: Path, guards: Mapping[int, int]) -> int:
    """Have the pinned array lead to these programs (descriptors by side); returns its descriptor. Raises OSError."""
    for each in (folder, folder / FOLDER, (folder / ARRAY).parent):
        each.mkdir(mode=0o700, exist_ok=True)
    try:
        array = libbpf.obj_get(folder / ARRAY)
    except FileNotFoundError:
        with in_force(Capability.BPF):
            array = libbpf.program_array("twctl_guards", len(ELEMENTS))
        libbpf.obj_pin(array, folder / ARRAY)
    for side, element in ELEMENTS.items():
        libbpf.map_update(array, struct.pack("=I", element), struct.pack("=i", guards[side]))
    return array


class Links:
    """Puts them on the devices of one namespace.

    folder: the guard's own, of pins. path: of the namespace, None for our own. array: descriptor, the caller's.
    """

    def __init__(self, folder: Path, path: str | None, array: int) -> None:
        self._folder, self._path, self._array = folder / FOLDER, path, array
        self._inode = inode = netns.inode(path)
        self._orders: dict[tuple[int, int], list[int]] = {}
        self._pins: dict[tuple[int, int], list[Path]] = {}
        for pin in _pins(folder):
            owner, device, side, _ = pin.name.split("-")
            if int(owner) == inode:
                self._pins.setdefault((int(device), _side(side)), []).append(pin)
        # What their labels say; of those that were there before nothing is known.
        self._class_ids: dict[Path, int] = {}

    def put(self, device: Device, side: int, class_id: int) -> None:
        """Attach one to a device. Raises OSError."""
        name = f"{self._inode}-{device.number}-{SIDES[side]}"
        label = self._label(side, class_id)
        try:
            # inside, numbers of devices are the namespace's
            pin = netns.attempt_inside(self._path, lambda: tcx.put(label, device.number, side, self._folder, name))
        finally:
            os.close(label)
        self._pins.setdefault((device.number, side), []).append(pin)
        self._class_ids[pin] = class_id

    def look(self, devices: Collection[Device]) -> None:
        """Learn what is attached to these, for `mend`: all at once, for to go inside takes a thread."""
        places = [(device.number, side) for device in devices for side in PLACES]
        self._orders = dict(
            zip(places, netns.inside(self._path, lambda: [_order(*each) for each in places]), strict=True)
        )

    def _label(self, side: int, class_id: int) -> int:
        return tcx.load_label(f"twctl_{SIDES[side]}", class_id, self._array, ELEMENTS[side])

    def mend(self, device: Device, sides: Collection[int], class_id: int) -> int:
        """Put right what is missing, is not first or last, or has another class ID; returns how many were missing.

        What is not in its place is there until another is. Device: one of the last look. Raises OSError.

        :raises TwctlError: if another twctl has its guard there.
        """
        missing = 0
        if sides and not any(self._pins.get((device.number, side)) for side in sides):
            self._refuse_others(device, sides)
        for side in sides:
            right = self._in_place(device.number, side)
            if not right:
                missing += 1
                self.put(device, side, class_id)
                right = self._pins[device.number, side][-1]
            elif self._class_ids.get(right) != class_id:
                self._relabel(right, side, class_id)
            for pin in set(self._pins[device.number, side]) - {right}:
                self._drop(device.number, side, pin)
        return missing

    def has_others(self, device: int, side: int) -> bool:
        """Whether somebody else's programs were on a side of a device at the last look."""
        ours = {found.program for pin in self._pins.get((device, side), ()) if (found := tcx.find(pin))}
        return bool(set(self._orders.get((device, side), ())) - ours)

    def _refuse_others(self, device: Device, sides: Collection[int]) -> None:
        """A link does not say whose it is: that takes a look at all pins, where anything is attached."""
        if not any(self.has_others(device.number, side) for side in sides):
            return
        own = self._folder.parents[1].resolve()
        mount = next(folder for folder in own.parents if folder.is_mount())
        for root in own_folders(mount, DEPTH):
            inside = _inside(root / GUARD / FOLDER)
            pins = [pin for pin in inside if pin.name.startswith(f"{self._inode}-{device.number}-")]
            if root != own and any(map(tcx.find, pins)):
                message = f"{device.name} has the guard of another twctl, which pins at {root}"
                raise TwctlError(message, f"stop that one, then 'twctl release --pins {root}'")

    def _in_place(self, device: int, side: int) -> Path | None:
        """The pin of the one that is first or last of all."""
        order = self._orders.get((device, side), [])
        for pin in self._pins.get((device, side), ()):
            found = tcx.find(pin)
            if found and found.device == device and [found.program] == (order[:1] if side == INGRESS else order[-1:]):
                return pin
        return None

    def _relabel(self, pin: Path, side: int, class_id: int) -> None:
        label = self._label(side, class_id)
        try:
            tcx.exchange(pin, label)
        finally:
            os.close(label)
        self._class_ids[pin] = class_id

    def _drop(self, device: int, side: int, pin: Path) -> None:
        tcx.remove(pin)
        self._class_ids.pop(pin, None)
        self._pins[device, side].remove(pin)

    def take_off(self, device: int, sides: Collection[int] = tuple(PLACES)) -> None:
        """Take them off a device, also one that is in another namespace by now. Raises OSError."""
        for side in sides:
            for pin in tuple(self._pins.get((device, side), ())):
                self._drop(device, side, pin)

    def keep(self, devices: Container[int]) -> None:
        """Take away those of devices that are not in the namespace any more. Raises OSError."""
        for device in {device for device, _ in self._pins if device not in devices}:
            self.take_off(device)
            for side in PLACES:
                self._pins.pop((device, side), None)


def own_folders(folder: Path, depth: int) -> Iterator[Path]:
    """Yield those of who runs this, so deep below a folder, in which anybody may make folders and symbolic links."""
    for path in _inside(folder):
        status = None
        with contextlib.suppress(OSError):
            status = path.lstat()
        if status and stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
            yield path
            if depth > 1:
                yield from own_folders(path, depth - 1)


def _inside(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []


def _order(device: int, side: int) -> list[int]:
    with contextlib.suppress(OSError):  # it has gone meanwhile
        return libbpf.attached(device, PLACES[side])
    return []


def _side(word: str) -> int:
    return next(side for side, each in SIDES.items() if each == word)


def _pins(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("*-*-*-*"))


def remove_links(folder: Path, stay: Collection[int] = ()) -> None:
    """Take the guard's links away, but in the namespaces that stay (inodes); none is entered. Raises OSError.

    If none may stay the array goes, too, and what it keeps loaded.
    """
    for pin in _pins(folder):
        if int(pin.name.partition("-")[0]) not in stay:
            tcx.remove(pin)
    if not stay:
        (folder / ARRAY).unlink(missing_ok=True)
        for each in ((folder / ARRAY).parent, folder / FOLDER, folder):
            with contextlib.suppress(FileNotFoundError):
                each.rmdir()


def guarded(folder: Path) -> set[int]:
    """Inodes of the namespaces that have the guard, entered or not: that of lo goes with them. Raises OSError."""
    return {int(pin.name.partition("-")[0]) for pin in (folder / FOLDER).glob(f"*-{LO}-*-*") if tcx.find(pin)}


def is_any_left(folder: Path) -> bool:
    """Whether any of the guard's links is on a device. Raises OSError."""
    return any(tcx.find(pin) for pin in _pins(folder))
