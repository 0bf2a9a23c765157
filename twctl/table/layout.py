"""The table's sizes: what loader and readers must agree on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.shared import CONSTANTS, STRUCTS

BLOCKS = CONSTANTS["BLOCKS"]
LINE_BYTES = STRUCTS["line"].size
RECORD_BYTES = {"ipv4": STRUCTS["vestige4"].size, "ipv6": STRUCTS["vestige6"].size}
START_BYTES = STRUCTS["starts"].size // CONSTANTS["STARTS"]  # of a session: start and owner
# Given to the C code: bytes of the index for each session of capacity. When every pool is full and alive a line of
# eight words holds 5.3.
INDEX_BYTES = 12
PREFIXES = 65536
NAMESPACES = 256
LATE_SECONDS = 5  # fentry: how long after its timer a vestige waits for the end it is told of


@dataclasses.dataclass(frozen=True, slots=True)
class Ring:
    """One class's run of slots in its family's record array."""

    base: int
    capacity: int

    @property
    def block_shift(self) -> int:
        """Binary logarithm of the slots of a block; a lap has at most 16 blocks."""
        return max(0, (-(-self.capacity // (BLOCKS // 2)) - 1).bit_length())


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """Sizes that follow from the capacities (sessions, by family and class)."""

    capacity: Mapping[str, Mapping[Class, int]]

    def ring(self, family: str, class_: Class) -> Ring:
        """Return the slots of a class: the rings follow each other in order of class."""
        before = sum(self.capacity[family][other] for other in Class if other < class_)
        return Ring(before, self.capacity[family][class_])

    def slots(self, family: str) -> int:
        """Sessions that fit, all classes together."""
        return sum(self.capacity[family].values())

    def lines(self, family: str) -> int:
        """Index lines of 64 bytes."""
        return -(-self.slots(family) * INDEX_BYTES // LINE_BYTES)

    def bytes(self, family: str) -> int:
        """Kernel memory that grows with the capacity: records, index and starts."""
        slots = self.slots(family)
        return slots * (RECORD_BYTES[family] + START_BYTES) + self.lines(family) * LINE_BYTES

    def defines(self) -> dict[str, int]:
        """Name the sizes as the C code does."""
        sizes = {}
        for family in FAMILIES:
            sizes[f"SLOTS_{family.upper()}"] = self.slots(family)
            sizes[f"LINES_{family.upper()}"] = self.lines(family)
        return sizes | {"PREFIXES": PREFIXES, "NAMESPACES": NAMESPACES, "CPUS": possible_cpus()}


def possible_cpus(root: Path = Path("/sys")) -> int:
    """How many CPUs the kernel may ever use: highest number + 1."""
    ranges = (root / "devices/system/cpu/possible").read_text().strip()
    return int(re.split("[-,]", ranges)[-1]) + 1
