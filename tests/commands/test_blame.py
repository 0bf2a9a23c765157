"""What `twctl blame` prints, from rows that a test wrote down."""

from typing import Any

import pytest

from twctl.commands.blame import lines
from twctl.table.tallies import By

LONG = {"sessions": 999_999_999, "entered": 99_999_999_999, "error": 99_999_999, "no_port": 99_999_999}
WIDEST = [
    (By.OWNER, {"owner": "/kubepods.slice/kubepods-burstable.slice/" + "a" * 80, "uid": 2**32 - 2}),
    (By.REMOTE, {"remote": ":".join(["abcd"] * 8), "remote_port": 65535, "netns": "cni-" + "b" * 40}),
    (By.REMOTE, {"remote": "fe80::abcd:abcd:abcd:abcd%123", "remote_port": 65535, "netns": ""}),
    (By.LOCAL_PORT, {"local_port": 65535, "netns": "cni-" + "c" * 60}),
]


@pytest.mark.parametrize(("by", "row"), WIDEST)
def test_a_line_is_never_wider_than_80_columns(by: By, row: dict[str, Any]) -> None:
    """Whatever names and numbers there are; the end of a name stays, and columns stay where they are."""
    title, line = lines(by, [row | LONG])
    assert max(len(title), len(line)) <= 80
    assert len(title) == len(line)
    assert line.endswith(" 99999999 99999999")
    assert "..." in line or row["netns"] == ""


def test_endpoints_on_the_wire_stand_below_the_one_that_applications_see() -> None:
    """Where a Service's address is translated, say; within the same columns."""
    wire = [{"remote": "10.0.1.5", "remote_port": 8080, "sessions": 23}]
    wire.append({"remote": ":".join(["abcd"] * 8), "remote_port": 65535, "sessions": 999_999_999})
    title, _, *below = lines(By.REMOTE, [WIDEST[1][1] | LONG | {"wire": wire}])
    assert ["on", "the", "wire", "10.0.1.5:8080", "23"] == below[0].split()
    assert {len(title) - 30} == {len(line) for line in below}


def test_what_is_not_known_of_entries_is_a_dash() -> None:
    """A party that has sessions and no place."""
    row = {"remote": "192.0.2.1", "remote_port": 443, "netns": "", "sessions": 5, "entered": None}
    _, line = lines(By.REMOTE, [row | {"error": 0, "no_port": 0}])
    assert ["192.0.2.1:443", "5", "-", "0", "0"] == line.split()
