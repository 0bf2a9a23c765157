"""What `twctl drain` and `twctl release` do: destroy TIME_WAIT sockets now, and give everything back to the kernel."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from twctl.addresses import FAMILIES, Network
from twctl.classes import Class
from twctl.errors import TwctlError
from twctl.linux.sockdiag import SockDiag
from twctl.modes import guard
from twctl.modes.feasible import can_destroy
from twctl.modes.selection import Selection
from twctl.modes.truncate import Reaper, drain
from twctl.table.counters import Reason
from twctl.table.enrolments import reachable
from twctl.table.maps import Table
from twctl.table.names import Names
from twctl.table.pins import Pins, sweep_trials
from twctl.table.tallies import OTHER, owners

UNABLE = "drain needs Linux 6.0 and CONFIG_INET_DIAG_DESTROY=y; sessions end by themselves, 60 s old"


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be destroyed: sessions of these classes, older than so many seconds; None: any.

    owner: as `twctl blame` names it. dry: nothing is destroyed, only counted.
    """

    classes: Sequence[Class] = tuple(Class)
    older_than: float = 0.0
    remote: Network | None = None
    local_port: int | None = None
    owner: str | None = None
    dry: bool = False


def drain_now(pins: Path, wanted: Wanted, *, guarding: bool = False) -> dict[Class, int]:
    """Destroy TIME_WAIT sockets; returns how many of each class.

    guarding: whether a daemon runs in mode vestigial, whose sessions have no sockets.

    :raises TwctlError: if no table is pinned, the kernel destroys none, its namespaces cannot be entered, or no owner
        has that name.
    """
    table = Table(pins / "current", writable=True)
    try:  # first: an entry ends before its socket is destroyed
        can_destroy(UNABLE)
    except TwctlError:
        if guarding:
            return dict.fromkeys(wanted.classes, 0)
        raise
    owned = _owned(table, wanted.owner) if wanted.owner is not None else None
    selection = Selection(wanted.remote, wanted.local_port, owned)
    with contextlib.ExitStack() as opened:
        diags = {index: SockDiag(name or None) for index, name in reachable(table).items()}
        for diag in diags.values():
            opened.callback(diag.close)
        reaper = Reaper(table, diags, Reason.DRAINED, takes=selection.takes, dry=wanted.dry)
        return drain(reaper, wanted.classes, wanted.older_than)


def _owned(table: Table, name: str) -> Callable[[str, int], bool]:
    """Whether the session of a family and a slot is that owner's."""
    names, known = Names(table), owners(table)
    if name not in {names.owner(owner) for owner in (*known.values(), OTHER)}:
        raise TwctlError(f"no owner is named {name}", "'twctl blame --by owner' shows the names")
    number_of = {family: table.owner_numbers(family) for family in FAMILIES}
    return lambda family, slot: names.owner(known.get(number_of[family](slot), OTHER)) == name


def told(drained: Mapping[Class, int], *, dry: bool, json_: bool) -> str:
    """What was drained, or would have been, as a line."""
    by_class = {class_.label: count for class_, count in drained.items()}
    if json_:
        return json.dumps({"dry_run": dry, "drained": by_class})
    counts = ", ".join(f"{label} {count}" for label, count in by_class.items())
    return f"{'would drain' if dry else 'drained'} {sum(by_class.values())}: {counts}"


def release(root: Path) -> tuple[bool, list[str]]:
    """Put sysctls back, then take the guard away, then remove the pins; returns whether there were any, and complaints.

    In this order no host is ever left without TIME_WAIT sockets and without a guard.

    :raises TwctlError: if a daemon is running, root is no folder, or somewhere TIME_WAIT sockets cannot be had back,
        also because the journal is lost: then the guard stays.
    """
    pins, ours = Pins(root), guard.ours_at(root)
    pins.locked()  # waited for below; but there may be no such folder
    found = root.exists() or guard.is_left(ours)
    if pins.on_bpffs():  # elsewhere nothing can be pinned
        pins.lock()
    journals = [guard.journal_at(root, Path(each)) for each in sorted(ours.names)]
    complaints = [line for journal in journals for line in journal.restore(strict=True)]
    guard.refuse_unjournalled(ours, journals)
    complaints += guard.remove(ours)
    found |= sweep_trials(root)
    pins.remove()
    return found, complaints
