"""Signals that wait, here and in what is started meanwhile."""

import signal
import subprocess
import sys

from twctl.linux.signals import SIGNALS, put_off

SHOW = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"


def test_a_signal_comes_when_the_block_ends() -> None:
    """Not before, and not never."""
    came: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: came.append(number))
    try:
        with put_off():
            signal.raise_signal(signal.SIGHUP)
            assert ([], {signal.SIGHUP}) == (came, signal.sigpending())
        assert came == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_started_meanwhile_has_them_wait() -> None:
    """All three; afterwards none."""
    assert "[]\n" == _shown()
    with put_off():
        assert f"{sorted(SIGNALS)}\n" == _shown()
    assert "[]\n" == _shown()


def _shown() -> str:
    return subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True).stdout
