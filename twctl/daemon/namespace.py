"""One network namespace that the daemon works in: what is held open in it."""

import dataclasses
from collections import Counter

from twctl.linux.procfs import EntryCount, MaxTimeWait, PortRange, Sockstat
from twctl.linux.sockdiag import SockDiag
from twctl.modes.guard import Guard
from twctl.routes.watcher import RouteWatcher
from twctl.table.tries import ClassTries


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Namespace:
    """An enrolled namespace. inode: its number; path: leads there also without a name, None: to our own."""

    index: int
    name: str | None
    cookie: int
    inode: int
    path: str | None
    routes: RouteWatcher
    tries: ClassTries
    diag: SockDiag
    sockstat: Sockstat
    ports: PortRange
    entry_count: EntryCount
    max_time_wait: MaxTimeWait
    guard: Guard | None

    def follow(self, since: float) -> None:
        """Act on what has changed of its routes and devices since (monotonic, s). Raises TwctlError."""
        if self.routes.follow():
            self.tries.sync(self.routes.trie())
        if self.guard:
            self.guard.follow(since)

    def guard_all_devices(self) -> None:
        """Put the guard on devices that lack it. Raises TwctlError."""
        if self.guard:
            self.guard.attach()

    def counts(self) -> Counter[str]:
        """What counts on when it has left."""
        own = Counter(changes=self.routes.changes, resyncs=self.routes.resyncs)
        return own + (self.guard.counts() if self.guard else Counter())
