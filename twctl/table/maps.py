"""The table as user space sees it: pinned maps, mapped read-only, decoded once into plain values.

bpf/vestige.h says what the bytes mean; tests/kernel checks this file's view against the compiled layout.
"""

import contextlib
import dataclasses
import enum
import fcntl
import ipaddress
import mmap
import os
import struct
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from twctl.addresses import FAMILIES, Address, Network
from twctl.classes import Class
from twctl.errors import TwctlError
from twctl.linux import libbpf, netns
from twctl.table.layout import (
    BLOCKS,
    LANES,
    LINE_BYTES,
    NAMESPACES,
    PERIODS,
    RECORD_BYTES,
    STARTS,
    Layout,
    possible_cpus,
)

TICK_SHIFT = 26
TICK = 2**TICK_SHIFT / 1e9  # s
HORIZON_TICKS = 16383
PERIOD_SHIFT = 3
LANE_EDGES = (14, 29, 74, 149, 447, 1043, 2235)  # ticks; the last lane has no upper edge
LANE_SECONDS = (1, 2, 5, 10, 30, 70, 150)
STEP = 8192  # words of the index that are looked at in one go: 2 ms
_TICK_MASK = 0xFFFFFF
_PAGE = mmap.PAGESIZE


class Reason(enum.IntEnum):
    """Why a session ended, in the order of enum reason (vestige.h)."""

    EXPIRED = 0
    TRUNCATED = 1
    DRAINED = 2
    REUSED = 3
    RESET = 4
    DESTROYED = 5
    EVICTED = 6
    UNKNOWN = 7


MODES = ("observe", "truncate", "vestigial")
CLOSES = ("passive", "reset", "abort", "timeout")
DROPPED = ("contention", "collision", "horizon", "unreadable", "signed", "unattributed")
# What became of segments that met the guard, in the order of enum action (guard.c).
ACTIONS = (
    "acknowledged",
    "limited",
    "absorbed",
    "reset",
    "killed",
    "reopened",
    "reused",
    "held",
    "live",
    "damaged",
    "unanswerable",
    "raced",
    "fragment",
    "unparsed",
)

# struct counters: name and shape of each field, all of 64 bits.
COUNTERS: dict[str, tuple[int, ...]] = {
    "entered": (len(Class), len(FAMILIES)),
    "adopted": (len(Class), len(FAMILIES)),
    "ended": (len(Class), len(Reason)),
    "lifetime": (len(Class), LANES),
    "lifetime_ticks": (len(Class),),
    "planned": (len(Class), LANES),
    "planned_ticks": (len(Class), LANES),
    "withdrawn": (len(Class), LANES),
    "restarted": (len(Class),),
    "closed": (len(CLOSES),),
    "no_port": (1,),
    "dropped": (len(DROPPED),),
}
RING = struct.Struct(f"=QIII44x{BLOCKS}Q")
# identity, loaded, seed, guard, epoch, probe, mode, lives
META_FIELDS = "QQQQQIIQQQQQQQQ"
META = struct.Struct(f"={META_FIELDS}")
LIVES = 4  # places in each array of struct meta; there are three classes
NAME_BYTES = 48
ENROLMENT = struct.Struct(f"=QQ{NAME_BYTES}s")
# Longest life of a vestige that no guard has: TIME_WAIT, and what fentry waits for an end (s).
UNGUARDED_SECONDS = 60 + 5
VESTIGE = {"ipv4": struct.Struct("=4s4s2s2sIIIIHBB"), "ipv6": struct.Struct("=16s16s2s2sIIIIHBBII")}
FIN_WAIT2, TIMESTAMPS, USEC, SILENT = 1, 2, 4, 8
WORKERS = 6  # enum worker (table.h): each counts for itself, on each CPU
GUARDED = 0x100  # NETNS_GUARDED


@dataclasses.dataclass(frozen=True, slots=True)
class Vestige:
    """One session: who with, what sequence state, how long still.

    expires_in and age in seconds; window as it went on the wire, before scaling; ts_recent None without timestamps;
    known False for a session that was taken over and whose sequence state nobody saw.
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


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Live sessions of one family and class: slots, numbers of owners (blame.py), records as they stand (VESTIGE)."""

    family: str
    class_: Class
    slots: list[int]
    owners: list[int]
    records: list[bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class Counters:
    """Sums over all CPUs; each field by the indexes that COUNTERS names."""

    values: dict[str, tuple[int, ...]]

    def get(self, name: str, *index: int) -> int:
        """One number, by its indexes."""
        offset = 0
        for size, i in zip(COUNTERS[name], index, strict=True):
            offset = offset * size + i
        return self.values[name][offset]

    def row(self, name: str, first: int) -> tuple[int, ...]:
        """All numbers of one first index."""
        width = COUNTERS[name][1]
        return self.values[name][first * width : (first + 1) * width]


class Table:
    """The pinned maps of a loaded probe.

    :raises TwctlError: if nothing is pinned there.
    """

    def __init__(self, current: Path, *, writable: bool = False) -> None:
        self._pins = current
        self._access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        if not (current / "maps").is_dir():
            raise TwctlError(f"no table is pinned at {current}", "start 'twctl run' as root first")
        self._meta = self.map("meta", META.size)
        self.identity, self.loaded_ns, self.seed, _, _, self.probe = META.unpack_from(self._meta)[:6]
        self._rings = self.map("rings", RING.size * len(Class) * len(FAMILIES))
        capacity: dict[str, dict[Class, int]] = {family: {} for family in FAMILIES}
        for class_ in Class:
            for family in FAMILIES:
                capacity[family][class_] = self.ring(class_, family)[2]
        self.layout = Layout(capacity)

    @property
    def mode(self) -> str:
        """What the daemon does, or did when it last ran."""
        return MODES[META.unpack_from(self._meta)[6]]

    @mode.setter
    def mode(self, mode: str) -> None:
        self._set_meta(6, MODES.index(mode))

    @property
    def guard(self) -> int:
        """Identity of the guard that is loaded; 0: none."""
        return int(META.unpack_from(self._meta)[3])

    @guard.setter
    def guard(self, identity: int) -> None:
        self._set_meta(3, identity)

    @property
    def lives(self) -> tuple[int, ...]:
        """How long vestiges of guarded namespaces live (ns): TIME_WAIT by class, then FIN_WAIT2 by class."""
        lives = META.unpack_from(self._meta)[7:]
        return (*lives[: len(Class)], *lives[LIVES : LIVES + len(Class)])

    def set_lives(self, time_wait: Mapping[Class, float], fin_wait2: Mapping[Class, float]) -> None:
        """Set how long vestiges of guarded namespaces live (s)."""
        for i, times in enumerate((time_wait, fin_wait2)):
            for class_ in Class:
                self._set_meta(7 + i * LIVES + class_, int(times[class_] * 1e9))

    def _set_meta(self, field: int, value: int) -> None:
        """Write one field alone: the programs read the others meanwhile."""
        struct.pack_into(f"={META_FIELDS[field]}", self._meta, struct.calcsize(f"={META_FIELDS[:field]}"), value)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep others from running the programs that share inbox, outbox and dues: the daemon and `twctl drain`.

        :raises TwctlError: if the pins were removed meanwhile.
        """
        try:
            folder = os.open(self._pins / "programs", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise self._removed() from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _removed(self) -> TwctlError:
        return TwctlError(f"the table at {self._pins} was removed", "start 'twctl run' again")

    def fd(self, name: str) -> int:
        """Open a map; the caller closes it.

        :raises TwctlError: without the right to, or if the pins were removed meanwhile.
        """
        try:
            return libbpf.obj_get(self._pins / "maps" / name)
        except FileNotFoundError as error:
            raise self._removed() from error
        except OSError as error:
            raise TwctlError(f"cannot open {self._pins / 'maps' / name}: {error.strerror}", "run as root") from error

    def program(self, name: str) -> libbpf.Program:
        """Open a pinned program."""
        return libbpf.Program(self._pins / "programs" / name)

    def map(self, name: str, size: int) -> mmap.mmap:
        """Map an array of `size` bytes into memory."""
        fd = self.fd(name)
        try:
            return mmap.mmap(fd, -(-size // _PAGE) * _PAGE, mmap.MAP_SHARED, self._access)
        finally:
            os.close(fd)

    def ring(self, class_: Class, family: str) -> tuple[int, ...]:
        """Read a ring: head, base, capacity, block_shift, then the latest expiry (ticks) of each block."""
        return RING.unpack_from(self._rings, RING.size * (class_ * len(FAMILIES) + FAMILIES.index(family)))

    @cached_property
    def _living(self) -> memoryview:
        cells = len(Class) * len(FAMILIES) * LANES * PERIODS
        return memoryview(self.map("living", cells * 8)).cast("Q")

    @cached_property
    def _counters(self) -> mmap.mmap:
        return self.map("counters", self._counter_bytes * WORKERS * possible_cpus())

    @cached_property
    def _counter_bytes(self) -> int:
        return 8 * sum(_product(shape) for shape in COUNTERS.values())

    def counters(self) -> Counters:
        """Sum the counters of all CPUs."""
        numbers = self._counter_bytes // 8
        view = memoryview(self._counters).cast("Q")
        sums = [sum(view[i : numbers * WORKERS * possible_cpus() : numbers]) & 2**64 - 1 for i in range(numbers)]
        values, offset = {}, 0
        for name, shape in COUNTERS.items():
            values[name] = tuple(sums[offset : offset + _product(shape)])
            offset += _product(shape)
        return Counters(values)

    @cached_property
    def _probes(self) -> dict[str, list[int]]:
        """Programs that are attached (descriptors), by what to: they are pinned as HOW__WHAT."""
        programs: dict[str, list[int]] = {}
        for pin in (self._pins / "programs").iterdir():
            how, separator, what = pin.name.partition("__")
            place = f"{how} {what}" if "func" in how else what  # entry and exit of a function are two
            if separator:
                programs.setdefault(place, []).append(libbpf.obj_get(pin))
        return programs

    def close(self) -> None:
        """Close the programs that `nested` opened; memory goes with the last one who reads it."""
        for programs in self.__dict__.pop("_probes", {}).values():
            for program in programs:
                os.close(program)

    def nested(self) -> int:
        """Events that the probes did not see, as they came on a CPU in the middle of another one.

        The kernel runs no program a second time inside of itself. Of two at one place one sees it (observe.c,
        is_first). The events of all namespaces count.
        """
        return sum(libbpf.misses(programs[0]) for programs in self._probes.values() if len(programs) == 1)

    def actions(self) -> dict[str, int]:
        """What the guard did to how many segments; all 0 where none was ever loaded."""
        if not self.guard:
            return dict.fromkeys(ACTIONS, 0)
        view = memoryview(self.map("actions", len(ACTIONS) * 8 * possible_cpus())).cast("Q")
        numbers = view[: len(ACTIONS) * possible_cpus()]
        return {name: sum(numbers[i :: len(ACTIONS)]) for i, name in enumerate(ACTIONS)}

    def living(self, now_ns: int, later_by: float = 0.0) -> dict[tuple[Class, str, int], int]:
        """Count the live sessions of each class, family and lane; `later_by` (s): those that live that much longer."""
        first = int(now_ns + later_by * 1e9) >> TICK_SHIFT + PERIOD_SHIFT
        counts = {}
        for class_ in Class:
            for family in FAMILIES:
                last = max(self.ring(class_, family)[4:]) >> PERIOD_SHIFT
                for lane in range(LANES):
                    row = ((class_ * len(FAMILIES) + FAMILIES.index(family)) * LANES + lane) * PERIODS
                    counts[class_, family, lane] = self._sum_periods(row, first, min(last, first + PERIODS - 1))
        return counts

    def _sum_periods(self, row: int, first: int, last: int) -> int:
        cells, total = self._living, 0
        for period in range(first, last + 1):
            cell = cells[row + period % PERIODS]
            if cell >> 32 == period:
                total += cell & 0xFFFFFFFF
        return total

    def enrolments(self) -> dict[int, tuple[int, str]]:
        """Read the enrolled namespaces: index to cookie and name ("" where twctl was started)."""
        memory = self._enrolments
        rows = (ENROLMENT.unpack_from(memory, i * ENROLMENT.size) for i in range(NAMESPACES))
        return {i: (cookie, name.rstrip(b"\0").decode()) for i, (cookie, _, name) in enumerate(rows) if cookie}

    def free_index(self) -> int | None:
        """The index that was given back longest ago, if all vestiges that have it are over; None: there is none."""
        over = time.monotonic_ns() - max(*self.lives, UNGUARDED_SECONDS * 10**9)
        rows = (ENROLMENT.unpack_from(self._enrolments, i * ENROLMENT.size) for i in range(NAMESPACES))
        free = [(left, i) for i, (cookie, left, _) in enumerate(rows) if not cookie and (not left or left < over)]
        return min(free)[1] if free else None

    def reachable(self) -> dict[int, str]:
        """Index and name of the enrolled namespaces that this process can enter; some may be gone by now.

        :raises TwctlError: if all are, or the one that the daemon runs in is not ours.
        """
        found = {}
        for index, (cookie, name) in self.enrolments().items():
            here = netns.cookie(name or None) if not name or netns.inode(name) else None
            if here == cookie:
                found[index] = name
            elif not name:
                where = "the one that 'twctl run' was started in"
                raise TwctlError(f"network namespace {where} is another one here", "run this where the daemon runs")
        if not found:
            raise TwctlError("none of the enrolled network namespaces is here", "run this where the daemon runs")
        return found

    @cached_property
    def _enrolments(self) -> mmap.mmap:
        return self.map("enrolments", ENROLMENT.size * NAMESPACES)

    def enrol(self, index: int, cookie: int, name: str, *, guarded: bool = False) -> None:
        """Have the probes watch a namespace under this index; guarded: its vestiges live as `lives` says."""
        ENROLMENT.pack_into(self._enrolments, index * ENROLMENT.size, cookie, 0, name.encode())
        self._update("namespaces", struct.pack("=Q", cookie), struct.pack("=I", index | GUARDED * guarded))

    def withdraw(self, index: int, cookie: int) -> None:
        """Have the probes no longer watch a namespace; its vestiges expire, and then its index is free."""
        fd = self.fd("namespaces")
        try:
            with contextlib.suppress(FileNotFoundError):
                libbpf.map_delete(fd, struct.pack("=Q", cookie))
        finally:
            os.close(fd)
        ENROLMENT.pack_into(self._enrolments, index * ENROLMENT.size, 0, time.monotonic_ns(), b"")

    def _update(self, name: str, key: bytes, value: bytes) -> None:
        fd = self.fd(name)
        try:
            libbpf.map_update(fd, key, value)
        finally:
            os.close(fd)

    def words(self, family: str) -> memoryview:
        """Map the index: eight 64-bit words a line."""
        return memoryview(self.map(f"lines_{family}", self.layout.lines(family) * LINE_BYTES)).cast("Q")

    def vestiges(self, families: tuple[str, ...] = FAMILIES) -> Iterator[Vestige]:
        """Walk the index and yield each live session; one that changes meanwhile may be missed or seen twice."""
        for family in families:
            yield from self._vestiges(family)

    def _vestiges(self, family: str) -> Iterator[Vestige]:
        names = {i: name for i, (_, name) in self.enrolments().items()}
        words, size = self.words(family), RECORD_BYTES[family]
        records = self.map(f"records_{family}", self.layout.slots(family) * size)
        starts = self._starts(family)
        now_ns = time.monotonic_ns()
        for i in range(len(words)):
            word = words[i]
            left = remaining(word, now_ns) if word else 0.0
            if not left:
                continue
            slot = word & 0xFFFFFF
            raw = records[slot * size : (slot + 1) * size]
            ticks = (now_ns >> TICK_SHIFT) - starts[slot + slot // STARTS * STARTS] & 0xFFFF
            age = ticks * TICK if ticks <= HORIZON_TICKS else 0.0  # it began after we looked at the clock
            if words[i] == word:
                class_ = max(class_ for class_ in Class if slot >= self.layout.ring(family, class_).base)
                yield decode(family, raw, class_=class_, expires_in=left, age=age, names=names)

    def _starts(self, family: str) -> memoryview:
        """Map the starts (ticks modulo 2^16) of STARTS slots, then their owners, and so on; 16 bits each."""
        size = (self.layout.slots(family) // STARTS + 1) * STARTS * 4
        return memoryview(self.map(f"starts_{family}", size)).cast("H")

    def steps(self, family: str) -> int:
        """How many lists `batches` yields."""
        return -(-self.layout.lines(family) * LINE_BYTES // 8 // STEP)

    def batches(self, family: str) -> Iterator[list[Batch]]:
        """Walk the index as `vestiges` does, without decoding: a tenth of its time, for who wants to count.

        A list for each STEP words, empty ones included.
        """
        words, size = self.words(family), RECORD_BYTES[family]
        records = self.map(f"records_{family}", self.layout.slots(family) * size)
        starts = self._starts(family)
        for first in range(0, len(words), STEP):
            part, tick = words[first : first + STEP], time.monotonic_ns() >> TICK_SHIFT
            before = part.tobytes()
            numbers = memoryview(before).cast("Q").tolist()
            live = [word for word in numbers if word and 0 < ((word >> 40) - tick & _TICK_MASK) <= HORIZON_TICKS]
            found = {
                word & 0xFFFFFF: records[(word & 0xFFFFFF) * size : ((word & 0xFFFFFF) + 1) * size] for word in live
            }
            if part.tobytes() != before:  # a record whose word has changed may be another's
                same = set(part.tolist())
                found = {word & 0xFFFFFF: found[word & 0xFFFFFF] for word in live if word in same}
            yield [batch for class_ in Class if (batch := self._batch(family, class_, found, starts)).slots]

    def _batch(self, family: str, class_: Class, found: Mapping[int, bytes], starts: memoryview) -> Batch:
        ring = self.layout.ring(family, class_)
        slots = [slot for slot in found if ring.base <= slot < ring.base + ring.capacity]
        owners = [starts[slot + slot // STARTS * STARTS + STARTS] for slot in slots]
        return Batch(family, class_, slots, owners, [found[slot] for slot in slots])


def decode(  # noqa: PLR0913 - keywords
    family: str, raw: bytes, *, class_: Class, expires_in: float, age: float, names: dict[int, str]
) -> Vestige:
    """Decode a record (32 or 64 bytes) into a Vestige."""
    local, remote, local_port, remote_port, snd, rcv, recent, offset, window, netns, bits, *_ = VESTIGE[family].unpack(
        raw
    )
    return Vestige(
        family=family,
        class_=class_,
        substate="FIN_WAIT2" if bits & FIN_WAIT2 else "TIME_WAIT",
        local=ipaddress.ip_address(local),
        local_port=int.from_bytes(local_port, "big"),
        remote=ipaddress.ip_address(remote),
        remote_port=int.from_bytes(remote_port, "big"),
        expires_in=expires_in,
        age=age,
        netns=names.get(netns, f"#{netns}"),
        snd_nxt=snd,
        rcv_nxt=rcv,
        window=window,
        window_scale=bits >> 4,
        ts_recent=recent if bits & TIMESTAMPS else None,
        ts_offset=offset,
        known=snd != 0 or rcv != 0,
    )


def remaining(word: int, now_ns: int) -> float:
    """Seconds until an index word expires; 0 if it has."""
    left = (word >> 40) - (now_ns >> TICK_SHIFT) & _TICK_MASK
    return left * TICK if left <= HORIZON_TICKS else 0.0


class ClassTries:
    """The prefixes that the probes ask, of one enrolled namespace."""

    def __init__(self, table: Table, index: int) -> None:
        self._index = struct.pack("=I", index)
        self._fds = {4: table.fd("classes_ipv4"), 6: table.fd("classes_ipv6")}
        self._known: dict[bytes, int] = {}
        for fd in self._fds.values():
            items = libbpf.map_items(fd)
            self._known |= {
                key: int(struct.unpack("=I", value)[0]) for key, value in items.items() if key[4:8] == self._index
            }
        self.refused = 0

    def close(self) -> None:
        """Close the maps; the prefixes stay."""
        for fd in self._fds.values():
            os.close(fd)

    def sync(self, wanted: dict[Network, Class]) -> None:
        """Make the tries hold exactly these prefixes. What does not fit (65,536 a family) is counted as refused."""
        keys = {self._key(prefix): int(class_) for prefix, class_ in wanted.items()}
        for key in self._known.keys() - keys.keys():
            libbpf.map_delete(self._fd(key), key)
            del self._known[key]
        for key, class_ in keys.items():
            if self._known.get(key) != class_:
                self._set(key, class_)

    def _set(self, key: bytes, class_: int) -> None:
        try:
            libbpf.map_update(self._fd(key), key, struct.pack("=I", class_))
            self._known[key] = class_
        except OSError:
            self.refused += 1

    def _key(self, prefix: Network) -> bytes:
        return struct.pack("=I", 32 + prefix.prefixlen) + self._index + prefix.network_address.packed

    def _fd(self, key: bytes) -> int:
        return self._fds[4 if len(key) == 12 else 6]  # noqa: PLR2004 - 4 bytes of length, 4 of index, the address

    def counts(self) -> dict[tuple[Class, str], int]:
        """Count the prefixes by class and family."""
        result = {(class_, family): 0 for class_ in Class for family in FAMILIES}
        for key, class_ in self._known.items():
            result[Class(class_), "ipv4" if len(key) == 12 else "ipv6"] += 1  # noqa: PLR2004
        return result


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def as_json(vestige: Vestige) -> dict[str, Any]:
    """Return what `twctl table --json` prints for a session; `class` is a word of Python, hence the renaming."""
    row = dataclasses.asdict(vestige)
    row["class"] = row.pop("class_").label
    return row | {"local": str(vestige.local), "remote": str(vestige.remote)}
