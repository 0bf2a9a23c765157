"""Opening what is pinned, without a kernel: errors are those that a user can do something about."""

import errno
import mmap
import os
import signal
from pathlib import Path

import pytest

from tests.load import wait_until
from twctl.errors import TwctlError
from twctl.table.pinned import Pinned, store


@pytest.fixture
def pinned(tmp_path: Path) -> Pinned:
    """A folder without any pin."""
    for part in ("maps", "programs"):
        (tmp_path / part).mkdir()
    return Pinned(tmp_path)


def test_a_map_that_is_gone_means_that_the_table_was_removed(pinned: Pinned) -> None:
    """Start the daemon again."""
    with pytest.raises(TwctlError, match="was removed"):
        pinned.map("meta", 8)


def test_without_the_right_to_open_a_map_the_hint_is_root(pinned: Pinned, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's own words."""

    def refuse(_path: Path) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("twctl.linux.libbpf.obj_get", refuse)
    with pytest.raises(TwctlError, match="Operation not permitted") as refused:
        pinned.fd("meta")
    assert refused.value.hint == "run as root"


def test_programs_that_share_memory_run_one_after_the_other(pinned: Pinned, tmp_path: Path) -> None:
    """Until the pins are removed."""
    with pinned.exclusive():
        pass
    (tmp_path / "programs").rmdir()
    with pytest.raises(TwctlError, match="was removed"), pinned.exclusive():
        pass


def test_an_event_inside_of_another_is_lost_where_one_program_is_attached(
    pinned: Pinned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two programs at one place one sees it; entry and exit of a function are two places."""
    names = ("first__state", "again__state", "kfunc__entry__f", "kretfunc__exit__f", "sweep")
    for name in names:
        (tmp_path / "programs" / name).touch()
    monkeypatch.setattr("twctl.linux.libbpf.obj_get", lambda path: 1000 + names.index(path.name))
    monkeypatch.setattr("twctl.linux.libbpf.misses", lambda program: 10 ** (program - 1000))
    assert pinned.nested() == 10**2 + 10**3


def test_a_number_is_never_seen_half_written() -> None:
    """As the programs on other CPUs read what says how long vestiges live, or that somebody listens."""
    memory, values = mmap.mmap(-1, mmap.PAGESIZE), (0x1111111111111111, 0x2222222222222222)
    store(memory, 8, "Q", values[0])
    numbers = memoryview(memory).cast("Q")
    if not (writer := os.fork()):
        while True:
            for value in values:
                store(memory, 8, "Q", value)
    try:
        wait_until(lambda: numbers[1] == values[1], what="it writes", timeout=60)
        assert set(values) >= {numbers[1] for _ in range(500_009)}
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    assert (0, 0) == (numbers[0], numbers[2])
