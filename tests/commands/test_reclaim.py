"""Giving everything back where nothing is left; tests/kernel shows the rest."""

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
        reclaim.drain_now(tmp_path, list(Class), 0.0)
