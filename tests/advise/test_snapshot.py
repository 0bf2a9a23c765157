"""A snapshot is plain data: what is written is what is read."""

import json

import pytest

from tests.advise.test_rules import SNAPSHOTS, recorded
from twctl.advise.snapshot import as_plain, from_json


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_what_is_written_is_read(name: str) -> None:
    """Through JSON and back."""
    snapshot = recorded(name)
    assert snapshot == from_json(json.dumps(as_plain(snapshot)))


def test_rates_are_those_of_now_or_of_the_last_minute() -> None:
    """Whichever is more."""
    [one] = recorded("used_up").destinations
    assert one.sessions / 60 == one.per_second > one.entered
