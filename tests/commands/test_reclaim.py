"""Giving everything back where nothing is left; tests/kernel shows the rest."""

import json
from pathlib import Path

import pytest

from twctl.classes import Class
from twctl.commands import reclaim
from twctl.errors import TwctlError


def test_release_where_nothing_is_left_says_so(tmp_path: Path) -> None:
    """However often."""
    assert [(False, []), (False, [])] == [reclaim.release(tmp_path / "twctl-none") for _ in range(2)]


def test_drain_without_a_table_is_an_error(tmp_path: Path) -> None:
    """It names the folder."""
    with pytest.raises(TwctlError, match="no table is pinned"):
        reclaim.drain_now(tmp_path, reclaim.Wanted())


@pytest.mark.parametrize(
    ("dry", "line"),
    [(False, "drained 30: loopback 23, local 7"), (True, "would drain 30: loopback 23, local 7")],
)
def test_what_was_drained_is_told_by_class(dry: bool, line: str) -> None:  # noqa: FBT001
    """As a line, or as JSON."""
    drained = {Class.LOOPBACK: 23, Class.LOCAL: 7}
    assert line == reclaim.told(drained, dry=dry, json_=False)
    told = json.loads(reclaim.told(drained, dry=dry, json_=True))
    assert {"dry_run": dry, "drained": {"loopback": 23, "local": 7}} == told


def test_there_is_nothing_to_release_below_a_file(tmp_path: Path) -> None:
    """One line, and not that a guard was left."""
    (tmp_path / "file").touch()
    for name in ("file", "file/twctl"):
        with pytest.raises(TwctlError, match="is no folder"):
            reclaim.release(tmp_path / name)
