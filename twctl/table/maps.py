"""The table that is pinned: its meta data, rings and enrolled namespaces, and the way to its counters and sessions."""

import mmap
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.cheader import Field
from twctl.table.counters import ACTIONS, LANES, NUMBERS, WORKERS, Counters, actions, living, summed
from twctl.table.layout import LINE_BYTES, NAMESPACES, RECORD_BYTES, START_BYTES, Layout, possible_cpus
from twctl.table.pinned import Pinned, store
from twctl.table.records import STARTS, STEP, TICK_SHIFT, Batch, Records, Vestige
from twctl.table.shared import CONSTANTS, HEADER, STRUCTS
from twctl.table.sources import EARLIER_GUARD

MODES = HEADER.labels("mode", "MODE_")
PROBES = HEADER.labels("seen_by", "SEEN_BY_")
META = STRUCTS["meta"]
RING = STRUCTS["ring"].packer(("head", "base", "capacity", "block_shift", "expiry"))
ENROLMENT = STRUCTS["enrolment"].packer(raw=("name",))
BELIEVED_TICKS = CONSTANTS["BELIEVED_TICKS"]
NAME_BYTES = STRUCTS["enrolment"].fields["name"].size


class Table(Pinned):
    """The pinned maps of a loaded probe.

    :raises TwctlError: if nothing is pinned there.
    """

    def __init__(self, current: Path, *, writable: bool = False) -> None:
        super().__init__(current, writable=writable)
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
        """Identity of the guard that is loaded; 0: none; EARLIER_GUARD: none, and that of an earlier table stands."""
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
        self._set_seconds("time_wait", time_wait)
        self._set_seconds("fin_wait2", fin_wait2)

    def set_reuse_age(self, reuse_age: Mapping[Class, float]) -> None:
        """Set how old a vestige must be before a local SYN may take its tuple (s)."""
        self._set_seconds("reuse_age", reuse_age)

    def _set_seconds(self, name: str, times: Mapping[Class, float]) -> None:
        for class_ in Class:
            self._set_meta(name, int(times[class_] * 1e9), class_)

    def _get_meta(self, name: str, index: int = 0) -> int:
        field = META.fields[name]
        return int(struct.unpack_from(f"={field.format}", self._meta, _element(field, index))[0])

    def _set_meta(self, name: str, value: int, index: int = 0) -> None:
        """Write one number alone: the programs read it and the others meanwhile."""
        field = META.fields[name]
        store(self._meta, _element(field, index), field.format, value)

    def is_believed(self) -> bool:
        """Whether all words were swept lately: an old one cannot be taken for one that lives."""
        return (time.monotonic_ns() >> TICK_SHIFT) - self._get_meta("swept") <= BELIEVED_TICKS

    def swept(self, since_ns: int) -> None:
        """Say that a sweep of all words began then, and is complete."""
        self._set_meta("swept", since_ns >> TICK_SHIFT)

    @property
    def listened(self) -> int:
        """The tick until which somebody listens to events."""
        return self._get_meta("listened")

    def listen(self, ticks: int) -> int:
        """Have events told for so long from now on; returns the tick at which that is over."""
        until = (time.monotonic_ns() >> TICK_SHIFT) + ticks if ticks else 0
        self._set_meta("listened", until)
        return until

    def ring(self, class_: Class, family: str) -> tuple[int, ...]:
        """Read a ring: head, base, capacity, block_shift, then the latest expiry (ticks) of each block."""
        return RING.unpack_from(self._rings, RING.size * (class_ * len(FAMILIES) + FAMILIES.index(family)))

    @cached_property
    def _living(self) -> memoryview:
        size = len(Class) * len(FAMILIES) * LANES * STRUCTS["cells"].size
        return memoryview(self.map("living", size)).cast("Q")

    @cached_property
    def _counters(self) -> memoryview:
        return memoryview(self.map("counters", NUMBERS * 8 * WORKERS * possible_cpus())).cast("Q")

    def counters(self) -> Counters:
        """Sum the counters of all CPUs."""
        return summed(self._counters, possible_cpus())

    def living(self, now_ns: int, later_by: float = 0.0) -> dict[tuple[Class, str, int], int]:
        """Count the live sessions of each class, family and lane; `later_by` (s): those that live that much longer."""
        return living(
            self._living, now_ns + int(later_by * 1e9), lambda class_, family: max(self.ring(class_, family)[4:])
        )

    def actions(self) -> dict[str, int]:
        """What the guard did to how many segments; all 0 where none was ever loaded."""
        if self.guard in {0, EARLIER_GUARD}:
            return dict.fromkeys(ACTIONS, 0)
        memory = self.map("actions", len(ACTIONS) * 8 * possible_cpus())
        return actions(memoryview(memory).cast("Q"), possible_cpus())

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
        """Walk the index and yield each live session; one that changes meanwhile may be skipped or seen twice."""
        for family in families if self.is_believed() else ():
            names = {i: name for i, (_, name) in self.enrolments().items()}
            yield from self._records(family).vestiges(names)

    def batches(self, family: str) -> Iterator[list[Batch]]:
        """Walk the index as `vestiges` does, without decoding; see Records.batches."""
        return self._records(family).batches() if self.is_believed() else iter(())

    def owner_numbers(self, family: str) -> Callable[[int], int]:
        """What gives the number of the owner of a slot's session."""
        return self._records(family).owner

    def steps(self, family: str) -> int:
        """How many lists `batches` yields."""
        return -(-self.layout.lines(family) * LINE_BYTES // 8 // STEP)

    def _records(self, family: str) -> Records:
        slots = self.layout.slots(family)
        records = self.map(f"records_{family}", slots * RECORD_BYTES[family])
        starts = self.map(f"starts_{family}", (slots // STARTS + 1) * STARTS * START_BYTES)
        return Records(family, self.layout, self.words(family), records, memoryview(starts).cast("H"))


def _element(field: Field, index: int) -> int:
    """Where an element of an array lies."""
    return field.offset + index * struct.calcsize(f"={field.format}")
