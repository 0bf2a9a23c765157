"""What the counters say of one moment, and the rates between two such looks."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.connects import Searches, connects
from twctl.table.counters import CLOSES, DROPPED, Reason
from twctl.table.maps import Table
from twctl.table.sums import Sums

# From this share of a class's capacity on the table is nearly full; more of the entries lost than this share is news.
TABLE_FULL, LOST_SHARE = 0.85, 0.001

Rates = Mapping[tuple[str, ...], float]


@dataclass(frozen=True)
class Look:
    """Counters by name and labels, and sessions by class, of one moment (s, monotonic)."""

    at: float
    counters: Mapping[tuple[str, ...], int]
    sessions: Mapping[Class, int]
    full: Mapping[Class, float]  # share of the capacity, of the family that has less left
    searches: Mapping[str, Searches]  # for a local port, by outcome; those that were measured
    took: Mapping[str, float] = field(default_factory=dict)  # mean (s) of those measured last, by outcome

    @classmethod
    def read(cls, table: Table) -> "Look":
        """Read all counters of a table."""
        sums = Sums.read(table)
        counters = dict(_counted(sums)) | {("dropped", "nested"): table.nested()}
        if table.guard:
            counters |= {("guard", action): count for action, count in table.actions().items()}
        capacity = table.layout.capacity
        full = {k: max(sums.places(k, f) / capacity[f][k] for f in FAMILIES) for k in Class}
        return cls(
            time.monotonic(),
            counters,
            {k: sum(sums.sessions(k, family) for family in FAMILIES) for k in Class},
            full,
            measured.searches if (measured := connects(table)) else {},
        )

    def held(self, before: "Look | None") -> "Look":
        """The same, with no counter less than before.

        What expired is a difference of numbers that are read one after the other: it may go back for a moment, and what
        came back would look like events.
        """
        earlier = before.counters if before else {}
        counters = {name: max(count, earlier.get(name, 0)) for name, count in self.counters.items()}
        return replace(self, counters=counters, took=self._took(before) if before else {})

    def _took(self, before: "Look") -> dict[str, float]:
        """Of most looks nothing was measured since the one before: then what was is kept."""
        new = {k: each.since(before.searches[k]) for k, each in self.searches.items() if k in before.searches}
        return dict(before.took) | {outcome: each.mean for outcome, each in new.items() if each.made}

    def of(self, name: str) -> dict[str, int]:
        """Counters of a name that have one label."""
        return {labels[0]: count for (first, *labels), count in self.counters.items() if first == name and labels}


def _counted(sums: Sums) -> Iterator[tuple[tuple[str, ...], int]]:
    for class_ in Class:
        for name in ("entered", "adopted"):
            yield (name, class_.label), sum(sums.counters.row(name, class_))
        yield ("restarted", class_.label), sums.counters.get("restarted", class_)
        for reason in Reason:
            yield ("ended", class_.label, reason.name.lower()), sums.ended(class_, reason)
    for name, labels in (("closed", CLOSES), ("dropped", DROPPED)):
        for label, count in zip(labels, sums.counters.values[name], strict=True):
            yield (name, label), count
    yield ("no_port",), sums.counters.get("no_port", 0)


def rates(before: Look | None, after: Look) -> Rates:
    """Events a second between two looks; none of what there is no earlier look of."""
    if before is None or after.at <= before.at:
        return {}
    seconds = after.at - before.at
    return {
        name: (count - before.counters[name]) / seconds
        for name, count in after.counters.items()
        if name in before.counters
    }
