"""The signals that a daemon is asked by to stop or to read its configuration again, and how they are put off."""

import contextlib
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Have them wait until the block ends; what is started or executed in it has them wait, too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
