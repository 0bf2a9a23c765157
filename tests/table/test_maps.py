"""The table over memory of the test in the place of pinned maps."""

from pathlib import Path

import pytest

from tests.table.conftest import SIZES
from twctl.classes import Class
from twctl.errors import TwctlError
from twctl.table.maps import Table


def test_a_folder_without_pins_is_no_table(tmp_path: Path) -> None:
    """The hint says what to start."""
    with pytest.raises(TwctlError, match="no table is pinned") as refused:
        Table(tmp_path / "none")
    assert "twctl run" in refused.value.hint


def test_capacities_are_those_of_the_rings(table: Table) -> None:
    """By class and family; a ring tells how many slots it has handed out."""
    assert {(class_, family): table.layout.capacity[family][class_] for class_, family in SIZES} == SIZES
    assert table.ring(Class.LOCAL, "ipv6")[:4] == (3, 0, 267, 4)
    assert table.ring(Class.LOCAL, "ipv6")[4:] == tuple(range(32))


def test_what_the_daemon_writes_into_the_meta_data_is_read_back(table: Table) -> None:
    """Mode, guard and lives; the seed beside them stays."""
    table.mode, table.guard = "vestigial", 2**64 - 1
    table.set_lives(dict.fromkeys(Class, 2.0) | {Class.REMOTE: 60.0}, dict.fromkeys(Class, 3.0))
    assert ("vestigial", 2**64 - 1, 4711) == (table.mode, table.guard, table.seed)
    assert table.lives == (2 * 10**9, 2 * 10**9, 60 * 10**9, *[3 * 10**9] * 3)
