"""The lock of the pins' folder, without a kernel."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from twctl.errors import TwctlError
from twctl.table.pins import Pins


def test_a_folder_that_is_not_there_is_not_locked(tmp_path: Path) -> None:
    """Nor is it made."""
    assert not Pins(tmp_path / "none").locked()
    assert not (tmp_path / "none").exists()


def test_one_who_only_asks_keeps_no_daemon_from_starting(tmp_path: Path) -> None:
    """A lock that is held for 50 ms is waited for; one that stays is an error."""
    asking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    assert not Pins(tmp_path).locked()  # nor do two who ask see each other
    timer = threading.Timer(0.05, os.close, [asking])
    timer.start()
    daemon = Pins(tmp_path)
    daemon.lock()
    timer.join()
    assert Pins(tmp_path).locked()
    with pytest.raises(TwctlError, match="another twctl uses"):
        Pins(tmp_path).lock()
    daemon.unlock()
    assert not Pins(tmp_path).locked()


def test_nothing_is_left_of_a_folder_that_is_removed(tmp_path: Path) -> None:
    """Neither what was pinned in it, nor itself; once it is gone there is nothing more to remove."""
    for part in ("current/links", "current/maps", "next/programs"):
        (tmp_path / "twctl" / part).mkdir(parents=True)
    (tmp_path / "twctl/current/maps/meta").touch()
    assert Pins(tmp_path / "twctl").remove()
    assert not (tmp_path / "twctl").exists()
    assert not Pins(tmp_path / "twctl").remove()


def test_what_a_daemon_uses_is_not_removed(tmp_path: Path) -> None:
    """Another process is refused; the daemon itself may."""
    daemon = Pins(tmp_path / "twctl")
    daemon.root.mkdir()
    daemon.lock()
    with pytest.raises(TwctlError, match="another twctl uses"):
        Pins(daemon.root).remove()
    assert daemon.root.exists()
    assert daemon.remove()
