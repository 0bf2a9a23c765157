"""What a start finds: a pinned table to take over or to replace, a guard that is still needed, sysctls to put back."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.config.config import Config
from twctl.config.keys import LONGEST_LIFE
from twctl.errors import TwctlError
from twctl.linux.sysctl import VITAL, Journal
from twctl.modes import guard
from twctl.modes.filters import Ours
from twctl.modes.sysctls import sysctls_of
from twctl.table import loader
from twctl.table.layout import Layout
from twctl.table.maps import Table
from twctl.table.pins import Pins
from twctl.table.published import known_as
from twctl.table.sources import guard_identity, table_identity

log = logging.getLogger("twctl")


def take_over_or_load(pins: Pins, config: Config, ours: Ours, put_sysctls_back: Callable[[], None]) -> Table:
    """The pinned table, if it is what would be loaded; else a new one in its place.

    A guard that works on the old one goes on doing so (Table.guard says that there is one), but nothing new comes to
    it: the kernel has to keep TIME_WAIT sockets itself before the old probe goes. ours: how its filters are told.

    :raises TwctlError: if this kernel does not take the probes; then what is pinned is what was.
    """
    layout = Layout({family: getattr(config.capacity, family) for family in FAMILIES})
    lives = [int(times[class_] * 1e9) for times in (config.time_wait, config.fin_wait2) for class_ in Class]
    if (pins.current / "maps").is_dir():
        with contextlib.suppress(TwctlError, OSError):
            table = Table(pins.current, writable=True)
            if table.identity == table_identity(layout, config.probe, searches=config.port_search > 0):
                log.info("took over the pinned table at %s: same layout", pins.current)
                return table
            lives = [*map(max, lives, table.lives)]
        log.info("replacing the pinned table at %s: other layout, capacity or probe", pins.current)
    put_sysctls_back()
    sizes = {family: {class_.label: layout.capacity[family][class_] for class_ in Class} for family in FAMILIES}
    earlier = [min(each, LONGEST_LIFE * 10**9) for each in lives] if guard.is_left(ours) else []
    loaded = pins.load(loader.Request(str(pins.root / "next"), sizes, config.probe, earlier, config.port_search > 0))
    if loaded.unmeasured:
        log.warning("connect() is not measured: %s", loaded.unmeasured)
    if loaded.refused:
        log.info("fentry is not available: %s", loaded.refused)
    return Table(pins.current, writable=True)


def load_guard(table: Table, folder: Path) -> None:
    """Load the guard of the table pinned in this folder, unless it is loaded already. Raises TwctlError."""
    if table.guard != guard_identity():
        loader.load_guard(folder)


def put_back(root: Path) -> None:
    """Put back what the last daemon that used these pins has changed, unless one runs.

    For a start that is refused: a crash before it must not leave a host without TIME_WAIT sockets for good.
    """
    pins = Pins(root)
    with contextlib.suppress(TwctlError):  # another has the lock
        if pins.on_bpffs():
            pins.lock()
        Sysctls(root).put_back()
    pins.unlock()


class Fresh:
    """Unpins the table that a start has loaded, with its guard, if its block ends in an error before it is kept.

    An earlier guard stays, and where TIME_WAIT sockets could not be had back, all does.
    """

    def __init__(self, pins: Pins) -> None:
        self._pins, self._kept = pins, False

    def keep(self) -> None:
        """The start is over: whatever happens now, what is loaded goes on."""
        self._kept = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        root = self._pins.root
        if kind and self._pins.loaded and not self._kept and not guard.journal_at(root).holds(VITAL):
            self._pins.unpin(guard=not guard.is_left(guard.ours_at(root)))


class Sysctls:
    """Puts the sysctls back when its block ends, however it ends, unless they were handed over to the next start.

    journal: what is to be put back. There may be one more by another name of the pins' folder: its daemon is gone.
    """

    def __init__(self, pins: Path) -> None:
        self.journal = guard.journal_at(pins)
        self._others = [guard.journal_at(pins, Path(each)) for each in known_as(pins) - {str(pins)}]
        self._handed_over = False

    def hand_over(self) -> None:
        """Leave them to the configuration that follows: its start sees to them."""
        self._handed_over = True

    def put_back(self, *, strict: bool = False) -> None:
        """Put them back now; log what somebody else has changed meanwhile. Raises TwctlError (Journal)."""
        for journal in (self.journal, *self._others):
            _restore(journal, strict=strict)

    def refuse_lost(self, ours: Ours) -> None:
        """Refuse to start where a guard is all there is, and what the sysctls were is not known. Raises TwctlError."""
        guard.refuse_unjournalled(ours, (self.journal, *self._others))

    def leave_only(self, config: Config) -> None:
        """Put back what this configuration does not set, before anything else is done that it wants otherwise.

        :raises TwctlError: if a namespace is left without TIME_WAIT sockets: its guard must not go.
        """
        for line in self.journal.keep(sysctls_of(config, orphans_stay=True), strict=True):
            log.warning("%s", line)

    def __enter__(self) -> Self:
        for journal in self._others:
            _restore(journal, strict=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._handed_over:
            self.put_back()


def _restore(journal: Journal, *, strict: bool) -> None:
    for line in journal.restore(strict=strict):
        log.warning("%s", line)
