"""What `twctl top` tells, without a terminal: rates between two looks, and readings of the whole table."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from twctl.addresses import FAMILIES
from twctl.commands.rankings import Reading
from twctl.errors import TwctlError
from twctl.table.looks import Look, Rates, rates
from twctl.table.maps import Table
from twctl.table.names import Names, user_name
from twctl.table.pins import Pins
from twctl.table.tallies import OTHER, Owner, owners

SHARE = 0.12  # of a CPU, for counting who has the most sessions
BURST = 1.0  # s of it at the most in one go; the first reading may take it at once


@dataclass(frozen=True)
class View:
    """All that is shown, of one moment. readings: the latest that is over, and the one before it."""

    clock: float  # s since 1970
    state: str  # what runs; without a look: why there is none
    look: Look | None = None
    rates: Rates = field(default_factory=dict)
    readings: tuple[Reading | None, Reading | None] = (None, None)
    progress: float = 0.0  # of the reading that is under way


def _owner_name(name: str, owner: Owner) -> str:
    """As systemctl takes it: a service needs no suffix, and there is little room."""
    name = name.removesuffix(".service")
    return name if owner.uid is None else f"{name} {user_name(owner.uid)}"


class Reader:
    """Reads the table over and over, a step at a time."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._steps = sum(table.steps(family) for family in FAMILIES)
        self._names: Names | None = None
        self._begin()
        self.readings: tuple[Reading | None, Reading | None] = (None, None)

    def _begin(self) -> None:
        self._reading, self._done = Reading(), 0
        self._walk = (batches for family in FAMILIES for batches in self._table.batches(family))

    @property
    def progress(self) -> float:
        """How much of the reading is done."""
        return self._done / self._steps

    def step(self) -> bool:
        """Read on for some milliseconds; whether a reading is over."""
        if not self._done:
            self._reading.began = time.monotonic()
        batches = next(self._walk, None)
        if batches is None:
            self._reading.name_owners(self._owner_names({n for each in self._reading.owners.values() for n in each}))
            self._reading.ended = time.monotonic()
            self.readings = (self._reading, self.readings[0])
            self._begin()
            return True
        for batch in batches:
            self._reading.add(batch)
        self._done += 1
        return False

    def _owner_names(self, numbers: set[int]) -> dict[int, str]:
        """Unit or cgroup, and user, of the owners that have sessions."""
        known = owners(self._table)
        found = {number: known.get(number, OTHER) for number in numbers}
        self._names = names = self._names or Names(self._table)
        names.update(found.values())
        return {number: _owner_name(names.owner(owner), owner) for number, owner in found.items()}

    def read(self, seconds: float, interrupted: Callable[[], bool]) -> None:
        """Read on until a reading is over, or so much of a CPU's time is used up, or there is something else to do."""
        end = time.thread_time() + seconds
        while not self.step() and time.thread_time() < end and not interrupted():
            pass


class TableView:
    """Looks at the table that is pinned, as often as it is asked; also at another one that takes its place.

    waits: also for the first one.

    :raises TwctlError: if nothing is pinned there to begin with, unless it waits.
    """

    def __init__(self, pins: Path, *, waits: bool = False) -> None:
        self._pins = pins
        self._source: tuple[Table, Reader] | None = None if waits else self._open()

    def _open(self) -> tuple[Table, Reader]:
        self._pinned = self._stamp()
        table = Table(self._pins / "current")
        self._before: Look | None = None
        return table, Reader(table)

    def _stamp(self) -> tuple[int, int] | None:
        """What tells one table from another: its memory is there even when it is pinned no more."""
        try:
            found = (self._pins / "current/maps/meta").stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def view(self, interval: float, interrupted: Callable[[], bool] = lambda: False) -> View:
        """Look, and read on for as long as an interval (s) allows; says what is wrong where there is no table now."""
        clock = time.time()
        try:
            if self._source is None or self._stamp() != self._pinned:
                self._close()
                self._source = self._open()
            return self._view(*self._source, clock, SHARE * interval, interrupted)
        except (TwctlError, OSError) as error:
            self._close()
            return View(clock, str(error))

    def _view(
        self, table: Table, reader: Reader, clock: float, seconds: float, interrupted: Callable[[], bool]
    ) -> View:
        before = self._before
        look = Look.read(table).held(before)
        reader.read(min(BURST, seconds if before else BURST), interrupted)
        self._before = look
        return View(
            clock=clock,
            state=f"{table.mode}, {table.probe} probe, "
            f"{'daemon running' if Pins(self._pins).locked() else 'no daemon running'}",
            look=look,
            rates=rates(before, look),
            readings=reader.readings,
            progress=reader.progress,
        )

    def _close(self) -> None:
        """Let go of a table, so that its memory goes with its pins."""
        if self._source:
            self._source[0].close()
        self._source = None
