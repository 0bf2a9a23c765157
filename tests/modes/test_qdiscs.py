"""The guard remembers which qdiscs it made, over restarts and for each namespace."""

from pathlib import Path

import pytest

from twctl.modes import qdiscs
from twctl.modes.qdiscs import Qdiscs

BLUE, RED = 5, 7  # cookies


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file lies instead of /run/twctl; it is not there yet."""
    monkeypatch.setattr(qdiscs, "FOLDER", tmp_path / "run")
    return tmp_path / "run"


def made(pins: str) -> list[tuple[int, int]]:
    """What is remembered of four, read anew."""
    known = Qdiscs(Path("/sys/fs/bpf", pins))
    return [(cookie, device) for cookie in (BLUE, RED) for device in (1, 2) if known.made(cookie, device)]


def test_each_is_remembered_once(folder: Path) -> None:
    """Cookie and interface together; nothing is made for a table of another name."""
    Qdiscs(Path("/sys/fs/bpf/twctl")).note(BLUE, 1)
    Qdiscs(Path("/sys/fs/bpf/twctl")).note(BLUE, 1)
    Qdiscs(Path("/sys/fs/bpf/twctl")).note(RED, 2)
    assert made("twctl") == [(BLUE, 1), (RED, 2)]
    assert made("other") == []
    assert [each.name for each in folder.iterdir()] == ["twctl.qdiscs.json"]


def test_a_namespace_is_forgotten_as_a_whole(folder: Path) -> None:
    """The others' stay; without any there is no file."""
    known = Qdiscs(Path("/sys/fs/bpf/twctl"))
    for cookie, device in ((BLUE, 1), (RED, 1), (BLUE, 2)):
        known.note(cookie, device)
    known.forget(BLUE)
    assert made("twctl") == [(RED, 1)]
    known.forget(RED)
    known.forget(RED)
    assert list(folder.iterdir()) == []
