"""Live sessions: the index is walked, and the records that it leads to are copied or decoded into plain values."""

import dataclasses
import ipaddress
import mmap
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from twctl.addresses import Address
from twctl.classes import Class
from twctl.table.counters import TICK
from twctl.table.layout import RECORD_BYTES, Layout
from twctl.table.shared import CONSTANTS, STRUCTS

TICK_SHIFT, HORIZON_TICKS = CONSTANTS["TICK_SHIFT"], CONSTANTS["HORIZON_TICKS"]
SLOT_MASK, TICK_MASK = CONSTANTS["SLOT_MASK"], CONSTANTS["TICK_MASK"]
EXPIRY_SHIFT = CONSTANTS["EXPIRY_SHIFT"]  # of the tick in an index word
WORD_FIN_WAIT2 = CONSTANTS["WORD_FIN_WAIT2"]
STEP = 8192  # words of the index that are looked at in one go: 2 ms
STARTS = CONSTANTS["STARTS"]
TRANSLATED = CONSTANTS["TRANSLATED"]
START_MASK, OWNER_MASK = CONSTANTS["START_MASK"], CONSTANTS["OWNER_MASK"]  # a start is a tick modulo START_MASK + 1
RECORDS = {"ipv4": STRUCTS["vestige4"], "ipv6": STRUCTS["vestige6"]}
_BYTES = ("local", "remote", "local_port", "remote_port")
_NUMBERS = ("snd_nxt", "peer_fin", "ts_recent", "ts_offset", "window", "netns", "bits")
VESTIGE = {family: record.packer(_BYTES + _NUMBERS, raw=_BYTES) for family, record in RECORDS.items()}
SCALE_SHIFT = CONSTANTS["VESTIGE_SCALE_SHIFT"]
UNKNOWN, TIMESTAMPS = CONSTANTS["VESTIGE_UNKNOWN"], CONSTANTS["VESTIGE_TIMESTAMPS"]


class Ends(NamedTuple):
    """Addresses and ports of both."""

    local: Address
    local_port: int
    remote: Address
    remote_port: int


@dataclasses.dataclass(frozen=True, slots=True)
class Vestige:
    """One session: who with, what sequence state, how long still.

    local, remote and their ports: as the application sees them. wire: as they are in packets, where these are
    translated on their way (None: alike). expires_in and age in seconds; window as it went on the wire, before scaling;
    ts_recent None without timestamps; known False for a session that was taken over and whose sequence state nobody
    saw.
    """

    family: str
    class_: Class
    substate: str
    local: Address
    local_port: int
    remote: Address
    remote_port: int
    expires_in: float
    age: float
    netns: str
    snd_nxt: int
    rcv_nxt: int
    window: int
    window_scale: int
    ts_recent: int | None
    ts_offset: int
    known: bool
    wire: Ends | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Live sessions of one family and class: slots, numbers of owners, records (VESTIGE) with the sockets' tuples.

    wires: of those that are translated, by their place in the lists, the records with the tuples on the wire.
    """

    family: str
    class_: Class
    slots: list[int]
    owners: list[int]
    records: list[bytes]
    wires: Mapping[int, bytes] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Records:
    """One family's part of the table, mapped into memory.

    words: the index, 64 bits each. starts: of STARTS slots their starts, then their owners, 16 bits each.
    """

    family: str
    layout: Layout
    words: memoryview
    records: mmap.mmap
    starts: memoryview

    def vestiges(self, names: Mapping[int, str]) -> Iterator[Vestige]:
        """Walk the index and yield each live session; one that changes meanwhile may be skipped or seen twice."""
        words, size, now_ns = self.words, RECORD_BYTES[self.family], time.monotonic_ns()
        bases = [(self.layout.ring(self.family, class_).base, class_) for class_ in Class]
        for i in range(len(words)):
            word = words[i]
            left = remaining(word, now_ns) if word else 0.0
            if not left:
                continue
            slot = word & SLOT_MASK
            raw = self.records[slot * size : (slot + 1) * size]
            ticks = (now_ns >> TICK_SHIFT) - self.starts[slot + slot // STARTS * STARTS] & START_MASK
            age = ticks * TICK if ticks <= HORIZON_TICKS else 0.0  # it began after we looked at the clock
            class_ = max(class_ for base, class_ in bases if slot >= base)
            socket = self._socket(class_, slot) if self._flags(slot) & TRANSLATED else None
            if words[i] == word:
                waits = bool(word & WORD_FIN_WAIT2)
                found = decode(self.family, raw, class_=class_, fin_wait2=waits, expires_in=left, age=age, names=names)
                yield translated(found, ends(self.family, socket)) if socket else found

    def owner(self, slot: int) -> int:
        """Number of the owner of a slot's session, as batches have it."""
        return self._flags(slot) & OWNER_MASK

    def _flags(self, slot: int) -> int:
        return self.starts[slot + slot // STARTS * STARTS + STARTS]

    def _socket(self, class_: Class, slot: int) -> bytes:
        """The record after that of a session that is TRANSLATED: the tuple that its application sees."""
        ring, size = self.layout.ring(self.family, class_), RECORD_BYTES[self.family]
        after = slot + 1 if slot + 1 < ring.base + ring.capacity else ring.base
        return self.records[after * size : (after + 1) * size]

    def batches(self) -> Iterator[list[Batch]]:
        """Walk the index as `vestiges` does, without decoding: a tenth of its time, for who wants to count.

        A list for each STEP words, empty ones included.
        """
        words, records, size = self.words, self.records, RECORD_BYTES[self.family]
        shift, mask, horizon, slots = EXPIRY_SHIFT, TICK_MASK, HORIZON_TICKS, SLOT_MASK  # a third faster than globals
        for first in range(0, len(words), STEP):
            part, tick = words[first : first + STEP], time.monotonic_ns() >> TICK_SHIFT
            before = part.tobytes()
            numbers = memoryview(before).cast("Q").tolist()
            live = [word for word in numbers if word and 0 < ((word >> shift) - tick & mask) <= horizon]
            found = {(slot := word & slots): records[slot * size : (slot + 1) * size] for word in live}
            if part.tobytes() != before:  # a record whose word has changed may be another's
                same = set(part.tolist())
                found = {word & slots: found[word & slots] for word in live if word in same}
            yield [batch for class_ in Class if (batch := self._batch(class_, found)).slots]

    def _batch(self, class_: Class, found: Mapping[int, bytes]) -> Batch:
        ring = self.layout.ring(self.family, class_)
        slots = [slot for slot in found if ring.base <= slot < ring.base + ring.capacity]
        flags, records = [self._flags(slot) for slot in slots], [found[slot] for slot in slots]
        wires = {i: records[i] for i, each in enumerate(flags) if each & TRANSLATED}
        for i in wires:
            records[i] = self._socket(class_, slots[i])
        return Batch(self.family, class_, slots, [each & OWNER_MASK for each in flags], records, wires)


def decode(  # noqa: PLR0913 - keywords
    family: str,
    raw: bytes,
    *,
    class_: Class,
    fin_wait2: bool = False,
    expires_in: float,
    age: float,
    names: Mapping[int, str],
) -> Vestige:
    """Decode a record (32 or 64 bytes) into a Vestige."""
    *_, snd, fin, recent, offset, window, netns, bits = VESTIGE[family].unpack(raw)
    known = not bits & UNKNOWN
    return Vestige(
        family=family,
        class_=class_,
        substate="FIN_WAIT2" if fin_wait2 else "TIME_WAIT",
        **ends(family, raw)._asdict(),
        expires_in=expires_in,
        age=age,
        netns=names.get(netns, f"#{netns}"),
        snd_nxt=snd,
        rcv_nxt=fin + (not fin_wait2) & 0xFFFFFFFF if known else 0,
        window=window,
        window_scale=bits >> SCALE_SHIFT,
        ts_recent=recent if bits & TIMESTAMPS else None,
        ts_offset=offset,
        known=known,
    )


def ends(family: str, raw: bytes) -> Ends:
    """Decode the tuple of a record alone."""
    local, remote, local_port, remote_port, *_ = VESTIGE[family].unpack(raw)
    return Ends(
        ipaddress.ip_address(local),
        int.from_bytes(local_port, "big"),
        ipaddress.ip_address(remote),
        int.from_bytes(remote_port, "big"),
    )


def translated(vestige: Vestige, socket: Ends) -> Vestige:
    """A session whose record has the tuple on the wire, as the application sees it."""
    wire = Ends(vestige.local, vestige.local_port, vestige.remote, vestige.remote_port)
    return dataclasses.replace(vestige, wire=wire, **socket._asdict())


def remaining(word: int, now_ns: int) -> float:
    """Seconds until an index word expires; 0 if it has."""
    left = (word >> EXPIRY_SHIFT) - (now_ns >> TICK_SHIFT) & TICK_MASK
    return left * TICK if left <= HORIZON_TICKS else 0.0


def as_json(vestige: Vestige) -> dict[str, Any]:
    """Return what `twctl table --json` prints for a session; `class` is a word of Python, hence the renaming."""
    row = dataclasses.asdict(vestige) | {"local": str(vestige.local), "remote": str(vestige.remote)}
    row["class"] = row.pop("class_").label
    wire = vestige.wire
    row["wire"] = wire and wire._asdict() | {"local": str(wire.local), "remote": str(wire.remote)}
    return row
