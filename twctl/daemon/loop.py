"""The daemon's one loop: wait for signals and for what tells of changes, and do each task when it is due."""

import contextlib
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from twctl.linux.signals import SIGNALS

# The loop shows that it goes round this often, and counts as hanging if it has not for so long (s): the unit's watchdog
# has the same.
BEAT_SECONDS, HANGING_SECONDS = 15.0, 60.0

Next = TypeVar("Next")


class Source(Protocol):
    """Something that tells of changes."""

    def fileno(self) -> int:
        """Readable when something has changed."""

    def handle(self, since: float) -> None:
        """Act on what has changed, without waiting for more; all of it changed after `since` (monotonic, s)."""


class Task(Protocol):
    """Something that is done from time to time."""

    def run(self) -> float:
        """Do it; return in how many seconds again (inf: never)."""


class Heartbeat:
    """A task that shows whether the loop goes round: metrics are served by a thread of their own, which would go on."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def run(self) -> float:
        """Note the time."""
        self._last = time.monotonic()
        return BEAT_SECONDS

    def healthy(self) -> bool:
        """Whether the loop went round lately; the server's thread asks."""
        return time.monotonic() - self._last < HANGING_SECONDS


@contextlib.contextmanager
def signals() -> Iterator[socket.socket]:
    """Turn SIGINT, SIGTERM and SIGHUP into bytes that can be read from a socket: their numbers.

    Those that were put off until now are among them.
    """
    read, write = socket.socketpair()
    write.setblocking(False)  # noqa: FBT003 - socket's own signature
    previous = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(write.fileno())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in previous.items():
            signal.signal(number, handler)
        read.close()
        write.close()


def loop(
    asked: socket.socket,
    sources: Sequence[Source],
    tasks: Sequence[Task],
    reread: Callable[[], Next | None],
    following: Callable[[], Next | None] = lambda: None,
) -> Next | None:
    """Go round until SIGINT or SIGTERM (returns None), or until there is a configuration to go on with.

    asked: what `signals` yields. reread: called on SIGHUP; None where the new configuration cannot be used, and then
    the loop goes on. following: asked after tasks were done; None: not yet.
    """
    due = [time.monotonic()] * len(tasks)
    with selectors.DefaultSelector() as selector:
        selector.register(asked, selectors.EVENT_READ)
        for source in sources:
            selector.register(source, selectors.EVENT_READ, source)
        looked = time.monotonic()
        while True:
            ready, since, looked = _wait(selector, min(due), looked)
            for told in ready:
                if told:
                    told.handle(since)
                elif asked.recv(1)[0] != signal.SIGHUP:
                    return None
                elif new := reread():
                    return new
            for i, task in enumerate(tasks):
                if time.monotonic() >= due[i]:
                    due[i] = time.monotonic() + task.run()
            if new := following():
                return new


def _wait(selector: selectors.BaseSelector, until: float, looked: float) -> tuple[list[Source | None], float, float]:
    """Who has something (None: a signal); since when, at most; when it was looked at. looked: the time before.

    What is there at once came while the loop was busy; what comes while it sleeps wakes it.
    """
    now = since = time.monotonic()
    if ready := selector.select(0):
        since = looked
    else:
        ready = selector.select(max(0.0, until - now))
        now = since = time.monotonic()
    return [key.data for key, _ in ready], since, now
