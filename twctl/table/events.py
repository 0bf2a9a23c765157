"""Entries and ends as they happen: how the programs are asked to tell them, and what they tell, as plain values."""

import contextlib
import fcntl
import ipaddress
import os
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.errors import TwctlError
from twctl.linux import libbpf
from twctl.linux.ringbuf import RingBuffer
from twctl.table.counters import TICK, Reason
from twctl.table.maps import Table
from twctl.table.records import TICK_SHIFT
from twctl.table.shared import CONSTANTS, STRUCTS

RING_BYTES = 1 << 24  # 123,000 events: one second at 100,000 a second, for a listener that has to wait for a CPU
LISTENING_TICKS = CONSTANTS["LISTENING_TICKS"]
MOST_SESSIONS = 1 << 19  # whose expiry is kept in mind, of 600 bytes each
ENTERED, ADOPTED, RESTARTED, ENDED = (
    CONSTANTS[f"EVENT_{name}"] for name in ("ENTERED", "ADOPTED", "RESTARTED", "ENDED")
)
_TUPLES = ("socket", "wire")
_NUMBERS = ("number", "time", "expiry", "lifetime", "owner", "kind", "reason", "class", "family", "fin_wait2")
EVENT = STRUCTS["event"].packer(_NUMBERS + _TUPLES, raw=_TUPLES)
_ENDS = ("local", "remote", "local_port", "remote_port")
_TUPLE = STRUCTS["tuple"].packer((*_ENDS, "netns"), raw=_ENDS)
_PORT = struct.Struct(">H")
REASONS = {int(reason): reason.name.lower() for reason in Reason}
LABELS = {int(class_): class_.label for class_ in Class}
OWNER_MASK, TRANSLATED = CONSTANTS["OWNER_MASK"], CONSTANTS["TRANSLATED"]


class Peers(NamedTuple):
    """Addresses as text and ports of both; netns: the namespace's index."""

    local: str
    local_port: int
    remote: str
    remote_port: int
    netns: int


class Event(NamedTuple):
    """One event. time: CLOCK_MONOTONIC (s). ended: why, None for an entry; adopted: nobody saw that.

    lifetime: seconds that it lasted, or of an entry is to last. owner: its number. wire: where packets have other
    addresses than the socket.
    """

    time: float
    ended: str | None
    adopted: bool
    family: str
    class_: str
    fin_wait2: bool
    lifetime: float
    owner: int
    socket: Peers
    wire: Peers | None


class Listener:
    """Has the programs tell their events as long as it looks, which it must do each second; a context.

    lost: events that it was too slow for. deaf: seconds in which nothing was told, as it was stopped, or had no CPU.

    :raises TwctlError: if somebody else listens.
    """

    def __init__(self, current: Path) -> None:
        self._current, self._table = current, Table(current, writable=True)
        self.deaf = 0.0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._folder = os.open(self._current / "maps", os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, self._folder)
            try:
                fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = f"another 'twctl events' listens at {self._current.parent}"
                raise TwctlError(
                    message, "one can at a time: end that one, or share what it writes, with tee"
                ) from error
            self._ring = RingBuffer(b"twctl_events", RING_BYTES)
            undo.callback(self._ring.close)
            self._table.update("listener", bytes(4), struct.pack("=I", self._ring.fd))
            undo.callback(self._forget)
            self._before = self._count_lost()
            self._seen = self._last = (0, 0.0)
            self._until = self._table.listen(LISTENING_TICKS)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _forget(self) -> None:
        with contextlib.suppress(TwctlError, OSError):  # the table was removed meanwhile
            self.stop()
            fd = self._table.fd("listener")
            try:
                libbpf.map_delete(fd, bytes(4))
            finally:
                os.close(fd)

    def stop(self) -> None:
        """Have no more told; what was is still there to be read."""
        self._until = self._table.listen(0)

    def _renew(self) -> None:
        """Go on listening, unless stopped."""
        if not self._until:
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._folder), (self._current / "maps").stat()):
                tick = time.monotonic_ns() >> TICK_SHIFT
                self.deaf += max(0, tick - self._until) * TICK
                self._until = self._table.listen(LISTENING_TICKS)
                return
        raise TwctlError(f"the table at {self._current} was removed or replaced", "start 'twctl events' again")

    def pieces(self) -> Iterator[bytes]:
        """What was told since the last look, records of EVENT, until nothing is left.

        :raises TwctlError: if the table was removed or replaced.
        """
        self._renew()
        for piece in self._ring.pieces():
            yield piece
            self._renew()

    @property
    def lost(self) -> int:
        """Events since the start that there was no room for."""
        return self._count_lost() - self._before

    def has_missed(self) -> bool:
        """Whether, since the last time, something was lost that what was read by now can be about.

        To be asked when all is read. What is lost while that is done may be about what is read the next time.
        """
        lost, deaf = self.lost, self.deaf
        missed = (lost, deaf) != self._seen
        self._seen, self._last = self._last, (lost, deaf)
        return missed

    def _count_lost(self) -> int:
        return self._table.counters().get("events_lost", 0)


class Book:
    """Of those sessions whose entry was told, when each will expire, for nothing tells when that happens.

    The table's capacity bounds it, and `most` that. untold: sessions whose end will not be told, for want of room, or
    because events were lost.
    """

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most, self.untold = most, 0
        self._expiry: dict[int, int] = {}  # tick, by the session's number
        self._due: defaultdict[int, dict[int, tuple[int, Event]]] = defaultdict(dict)  # start (tick) and entry

    def enter(self, number: int, expiry: int, lifetime: int, event: Event) -> None:
        """Keep in mind."""
        if len(self._expiry) >= self._most:
            self.untold += 1
            return
        self._expiry[number] = expiry
        self._due[expiry][number] = expiry - lifetime, event

    def restart(self, number: int, expiry: int, lifetime: int, *, fin_wait2: bool) -> None:
        """Its timer has started anew."""
        if number in self._expiry:
            _, event = self._due[self._expiry[number]].pop(number)
            self.enter(number, expiry, lifetime, event._replace(fin_wait2=fin_wait2))

    def end(self, number: int) -> None:
        """It has ended, and was told so."""
        if (expiry := self._expiry.pop(number, None)) is not None:
            del self._due[expiry][number]

    def forget(self) -> None:
        """Events were lost, and nobody knows whose: nothing is sure of any."""
        self.untold += len(self._expiry)
        self._expiry.clear()
        self._due.clear()

    def expired(self, tick: int) -> Iterator[Event]:
        """Those whose time was up by this tick."""
        for due in sorted(each for each in self._due if each <= tick):
            for number, (start, event) in self._due.pop(due).items():
                del self._expiry[number]
                lifetime = (due - start) * TICK
                yield event._replace(time=due * TICK, ended="expired", adopted=False, lifetime=lifetime)


def decode(piece: bytes, book: Book, takes: Callable[[Event], bool]) -> Iterator[Event]:
    """What was told, as far as it is wanted; the book is kept."""
    for number, at, expiry, lifetime, owner, kind, reason, class_, family, fin_wait2, socket, wire in EVENT.iter_unpack(
        piece
    ):
        if kind == RESTARTED:
            book.restart(number, expiry, lifetime, fin_wait2=bool(fin_wait2))
            continue
        event = Event(
            at / 1e9,
            REASONS[reason] if kind == ENDED else None,
            kind == ADOPTED,
            FAMILIES[family],
            LABELS[class_],
            bool(fin_wait2),
            lifetime * TICK,
            owner & OWNER_MASK,
            peers(family, socket),
            peers(family, wire) if owner & TRANSLATED else None,
        )
        if kind == ENDED:
            book.end(number)
        if not takes(event):
            continue
        if kind != ENDED:
            book.enter(number, expiry, lifetime, event)
        yield event


def peers(family: int, raw: bytes) -> Peers:
    """Decode a struct tuple."""
    local, remote, local_port, remote_port, netns = _TUPLE.unpack(raw)
    size = 16 if family else 4
    return Peers(
        _text(local[:size]),
        _PORT.unpack(local_port)[0],
        _text(remote[:size]),
        _PORT.unpack(remote_port)[0],
        netns,
    )


@lru_cache(4096)
def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))
