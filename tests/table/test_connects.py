"""The histogram of searches, from memory in which several CPUs have counted."""

import struct
from pathlib import Path

import pytest

from twctl.table.connects import CONNECTS, OUTCOMES, SEARCH_SECONDS, Searches, connects
from twctl.table.layout import possible_cpus
from twctl.table.maps import Table
from twctl.table.shared import CONSTANTS, STRUCTS

ONE = STRUCTS["connects"].size
LANES = CONSTANTS["SEARCH_LANES"]


def test_there_is_none_where_nothing_measures(table: Table) -> None:
    """The loader left it out."""
    assert connects(table) is None


def test_what_all_cpus_counted_is_summed(table: Table, tmp_path: Path) -> None:
    """By outcome and length; and what was not measured."""
    (tmp_path / "maps" / CONNECTS).touch()
    cpus = possible_cpus()
    memory = table.map(CONNECTS, ONE * cpus)
    for cpu in range(cpus):
        found, none = [0] * LANES, [0] * LANES
        found[0], found[LANES - 1], none[3] = 5, cpu, 1
        struct.pack_into(f"={ONE // 8}Q", memory, ONE * cpu, *found, *none, 2_000_000_000, 7_000, 3, 0)
    measured = connects(table)
    assert measured
    assert list(OUTCOMES) == list(measured.searches)
    assert 5 * cpus + sum(range(cpus)) == measured.searches["found"].made
    assert sum(range(cpus)) == measured.searches["found"].lanes[-1]
    failed = measured.searches["no_port"]
    assert cpus == failed.lanes[3]
    assert pytest.approx(7e-6 * cpus) == failed.seconds
    assert 3 * cpus == measured.unmeasured


def test_the_edges_are_those_of_the_programs() -> None:
    """From 1 us to 100 ms; one lane more for what is longer."""
    assert (1e-6, 0.1) == (SEARCH_SECONDS[0], SEARCH_SECONDS[-1])
    assert len(SEARCH_SECONDS) + 1 == LANES


def test_a_mean_is_of_what_came_since() -> None:
    """And 0 where nothing came."""
    before, after = Searches((1, 2), 3.0), Searches((1, 6), 5.0)
    assert (4, 0.5) == (after.since(before).made, after.since(before).mean)
    assert after.since(after).mean == 0
