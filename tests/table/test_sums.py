"""What follows from counters and live sessions of one moment."""

import math
from collections.abc import Callable
from typing import cast

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.counters import COUNTERS, LANES, TICK, Counters, Reason
from twctl.table.maps import Table
from twctl.table.sums import Sums

LANE = 5


def zeros() -> dict[str, list[int]]:
    """Counters of a table that has seen nothing."""
    return {name: [0] * math.prod(shape) for name, shape in COUNTERS.items()}


class FakeTable:
    """Counters and cells in lists; something may happen between one look and the next."""

    def __init__(self) -> None:
        self.values = zeros()
        self.alive = {(class_, family, lane): 0 for class_ in Class for family in FAMILIES for lane in range(LANES)}
        self.meanwhile: Callable[[], None] = lambda: None

    def counters(self) -> Counters:
        """As they are now."""
        return Counters({name: tuple(numbers) for name, numbers in self.values.items()})

    def living(self, _now_ns: int) -> dict[tuple[Class, str, int], int]:
        """As they are after what happens."""
        self.meanwhile()
        return dict(self.alive)

    def enter(self, count: int = 1) -> None:
        """Remote sessions over IPv4, of 900 ticks each."""
        at = Class.REMOTE * LANES + LANE
        self.values["planned"][at] += count
        self.values["planned_ticks"][at] += 900 * count
        self.alive[Class.REMOTE, "ipv4", LANE] += count

    def end(self, count: int = 1) -> None:
        """As many of them are reset."""
        self.values["withdrawn"][Class.REMOTE * LANES + LANE] += count
        self.values["ended"][Class.REMOTE * len(Reason) + Reason.RESET] += count
        self.values["lifetime"][Class.REMOTE * LANES + 1] += count
        self.values["lifetime_ticks"][Class.REMOTE] += 10 * count
        self.alive[Class.REMOTE, "ipv4", LANE] -= count


def sums(table: FakeTable) -> Sums:
    """Read it."""
    return Sums.read(cast("Table", table))


def test_a_translated_session_takes_two_places() -> None:
    """Of 11 that live as many as of the 22 that have entered: half."""
    table = FakeTable()
    table.enter(11)
    at = Class.REMOTE * len(FAMILIES) + FAMILIES.index("ipv4")
    assert sums(table).places(Class.REMOTE, "ipv4") == 11
    table.values["entered"][at], table.values["translated"][at] = 22, 11
    assert (16.5, 0) == (sums(table).places(Class.REMOTE, "ipv4"), sums(table).places(Class.LOCAL, "ipv4"))


def test_what_expired_is_what_was_planned_less_the_withdrawn_and_the_living() -> None:
    """Of 101 planned lives 7 ended early and 23 go on: 71 expired, after the mean life of their lane."""
    table = FakeTable()
    table.enter(101)
    table.end(7)
    table.alive[Class.REMOTE, "ipv4", LANE] = 20
    table.alive[Class.REMOTE, "ipv6", LANE] = 3
    now = sums(table)
    assert (20, 3, 0) == (*(now.sessions(Class.REMOTE, f) for f in FAMILIES), now.sessions(Class.LOCAL, "ipv4"))
    assert (71, 7, 0) == (
        now.ended(Class.REMOTE, Reason.EXPIRED),
        now.ended(Class.REMOTE, Reason.RESET),
        now.ended(Class.LOCAL, Reason.EXPIRED),
    )
    assert ([0, 7, 0, 0, 0, 71, 0, 0], (71 * 900 + 70) * TICK) == now.lifetimes(Class.REMOTE)


def test_what_happens_while_it_is_read_is_no_expiry() -> None:
    """A session that enters or ends between the looks makes an expiry late, never early."""
    table = FakeTable()
    table.enter(23)
    for meanwhile in (table.enter, table.end):
        table.meanwhile = meanwhile
        assert sums(table).ended(Class.REMOTE, Reason.EXPIRED) <= 0
