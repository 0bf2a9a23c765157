"""What `twctl drain` and `twctl release` do: destroy TIME_WAIT sockets now, and give everything back to the kernel."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from twctl.classes import Class
from twctl.errors import TwctlError
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sysctl import journal_of
from twctl.modes import guard
from twctl.modes.truncate import Reaper, drain
from twctl.table.counters import Reason
from twctl.table.enrolments import reachable
from twctl.table.maps import Table
from twctl.table.pins import Pins


def drain_now(pins: Path, classes: Sequence[Class], older_than: float) -> dict[Class, int]:
    """Destroy the TIME_WAIT sockets of these classes that are older than so many seconds; returns how many of each.

    :raises TwctlError: if no table is pinned, or its namespaces cannot be entered.
    """
    table = Table(pins / "current", writable=True)
    with contextlib.ExitStack() as opened:
        diags = {index: SockDiag(name or None) for index, name in reachable(table).items()}
        for diag in diags.values():
            opened.callback(diag.close)
        opened.enter_context(table.exclusive())
        return drain(Reaper(table, diags, Reason.DRAINED), classes, older_than)


def release(pins: Path) -> tuple[bool, list[str]]:
    """Put sysctls back, then take the guard away, then remove the pins; returns whether there were any, and complaints.

    In this order no host is ever left without TIME_WAIT sockets and without a guard.

    :raises TwctlError: if a daemon is running.
    """
    complaints = [] if Pins(pins).locked() else [*journal_of(pins).restore(), *_remove_guard(pins)]
    return Pins(pins).remove(), complaints


def _remove_guard(pins: Path) -> list[str]:
    with contextlib.suppress(TwctlError):
        table = Table(pins / "current")
        if table.guard:
            return list(guard.remove(table.enrolments(), pins / "current"))
    return []
