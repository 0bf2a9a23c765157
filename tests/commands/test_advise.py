"""What `twctl advise` prints, of snapshots that were taken of real scenes."""

import json

import pytest

from tests.advise.test_rules import SNAPSHOTS, recorded
from twctl.advise.rules import advise
from twctl.advise.snapshot import from_plain
from twctl.commands.advise import as_json, lines


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_a_line_has_80_columns_at_most(name: str) -> None:
    """And each advice says what was seen, what to do, what that brings, and where to read on."""
    said = advise(recorded(name))
    text = list(lines(said))
    assert max(map(len, text)) <= 80
    for word in ("seen", "do", "brings", "read"):
        assert len(said) == sum(line.startswith(f"{word} ") for line in text)


def test_where_nothing_has_to_be_done_that_is_said_first() -> None:
    """And nowhere else."""
    first = {name: next(lines(advise(recorded(name)))) for name in SNAPSHOTS}
    assert "Nothing has to be done." == first["well"] == first["loopback"]
    assert first["used_up"].startswith("now: ")


def test_json_has_the_advice_and_what_it_is_given_on() -> None:
    """One object, whose snapshot says the same again."""
    snapshot = recorded("used_up")
    found = json.loads(as_json(advise(snapshot), snapshot))
    assert snapshot == from_plain(found["snapshot"])
    assert {"urgency", "weight", "what", "evidence", "remedy", "gain", "anchor", "page"} == {*found["advice"][0]}
