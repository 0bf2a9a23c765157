"""Births that no probe saw: a kernel may run no tracepoint for a while, and count no miss. But it counts births itself.

What it has a list of is taken over from there (reconcile.py), and that is all that is known in modes observe and
truncate before Linux 5.18. In mode vestigial the kernel counts the sessions that it keeps no socket for on any kernel.
"""

from collections.abc import Callable, Iterable

from twctl.members import Member

# Births go on while two numbers are read one after the other: so often a moment without any is looked for.
TRIES = 5


class Missed:
    """As long as the namespaces are the same: what the kernel has counted, less what was seen.

    seen: births of the enrolled namespaces, all in all. total: so many were missed, at least.
    """

    def __init__(self, members: Iterable[Member], seen: Callable[[], int]) -> None:
        self._members, self._seen = members, seen
        self._cookies: set[int] | None = None
        self._base = self._before = self._last = self.total = 0

    def look(self) -> int:
        """Bring the total up to date; returns it. A miss counts from the second look on that finds it.

        :raises OSError: if the kernel's count cannot be read.
        """
        cookies = {member.cookie for member in self._members}
        if cookies != self._cookies:
            self._cookies, self._before, self._base = cookies, self.total, self._difference_at_rest()
            self._last = self.total
        # The kernel's count first: what is born meanwhile makes the difference smaller, and no miss of what is none.
        # It counts a session a moment before the probe sees it: that one is gone from the difference a look later.
        last, self._last = self._last, self._before + self._counted() - self._seen() - self._base
        self.total = max(self.total, min(last, self._last))
        return self.total

    def _counted(self) -> int:
        return sum(member.births.count() for member in self._members)

    def _difference_at_rest(self) -> int:
        """Without a moment of rest it is too large rather than too small, by the births of one reading."""
        for _ in range(TRIES):
            before = self._seen()
            difference = self._counted() - before
            if before == self._seen():
                break
        return difference
