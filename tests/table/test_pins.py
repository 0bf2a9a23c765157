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
