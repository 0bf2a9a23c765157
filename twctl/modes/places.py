"""Where the guard stands on a device: first of all that see what comes in, last of all that see what goes out.

Where the kernel has TCX it stands there, as links: what comes in passes TCX before the filters of a qdisc. So does what
goes out; where somebody has filters for that, the guard has to be the last of these.
"""

from collections.abc import Collection

from pyroute2 import IPRoute

from twctl.linux import tc
from twctl.linux.devices import Device
from twctl.linux.tc import EGRESS, INGRESS
from twctl.modes.filters import Filters, Ours, Sides, class_id_of, owner, remove_from
from twctl.modes.links import Links

BOTH = (INGRESS, EGRESS)


class Places:
    """Puts the guard on the devices of one namespace.

    pins: the folder that filters are named after. path, index: the namespace's. array: of the links (links.py); None
    where there is no TCX.

    Somebody else's program that stands before the guard for what goes out may end the way there, and the guard misses
    it. Where there is one the namespace is witnessed: each FIN that the guard sees leave gets a note.
    """

    def __init__(self, pins: str, ours: Ours, path: str | None, index: int, sides: Sides, array: int | None) -> None:  # noqa: PLR0913, PLR0917 - what a place is made of
        self._ours, self._index, self._tcx = ours, index, array is not None
        self._filters = Filters(pins, ours, index, sides)
        self._links = Links(ours.folder, path, -1 if array is None else array)
        self._passing: set[int] = set()

    def look(self, devices: Collection[Device]) -> None:
        """Learn what is attached to these, before `mend`."""
        if self._tcx:
            self._links.look(devices)

    def attach(self, requests: IPRoute, device: Device) -> None:
        """Put the guard on a device that has just come, before anything is looked at; `mend` does the rest."""
        if not self._tcx:
            self._filters.attach(requests, device)

    def mend(self, requests: IPRoute, device: Device) -> int:
        """Put right what is missing or out of place; returns how many sides had none. What goes, goes last.

        Raises OSError.

        :raises TwctlError: if another twctl has its guard there.
        """
        found = tc.filters(requests, device.number)
        others = {each.parent for each in found if owner(each) is None}
        self._note(device.number, passing=EGRESS in others or self._links.has_others(device.number, EGRESS))
        linked = [side for side in BOTH if side == INGRESS or EGRESS not in others] if self._tcx else []
        filtered = [side for side in BOTH if side not in linked]
        missing = self._links.mend(device, linked, class_id_of(self._index, device, witnessed=self.witnessed))
        missing += self._filters.mend(requests, device, filtered)
        self._links.take_off(device.number, filtered)
        remove_from(requests, device.number, self._ours, linked)
        return missing

    def _note(self, device: int, *, passing: bool) -> None:
        self._passing = self._passing | {device} if passing else self._passing - {device}

    @property
    def witnessed(self) -> bool:
        """What the class IDs say."""
        return self._filters.witnessed

    def turn(self) -> bool:
        """Have class IDs say what was found since; True if all have to be mended for that."""
        turns = bool(self._passing) != self._filters.witnessed
        self._filters.witnessed = bool(self._passing)
        return turns

    def take_off(self, requests: IPRoute, device: int) -> None:
        """Take the guard off a device. Raises OSError."""
        self._note(device, passing=False)
        self._links.take_off(device)
        remove_from(requests, device, self._ours)

    def forget(self, device: int) -> None:
        """The device has gone, perhaps to another namespace: a link would go with it. Raises OSError."""
        self._note(device, passing=False)
        self._links.take_off(device)

    def keep(self, devices: set[int]) -> None:
        """No other devices are there. Raises OSError."""
        self._passing &= devices
        self._links.keep(devices)
