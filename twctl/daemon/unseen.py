"""Entries that no probe saw. A kernel may run no tracepoint for a while, and count no miss; but it counts entries.

A session that the kernel lists and the table lacks is taken over (modes/reconcile.py); in modes observe and truncate
before Linux 5.18 that is all that is known. In mode vestigial every kernel counts the sessions for which it keeps no
socket.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable

from twctl.config.keys import Mode
from twctl.daemon.namespace import Namespace
from twctl.linux.procfs import counts_entries

log = logging.getLogger("twctl")

# Entries go on while two numbers are read one after the other: a moment without any is looked for this often.
TRIES = 5
# The kernel's count is compared with the entries seen this often (s), and may take this share of one CPU.
COUNT_SECONDS, COUNT_SHARE = 1.0, 0.005


def is_counted(mode: Mode) -> bool:
    """Whether the kernel counts all entries in this mode, so that the unseen ones are known."""
    return mode is Mode.VESTIGIAL or counts_entries()


class Unseen:
    """What the kernel has counted less what was seen, for as long as the namespaces are the same.

    seen: entries (int) that the probe saw, of the enrolled namespaces together. total: entries that were unseen, at
    least.
    """

    def __init__(self, namespaces: Iterable[Namespace], seen: Callable[[], int]) -> None:
        self._namespaces, self._seen = namespaces, seen
        self._cookies: set[int] | None = None
        self._base = self._before = self._last = self.total = 0

    def look(self) -> int:
        """Bring the total up to date; returns it. An unseen entry counts from the second look that finds it.

        :raises OSError: if the kernel's count cannot be read.
        """
        cookies = {namespace.cookie for namespace in self._namespaces}
        if cookies != self._cookies:
            self._cookies, self._before, self._base = cookies, self.total, self._difference_at_rest()
            self._last = self.total
        # The kernel's count is read first: entries meanwhile make the difference smaller, and nothing looks unseen that
        # was seen. The kernel counts a session a moment before the probe sees it: a look later that difference is gone.
        last, self._last = self._last, self._before + self._counted() - self._seen() - self._base
        self.total = max(self.total, min(last, self._last))
        return self.total

    def _counted(self) -> int:
        return sum(namespace.entry_count.count() for namespace in self._namespaces)

    def _difference_at_rest(self) -> int:
        """Where no moment of rest is found, it is too large by the entries of one reading, rather than too small."""
        for _ in range(TRIES):
            before = self._seen()
            difference = self._counted() - before
            if before == self._seen():
                break
        return difference


class CountingUnseen:
    """The task that counts unseen entries. total: so many up to now."""

    def __init__(self, namespaces: Iterable[Namespace], seen: Callable[[], int]) -> None:
        self._unseen, self.total = Unseen(namespaces, seen), 0
        self._unseen.look()

    def run(self) -> float:
        """Compare once."""
        started = time.thread_time()
        with contextlib.suppress(OSError):
            if self._unseen.look() > self.total:
                log.warning("%d entries were not seen by the probe", self._unseen.total - self.total)
                self.total = self._unseen.total
        return max(COUNT_SECONDS, (time.thread_time() - started) / COUNT_SHARE)
