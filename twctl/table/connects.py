"""How long connect() looked for a local port before its SYN, as the programs count it (bpf/observe/search.h)."""

from typing import NamedTuple

from twctl.table.layout import possible_cpus
from twctl.table.maps import Table
from twctl.table.shared import CONSTANTS, HEADER, STRUCTS

# The program at a cgroup; the maps of what it counts, and of the tick until which it is to: all are there, or none.
SEARCHED, CONNECTS, SEARCHING = "connect_goes_out", "connects", "searching"
OUTCOMES = HEADER.labels("outcome", "OUTCOME_")
# Upper edges of the lanes (s); the last lane has none.
SEARCH_SECONDS = tuple(edge / 1e9 for edge in HEADER.lists["SEARCH_EDGES"][:-1])
_LANES = CONSTANTS["SEARCH_LANES"]
_NUMBERS = STRUCTS["connects"].size // 8


class Searches(NamedTuple):
    """Those of one outcome. lanes: how many, by their length; seconds: all of them together."""

    lanes: tuple[int, ...]
    seconds: float

    @property
    def made(self) -> int:
        """How many."""
        return sum(self.lanes)

    @property
    def mean(self) -> float:
        """Seconds of one; 0 where there was none."""
        return self.seconds / self.made if self.made else 0.0

    def since(self, before: "Searches") -> "Searches":
        """Those that came after `before`."""
        lanes = tuple(now - then for now, then in zip(self.lanes, before.lanes, strict=True))
        return Searches(lanes, self.seconds - before.seconds)


class Connects(NamedTuple):
    """Searches by outcome, and how many were to be measured and were not."""

    searches: dict[str, Searches]
    unmeasured: int


def connects(table: Table) -> Connects | None:
    """All since the probes were loaded; None where they are not measured at all."""
    if not table.has(CONNECTS):
        return None
    cpus = possible_cpus()
    memory = memoryview(table.map(CONNECTS, _NUMBERS * 8 * cpus)).cast("Q")
    sums = [sum(memory[i : _NUMBERS * cpus : _NUMBERS]) for i in range(_NUMBERS)]
    times = sums[_LANES * len(OUTCOMES) :]
    found = {
        outcome: Searches(tuple(sums[_LANES * i : _LANES * (i + 1)]), times[i] / 1e9)
        for i, outcome in enumerate(OUTCOMES)
    }
    return Connects(found, times[len(OUTCOMES)])
