"""Signals that ask a daemon to stop or to read its configuration again, and how they are put off; and SIGKILL."""

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator

from twctl.linux.libc import checked, libc

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Have them wait until the block ends; what is started or executed in it has them wait, too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with(parent: int) -> None:
    """Have this process killed when the one that started it ends, and now if that has ended already.

    Giving up capabilities afterwards does not change that, gaining some would (prctl(2), PR_SET_PDEATHSIG).
    """
    checked(libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
