"""Signals that wait, here and in what is started meanwhile; and what is killed together with who started it."""

import signal
import subprocess
import sys
from subprocess import PIPE

from twctl.linux.signals import SIGNALS, put_off

# Ends as soon as what it has started says that it will end with this number.
START = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=sys.stdout)
sys.stdin.read()
"""
END = """
import sys, time
from twctl.linux.signals import end_with
end_with(int(sys.argv[1]))
print("waits", flush=True)
time.sleep(5)
print("was left")
"""
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


def test_what_is_to_end_with_its_parent_does() -> None:
    """Also when that is killed."""
    with subprocess.Popen([sys.executable, "-c", START, END], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout
        assert "waits\n" == process.stdout.readline()
        process.kill()
        assert "" == process.stdout.read()  # returns when nobody has its other end


def test_what_is_to_end_with_who_is_gone_ends_at_once() -> None:
    """The parent had ended before that was asked for."""
    done = subprocess.run([sys.executable, "-c", END, "1"], capture_output=True, text=True, check=False)
    assert (-signal.SIGKILL, "") == (done.returncode, done.stdout)


def _shown() -> str:
    return subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True).stdout
