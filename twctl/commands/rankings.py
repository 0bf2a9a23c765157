"""Who has the most sessions: the records of one walk through the table, counted by endpoint, owner and port."""

import enum
import heapq
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from twctl.addresses import host_port
from twctl.classes import Class
from twctl.table.records import RECORDS, Batch

REMOTE, REMOTE_PORT, LOCAL_PORT = (
    {family: record.slice(name) for family, record in RECORDS.items()}
    for name in ("remote", "remote_port", "local_port")
)
# Keys that a tally keeps between two steps, 5 MB. All 65,536 ports have room in what it holds at most, twice as many.
KEPT = 32768


class HeavyHitters:
    """How often each key came, in bounded memory (Misra and Gries): a count is too low by `undercount` at the most."""

    def __init__(self, kept: int = KEPT) -> None:
        self.counts: Counter[bytes] = Counter()
        self.undercount = 0
        self._kept = kept

    def add(self, keys: Iterable[bytes]) -> None:
        """Count some more; not so many at a time that memory matters."""
        self.counts.update(keys)
        if len(self.counts) > 2 * self._kept:
            least = heapq.nlargest(self._kept + 1, self.counts.values())[-1]
            self.counts = Counter({key: count - least for key, count in self.counts.items() if count > least})
            self.undercount += least


@dataclass(frozen=True)
class Subject:
    """Something that sessions are counted by. Keys sort as their names should."""

    title: str
    usual: int  # characters of most names
    width: int  # of the longest
    keys: Callable[[Batch], list[bytes]]
    name: Callable[[bytes], str]
    order: Callable[[bytes], tuple[int, bytes]]


def _remote_endpoints(batch: Batch) -> list[bytes]:
    remote, port = REMOTE[batch.family], REMOTE_PORT[batch.family]
    return [record[remote] + record[port] for record in batch.records]


def _endpoint(key: bytes) -> str:
    return host_port(ipaddress.ip_address(key[:-2]), int.from_bytes(key[-2:], "big"))


def _local_ports(batch: Batch) -> list[bytes]:
    port = LOCAL_PORT[batch.family]
    return [record[port] for record in batch.records]


def _port(key: bytes) -> str:
    return str(int.from_bytes(key, "big"))


def _later(_batch: Batch) -> list[bytes]:
    """None yet: an owner is counted by its number, and has its name when the reading is over."""
    return []


def _as_number(key: bytes) -> tuple[int, bytes]:
    return len(key), key


def _as_text(key: bytes) -> tuple[int, bytes]:
    return 0, key


OWNERS = Subject("owner", 18, 60, _later, bytes.decode, _as_text)
# Those that come first are shown where not all have room.
SUBJECTS = (
    Subject("remote endpoint", 21, 47, _remote_endpoints, _endpoint, _as_number),
    OWNERS,
    Subject("local port", 10, 10, _local_ports, _port, _as_number),
)


@dataclass
class Reading:
    """One walk through the table, from `began` to `ended` (s, monotonic)."""

    began: float = 0.0
    ended: float = 0.0
    sessions: Counter[Class] = field(default_factory=Counter)
    tallies: dict[tuple[str, Class], HeavyHitters] = field(
        default_factory=lambda: {(subject.title, class_): HeavyHitters() for subject in SUBJECTS for class_ in Class}
    )

    owners: dict[Class, Counter[int]] = field(default_factory=lambda: {class_: Counter() for class_ in Class})

    def add(self, batch: Batch) -> None:
        """Count the sessions of a step."""
        self.sessions[batch.class_] += len(batch.slots)
        self.owners[batch.class_].update(batch.owners)
        for subject in SUBJECTS:
            self.tallies[subject.title, batch.class_].add(subject.keys(batch))

    def name_owners(self, names: Mapping[int, str]) -> None:
        """Count by name what was counted by number; two numbers may have one name."""
        for class_, numbers in self.owners.items():
            counts = self.tallies[OWNERS.title, class_].counts
            for number, sessions in numbers.items():
                counts[names[number].encode()] += sessions

    def counts(self, subject: Subject, classes: Iterable[Class]) -> tuple[Counter[bytes], int]:
        """Sessions by key of some classes, and by how many a count may be too low."""
        tallies = [self.tallies[subject.title, class_] for class_ in classes]
        if len(used := [tally for tally in tallies if tally.counts]) == 1:
            return used[0].counts, sum(tally.undercount for tally in tallies)
        counts: Counter[bytes] = Counter()
        for tally in tallies:
            counts.update(tally.counts)
        return counts, sum(tally.undercount for tally in tallies)


class Order(enum.StrEnum):
    """What a list is sorted by; by name: those with the most sessions, where rows stay in their places."""

    SESSIONS = "sessions"
    GROWTH = "growth"
    NAME = "name"


@dataclass(frozen=True)
class Row:
    """Sessions of one name, and how many more a second than at the reading before."""

    name: str
    sessions: int
    growth: float | None


@dataclass(frozen=True)
class Ranking:
    """The first rows of a list, and by how many a count may be too low."""

    rows: list[Row]
    undercount: int


def ranking(  # noqa: PLR0913, PLR0917 - six things decide
    subject: Subject, now: Reading, before: Reading | None, classes: Iterable[Class], order: Order, rows: int
) -> Ranking:
    """Who has the most sessions, or gained the most. Equal ones stand in the order of their names."""
    chosen = tuple(classes)
    counts, undercount = now.counts(subject, chosen)
    earlier = before.counts(subject, chosen)[0] if before else Counter[bytes]()
    seconds = now.ended - before.ended if before else 0.0
    by_growth = order is Order.GROWTH and seconds
    values = {key: count - earlier[key] for key, count in counts.items()} if by_growth else counts
    found = _first(values, rows, subject.order)
    if order is Order.NAME:
        found.sort(key=subject.order)
    growth = [(counts[key] - earlier[key]) / seconds if seconds else None for key in found]
    return Ranking(
        [Row(subject.name(key), counts[key], more) for key, more in zip(found, growth, strict=True)], undercount
    )


def _first(values: Mapping[bytes, int], rows: int, order: Callable[[bytes], tuple[int, bytes]]) -> list[bytes]:
    """Keys of the highest values, highest first. There may be a hundred thousand, so most are met only once."""
    least = heapq.nlargest(rows, values.values())[-1] if values and rows > 0 else 0
    above = [key for key, value in values.items() if value > least]
    equal = heapq.nsmallest(rows - len(above), (key for key, value in values.items() if value == least))
    return sorted(above + equal, key=lambda key: (-values[key], order(key)))[: max(0, rows)]
