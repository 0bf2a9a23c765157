"""What a start finds: a pinned table to take over or to replace, and sysctls to put back at the end."""

import contextlib
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.config.config import Config
from twctl.errors import TwctlError
from twctl.linux.sysctl import Journal, journal_of
from twctl.table import loader
from twctl.table.layout import Layout
from twctl.table.maps import Table
from twctl.table.pins import Pins
from twctl.table.sources import guard_identity, table_identity

log = logging.getLogger("twctl")


def take_over_or_load(pins: Pins, config: Config, journal: Journal) -> Table:
    """The pinned table, if it is what would be loaded; else a new one in its place.

    Before a probe goes the sysctls are put back: no namespace is ever without TIME_WAIT sockets and without a probe.

    :raises TwctlError: if this kernel does not take the probes.
    """
    layout = Layout({family: getattr(config.capacity, family) for family in FAMILIES})
    if (pins.current / "maps").is_dir():
        with contextlib.suppress(TwctlError, OSError):
            table = Table(pins.current, writable=True)
            if table.identity == table_identity(layout, config.probe):
                log.info("took over the pinned table at %s: same layout", pins.current)
                return table
        log.info("replacing the pinned table at %s: other layout, capacity or probe", pins.current)
        restore_sysctls(journal)
        _say_what_is_forgotten(pins.current)
    sizes = {family: {class_.label: layout.capacity[family][class_] for class_ in Class} for family in FAMILIES}
    loaded = pins.load(loader.Request(str(pins.root / "next"), sizes, config.probe))
    if loaded.refused:
        log.info("fentry is not available: %s", loaded.refused)
    return Table(pins.current, writable=True)


def load_guard(table: Table, folder: Path) -> None:
    """Load the guard of the table pinned in this folder, unless it is loaded already. Raises TwctlError."""
    if table.guard != guard_identity():
        loader.load_guard(folder)


def _say_what_is_forgotten(folder: Path) -> None:
    """The kernel's list tells of the sessions that have sockets; those that only the guard knew are lost."""
    with contextlib.suppress(TwctlError, OSError):
        table = Table(folder)
        if table.guard and (lost := sum(table.living(time.monotonic_ns()).values())):
            log.warning("%d sessions that only the guard knew are forgotten", lost)


def restore_sysctls(journal: Journal) -> None:
    """Put back what the journal has; log what somebody else has changed meanwhile."""
    for line in journal.restore():
        log.warning("%s", line)


def restore_after_crash(root: Path) -> None:
    """Put back what a daemon of these pins left that crashed; not where one runs."""
    pins = Pins(root)
    with contextlib.suppress(TwctlError, OSError):  # nothing was ever pinned there, or a daemon has the lock
        pins.lock()
        restore_sysctls(journal_of(root))
        pins.unlock()


class SysctlsRestored:
    """Puts the sysctls back when its block ends, however it ends, unless they were handed over to the next start."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self._handed_over = journal, False

    def hand_over(self) -> None:
        """Leave them to the configuration that follows: its start sees to them."""
        self._handed_over = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._handed_over:
            restore_sysctls(self._journal)
