"""Counters and live sessions of one moment, and what follows from both: sessions, expiries, lifetimes."""

import time
from dataclasses import dataclass

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.counters import LANES, TICK, Counters, Reason
from twctl.table.maps import Table


@dataclass(frozen=True)
class Sums:
    """Counters and living of one moment, with what follows from both."""

    counters: Counters
    living: dict[tuple[Class, str, int], int]

    @classmethod
    def read(cls, table: Table) -> "Sums":
        """Read planned, living, withdrawn, in this order: what changes meanwhile makes an expiry late, never early."""
        before = table.counters().values
        living = table.living(time.monotonic_ns())
        after = table.counters().values
        planned = {name: before[name] for name in ("planned", "planned_ticks")}
        return cls(Counters(after | planned), living)

    def sessions(self, class_: Class, family: str) -> int:
        """Live sessions."""
        return sum(self.living[class_, family, lane] for lane in range(LANES))

    def places(self, class_: Class, family: str) -> float:
        """Places in the table that live sessions take: one each, and one more for their share that is translated.

        The share is that of all that have entered.
        """
        which = class_, FAMILIES.index(family)
        entered, translated = self.counters.get("entered", *which), self.counters.get("translated", *which)
        return self.sessions(class_, family) * (1 + translated / max(1, entered))

    def expired(self, class_: Class, lane: int) -> int:
        """Sessions of a lane that expired by their tick: planned, not withdrawn, not alive."""
        gone = self.counters.get("planned", class_, lane) - self.counters.get("withdrawn", class_, lane)
        return gone - sum(self.living[class_, family, lane] for family in FAMILIES)

    def ended(self, class_: Class, reason: Reason) -> int:
        """Sessions that ended for a reason; what expired unseen is derived."""
        seen = self.counters.get("ended", class_, reason)
        return seen + sum(self.expired(class_, lane) for lane in range(LANES)) if reason is Reason.EXPIRED else seen

    def lifetimes(self, class_: Class) -> tuple[list[int], float]:
        """Ended sessions by lane, and the sum of their lives (s); an unseen expiry has its lane's mean planned life."""
        lanes, ticks = [], float(self.counters.get("lifetime_ticks", class_))
        for lane in range(LANES):
            expired, planned = self.expired(class_, lane), self.counters.get("planned", class_, lane)
            lanes.append(self.counters.get("lifetime", class_, lane) + expired)
            ticks += expired * self.counters.get("planned_ticks", class_, lane) / planned if planned else 0
        return lanes, ticks * TICK
