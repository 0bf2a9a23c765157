"""The pinned maps of a loaded table, opened and mapped into memory, read-only unless asked otherwise.

bpf/vestige.h says what the bytes mean; records.py and counters.py decode them.
"""

import contextlib
import fcntl
import math
import mmap
import os
import struct
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.errors import TwctlError
from twctl.linux import libbpf
from twctl.table.cheader import Field
from twctl.table.counters import ACTIONS, COUNTERS, LANES, TICK, Counters
from twctl.table.layout import LINE_BYTES, NAMESPACES, RECORD_BYTES, Layout, possible_cpus
from twctl.table.records import (
    EXPIRY_SHIFT,
    HORIZON_TICKS,
    SLOT_MASK,
    TICK_MASK,
    TICK_SHIFT,
    Batch,
    Vestige,
    decode,
    remaining,
)
from twctl.table.shared import CONSTANTS, HEADER, STRUCTS

MODES = HEADER.labels("mode", "MODE_")
PROBES = HEADER.labels("seen_by", "SEEN_BY_")
STEP = 8192  # words of the index that are looked at in one go: 2 ms
PERIOD_SHIFT, PERIODS, STARTS = CONSTANTS["PERIOD_SHIFT"], CONSTANTS["PERIODS"], CONSTANTS["STARTS"]
WORKERS = CONSTANTS["WORKERS"]  # each counts for itself, on each CPU
META = STRUCTS["meta"]
RING = STRUCTS["ring"].packer(("head", "base", "capacity", "block_shift", "expiry"))
ENROLMENT = STRUCTS["enrolment"].packer(raw=("name",))
NAME_BYTES = STRUCTS["enrolment"].fields["name"].size
START_MASK = 0xFFFF  # a start is a tick modulo 2^16
_PAGE = mmap.PAGESIZE


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
        self.identity, self.loaded_ns, self.seed = (self._get_meta(name) for name in ("identity", "loaded", "seed"))
        self.probe = PROBES[self._get_meta("probe")]
        self._rings = self.map("rings", RING.size * len(Class) * len(FAMILIES))
        capacity: dict[str, dict[Class, int]] = {family: {} for family in FAMILIES}
        for class_ in Class:
            for family in FAMILIES:
                capacity[family][class_] = self.ring(class_, family)[2]
        self.layout = Layout(capacity)

    @property
    def mode(self) -> str:
        """What the daemon does, or did when it last ran."""
        return MODES[self._get_meta("mode")]

    @mode.setter
    def mode(self, mode: str) -> None:
        self._set_meta("mode", MODES.index(mode))

    @property
    def guard(self) -> int:
        """Identity of the guard that is loaded; 0: none."""
        return self._get_meta("guard")

    @guard.setter
    def guard(self, identity: int) -> None:
        self._set_meta("guard", identity)

    @property
    def lives(self) -> tuple[int, ...]:
        """How long vestiges of guarded namespaces live (ns): TIME_WAIT by class, then FIN_WAIT2 by class."""
        return tuple(self._get_meta(name, class_) for name in ("time_wait", "fin_wait2") for class_ in Class)

    def set_lives(self, time_wait: Mapping[Class, float], fin_wait2: Mapping[Class, float]) -> None:
        """Set how long vestiges of guarded namespaces live (s)."""
        for name, times in (("time_wait", time_wait), ("fin_wait2", fin_wait2)):
            for class_ in Class:
                self._set_meta(name, int(times[class_] * 1e9), class_)

    def _get_meta(self, name: str, index: int = 0) -> int:
        field = META.fields[name]
        return int(struct.unpack_from(f"={field.format}", self._meta, _element(field, index))[0])

    def _set_meta(self, name: str, value: int, index: int = 0) -> None:
        """Write one number alone: the programs read the others meanwhile."""
        field = META.fields[name]
        struct.pack_into(f"={field.format}", self._meta, _element(field, index), value)

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
        return STRUCTS["counters"].size

    def counters(self) -> Counters:
        """Sum the counters of all CPUs."""
        numbers = self._counter_bytes // 8
        view = memoryview(self._counters).cast("Q")
        sums = [sum(view[i : numbers * WORKERS * possible_cpus() : numbers]) & 2**64 - 1 for i in range(numbers)]
        values, offset = {}, 0
        for name, shape in COUNTERS.items():
            count = math.prod(shape)
            values[name] = tuple(sums[offset : offset + count])
            offset += count
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
        memory = self.enrolment_rows
        rows = (ENROLMENT.unpack_from(memory, i * ENROLMENT.size) for i in range(NAMESPACES))
        return {i: (cookie, name.rstrip(b"\0").decode()) for i, (cookie, _, name) in enumerate(rows) if cookie}

    @cached_property
    def enrolment_rows(self) -> mmap.mmap:
        """The rows of struct enrolment, NAMESPACES of them."""
        return self.map("enrolments", ENROLMENT.size * NAMESPACES)

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
            slot = word & SLOT_MASK
            raw = records[slot * size : (slot + 1) * size]
            ticks = (now_ns >> TICK_SHIFT) - starts[slot + slot // STARTS * STARTS] & START_MASK
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
            live = [
                word for word in numbers if word and 0 < ((word >> EXPIRY_SHIFT) - tick & TICK_MASK) <= HORIZON_TICKS
            ]
            found = {
                word & SLOT_MASK: records[(word & SLOT_MASK) * size : ((word & SLOT_MASK) + 1) * size] for word in live
            }
            if part.tobytes() != before:  # a record whose word has changed may be another's
                same = set(part.tolist())
                found = {word & SLOT_MASK: found[word & SLOT_MASK] for word in live if word in same}
            yield [batch for class_ in Class if (batch := self._batch(family, class_, found, starts)).slots]

    def _batch(self, family: str, class_: Class, found: Mapping[int, bytes], starts: memoryview) -> Batch:
        ring = self.layout.ring(family, class_)
        slots = [slot for slot in found if ring.base <= slot < ring.base + ring.capacity]
        owners = [starts[slot + slot // STARTS * STARTS + STARTS] for slot in slots]
        return Batch(family, class_, slots, owners, [found[slot] for slot in slots])


def _element(field: Field, index: int) -> int:
    """Where an element of an array lies."""
    return field.offset + index * struct.calcsize(f"={field.format}")
