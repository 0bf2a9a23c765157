"""Giving everything back where nothing is left; tests/kernel shows the rest."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from twctl.classes import Class
from twctl.commands import reclaim
from twctl.errors import TwctlError
from twctl.modes.truncate import DRAIN_BATCH, Reaper, drain
from twctl.table.counters import Reason
from twctl.table.maps import Table


def test_release_where_nothing_is_left_says_so(tmp_path: Path) -> None:
    """However often."""
    assert [(False, []), (False, [])] == [reclaim.release(tmp_path / "twctl-none") for _ in range(2)]


def test_drain_without_a_table_is_an_error(tmp_path: Path) -> None:
    """It names the folder."""
    with pytest.raises(TwctlError, match="no table is pinned"):
        reclaim.drain_now(tmp_path, reclaim.Wanted())


@pytest.mark.parametrize("dry", [False, True])
def test_where_the_kernel_destroys_nothing_drain_says_so_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, *, dry: bool
) -> None:
    """One line with status 1, and no session's entry ends; behind a guard there is nothing to destroy anyway."""

    def cannot(hint: str) -> str:
        raise TwctlError("this kernel does not destroy TIME_WAIT sockets", hint)

    monkeypatch.setattr(reclaim, "Table", lambda *_, **__: SimpleNamespace())
    monkeypatch.setattr(reclaim, "can_destroy", cannot)
    monkeypatch.setattr(reclaim, "drain", lambda *_: pytest.fail("it drains"))
    with pytest.raises(TwctlError, match=r"does not destroy .*\(drain needs Linux 6.0") as raised:
        reclaim.drain_now(Path("/nowhere"), reclaim.Wanted(dry=dry))
    assert 1 == raised.value.status
    assert dict.fromkeys(Class, 0) == reclaim.drain_now(Path("/nowhere"), reclaim.Wanted(dry=dry), guarding=True)


def test_a_long_drain_lets_others_have_the_table_after_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon, whose only thread waits for it."""
    batches, held, seen = [DRAIN_BATCH, DRAIN_BATCH, 7], [], []

    @contextlib.contextmanager
    def exclusive() -> Iterator[None]:
        held.append(1)
        yield
        held.pop()

    def reap(*_: object, **__: object) -> tuple[int, float]:
        seen.append(len(held))
        return batches.pop(0), 0.0

    monkeypatch.setattr(Reaper, "_reap", reap)
    table = SimpleNamespace(exclusive=exclusive, program=lambda _: None, map=lambda *_: None)
    drained = drain(Reaper(cast("Table", table), {}, Reason.DRAINED), [Class.LOCAL], 0.0)
    assert ({Class.LOCAL: 2 * DRAIN_BATCH + 7}, [1, 1, 1], []) == (drained, seen, held)


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
