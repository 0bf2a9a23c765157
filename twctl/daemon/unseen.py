"""Entries that no probe saw. A kernel may run no tracepoint for a while, and count no miss; but it counts entries.

What it has a list of is taken over from there (reconcile.py), and that is all that is known in modes observe and
truncate before Linux 5.18. In mode vestigial the kernel counts the sessions that it keeps no socket for on any kernel.
"""

from collections.abc import Callable, Iterable

from twctl.daemon.namespaces import Namespace

# Entries go on while two numbers are read one after the other: so often a moment without any is looked for.
TRIES = 5


class Unseen:
    """As long as the namespaces are the same: what the kernel has counted, less what was seen.

    seen: entries of the enrolled namespaces, all in all. total: so many were missed, at least.
    """

    def __init__(self, namespaces: Iterable[Namespace], seen: Callable[[], int]) -> None:
        self._namespaces, self._seen = namespaces, seen
        self._cookies: set[int] | None = None
        self._base = self._before = self._last = self.total = 0

    def look(self) -> int:
        """Bring the total up to date; returns it. A miss counts from the second look on that finds it.

        :raises OSError: if the kernel's count cannot be read.
        """
        cookies = {namespace.cookie for namespace in self._namespaces}
        if cookies != self._cookies:
            self._cookies, self._before, self._base = cookies, self.total, self._difference_at_rest()
            self._last = self.total
        # The kernel's count first: what is born meanwhile makes the difference smaller, and no miss of what is none.
        # It counts a session a moment before the probe sees it: that one is gone from the difference a look later.
        last, self._last = self._last, self._before + self._counted() - self._seen() - self._base
        self.total = max(self.total, min(last, self._last))
        return self.total

    def _counted(self) -> int:
        return sum(namespace.entry_count.count() for namespace in self._namespaces)

    def _difference_at_rest(self) -> int:
        """Without a moment of rest it is too large rather than too small, by the entries of one reading."""
        for _ in range(TRIES):
            before = self._seen()
            difference = self._counted() - before
            if before == self._seen():
                break
        return difference
