"""Births that no probe saw: a kernel may run no tracepoint for a while, and count no miss. It tells of them otherwise.

In modes observe and truncate its list does (reconcile.py takes over what the table lacks). In mode vestigial there is
none, but the kernel counts each session that it keeps no socket for, and that is each birth.
"""

from collections.abc import Callable, Iterable

from twctl.members import Member

# Births go on while two numbers are read one after the other: so often a moment without any is looked for.
TRIES = 5


class Missed:
    """Mode vestigial's count. As long as the namespaces are the same: what the kernel refused, less what was seen.

    births: of the enrolled namespaces, all in all. total: so many were missed, at least.
    """

    def __init__(self, members: Iterable[Member], births: Callable[[], int]) -> None:
        self._members, self._births = members, births
        self._cookies: set[int] | None = None
        self._base = self._before = self.total = 0

    def look(self) -> int:
        """Bring the total up to date; returns it.

        :raises OSError: if the kernel's count cannot be read.
        """
        cookies = {member.cookie for member in self._members}
        if cookies != self._cookies:
            self._cookies, self._before, self._base = cookies, self.total, self._difference_at_rest()
        # Refusals first: what is born meanwhile makes the difference smaller, and no miss of what is none.
        self.total = max(self.total, self._before + self._refusals() - self._births() - self._base)
        return self.total

    def _refusals(self) -> int:
        return sum(member.refusals.count() for member in self._members)

    def _difference_at_rest(self) -> int:
        """Without a moment of rest it is too large rather than too small, by the births of one reading."""
        for _ in range(TRIES):
            before = self._births()
            difference = self._refusals() - before
            if before == self._births():
                break
        return difference
