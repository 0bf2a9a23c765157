"""What `twctl events` prints: each entry and each end as it happens, a line each, until a signal ends it."""

import contextlib
import ipaddress
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import TextIO

from twctl.addresses import host_port
from twctl.commands.table import Filter
from twctl.table.events import Book, Event, Listener, Peers, decode
from twctl.table.maps import Table
from twctl.table.names import Names
from twctl.table.records import TICK_SHIFT
from twctl.table.tallies import OTHER, Owner, owners

_COLUMNS = "{:<12} {:<5} {:<8} {:<9} {:<21} {:<21} {:>8} {:<9} {:<20} {}"
TITLE = _COLUMNS.format(
    *("time", "event", "class", "substate", "local", "remote", "lifetime", "reason", "owner", "netns"),
)
PAUSE = 0.05  # s, between two looks
LEARN = 1.0  # s, between two looks at who owns
# The expiry of a session is told so late: an end that came just before it is in the ring by then.
LATE_TICKS = 3
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class People:
    """Names of owners and namespaces, learnt again as new ones come."""

    def __init__(self, table: Table) -> None:
        self._table, self._names = table, Names(table)
        self._learn()

    def _learn(self) -> None:
        self._learned = time.monotonic()
        self._owners = owners(self._table)
        self._names.update(self._owners.values())
        self._texts: dict[int, str] = {}
        self._namespaces = {index: name for index, (_, name) in self._table.enrolments().items()}

    def update(self) -> None:
        """Look again, if that was a while ago."""
        if time.monotonic() - self._learned >= LEARN:
            self._learn()

    def know(self, name: str) -> bool:
        """Whether an owner has this name."""
        return name in {self._names.owner(owner) for owner in (*self._owners.values(), OTHER)}

    def owner(self, number: int) -> str:
        """As `twctl blame` names it."""
        if (text := self._texts.get(number)) is None:
            party = self._owners.get(number)
            if party is None:  # it came since
                self._owners = owners(self._table)
                party = self._owners.setdefault(number, OTHER)
            text = self._texts[number] = self._names.owner(party) if isinstance(party, Owner) else "other"
        return text

    def netns(self, index: int) -> str:
        """As `twctl table` names it."""
        return self._namespaces.get(index, f"#{index}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events are. owner: as `twctl blame` names it; None: any."""

    sessions: Filter
    owner: str | None = None

    def takes(self, people: People) -> Callable[[Event], bool]:
        """What says whether an event is."""
        if self == Wanted(Filter()):
            return lambda _: True
        return lambda event: self._takes(event, people)

    def _takes(self, event: Event, people: People) -> bool:
        wanted = self.sessions
        return (
            wanted.family in {None, event.family}
            and (wanted.class_ is None or wanted.class_.label == event.class_)
            and wanted.local_port in {None, event.socket.local_port}
            and (wanted.remote is None or _address(event.socket.remote) in wanted.remote)
            and self.owner in {None, people.owner(event.owner)}
        )


_address = lru_cache(4096)(ipaddress.ip_address)


def follow(current: Path, wanted: Wanted, *, json_: bool, out: TextIO = sys.stdout) -> str:
    """Print until a signal comes; returns what is said at the end.

    :raises TwctlError: if nothing is pinned, somebody else listens, or the table is removed or replaced meanwhile.
    """
    people = People(Table(current))
    tell, book = (as_json if json_ else as_line), Book()
    takes, clock = wanted.takes(people), time.time() - time.monotonic()
    told = 0
    with _stopping() as stopped, Listener(current) as listener:
        if not json_:
            print(TITLE, file=out, flush=True)
        if wanted.owner is not None and not people.know(wanted.owner):  # who comes later may be meant
            hint = "'twctl blame --by owner' shows the names; waiting"
            sys.stderr.write(f"twctl: no owner is named {wanted.owner} yet ({hint})\n")
        while True:
            over = stopped()
            if over:
                listener.stop()
            for events in _look(listener, book, takes):
                lines = [tell(event, people, clock) for event in events]
                out.writelines(lines)
                told += len(lines)
            out.flush()
            if over:
                return _farewell(told, listener, book)
            people.update()
            if not stopped():
                time.sleep(PAUSE)


def _look(listener: Listener, book: Book, takes: Callable[[Event], bool]) -> Iterator[Iterator[Event]]:
    """What was told since the last look, and what has expired since."""
    tick = (time.monotonic_ns() >> TICK_SHIFT) - LATE_TICKS
    for piece in listener.pieces():
        yield decode(piece, book, takes)
    if listener.has_missed():
        book.forget()
    yield book.expired(tick)


def _farewell(told: int, listener: Listener, book: Book) -> str:
    text = f"{told} events told, {listener.lost} lost"
    if listener.deaf:
        text += f", and all of {listener.deaf:.1f} s in which this command did not run"
    if book.untold:
        text += f"; of {book.untold} sessions the end was not told"
    return text


@contextlib.contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Signals that end the command only say so; sleeping ends with them. Yields whether one came."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {each: signal.signal(each, note) for each in ENDS}
    try:
        yield lambda: bool(came)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def as_line(event: Event, people: People, clock: float) -> str:
    """Columns as those of `twctl table`."""
    at, substate = event.time + clock, "FIN_WAIT2" if event.fin_wait2 else "TIME_WAIT"
    kind, lifetime = ("end", f"{event.lifetime:.1f}s") if event.ended else ("entry", "-")
    reason = event.ended or ("adopted" if event.adopted else "-")
    socket, wire = event.socket, event.wire
    local, remote = host_port(socket.local, socket.local_port), host_port(socket.remote, socket.remote_port)
    text = _COLUMNS.format(
        f"{_second(int(at))}.{int(at % 1 * 1000):03}",
        *(kind, event.class_, substate, local, remote, lifetime, reason),
        people.owner(event.owner),
        people.netns(socket.netns),
    ).rstrip()
    if wire:
        ends = host_port(wire.local, wire.local_port), host_port(wire.remote, wire.remote_port)
        text += f"  on the wire {ends[0]} -> {ends[1]}"
    return text + "\n"


@lru_cache(8)
def _second(at: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


# By hand: the json module would take most of the time that there is for 100,000 a second. Only names need quoting.
_JSON = (
    '{"event": "%s", "time": %.6f, "class": "%s", "family": "%s", "substate": "%s", "local": "%s", "local_port": %d, '
    '"remote": "%s", "remote_port": %d, "expires_in": %s, "lifetime": %s, "reason": %s, "owner": %s, "netns": %s, '
    '"wire": %s}\n'
)
_quoted = lru_cache(4096)(json.dumps)


def as_json(event: Event, people: People, clock: float) -> str:
    """Keys as those of `twctl table --json`, and what an event has besides."""
    socket, ended = event.socket, event.ended
    return _JSON % (
        "end" if ended else "entry",
        event.time + clock,
        event.class_,
        event.family,
        "FIN_WAIT2" if event.fin_wait2 else "TIME_WAIT",
        socket.local,
        socket.local_port,
        socket.remote,
        socket.remote_port,
        "null" if ended else f"{event.lifetime:.3f}",
        f"{event.lifetime:.3f}" if ended else "null",
        f'"{ended}"' if ended else '"adopted"' if event.adopted else "null",
        _quoted(people.owner(event.owner)),
        _quoted(people.netns(socket.netns)),
        _wire(event.wire),
    )


def _wire(wire: Peers | None) -> str:
    if wire is None:
        return "null"
    row = wire._asdict()
    del row["netns"]
    return json.dumps(row)
