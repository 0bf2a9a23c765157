"""Tasks that keep what stands true: the table equal to the kernel's list, the guard on every device."""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence

from twctl.classes import Class
from twctl.config.config import Config
from twctl.config.keys import Mode
from twctl.daemon.discovery import Discovery
from twctl.daemon.namespace import Namespace
from twctl.modes.filters import Ours
from twctl.modes.guard import remove as remove_guard
from twctl.modes.reconcile import Drift, Reconciler
from twctl.table.counters import TICK
from twctl.table.maps import Table

log = logging.getLogger("twctl")

# Expired index words are zeroed this often (s) where no comparison does it: they must not stay for 13 days (vestige.h).
SWEEP_SECONDS = 300.0
# A comparison with the kernel's list may take this share of one CPU: after a long one the next comes later.
RECONCILE_SHARE = 0.005
# Notifications tell when a filter is taken away; all devices are looked at this often (s) all the same.
GUARD_SECONDS = 10.0
# With hundreds of namespaces a look takes this share of one CPU, and so more time.
GUARD_SHARE = 0.005

Marks = Mapping[tuple[Class, str], int]


class Reconciling:
    """Compare the table with the kernel's list where the probe does not see ends; zero expired words everywhere.

    taken_over: called after each comparison that may have put sessions into the table, with the entry numbers from
    which on they stand. rounds, errors: comparisons so far; drift: what the last one mended; missing: sessions (int)
    that any of them found in the kernel's list and not in the table.
    """

    def __init__(
        self,
        table: Table,
        reconciler: Reconciler,
        config: Config,
        *,
        ends_seen: bool,
        taken_over: Callable[[Marks], None],
    ) -> None:
        self._table, self._reconciler, self._taken_over = table, reconciler, taken_over
        # The kernel has no list of what the guard keeps.
        self._comparing = config.reconcile_interval > 0 and not ends_seen and config.mode is not Mode.VESTIGIAL
        self._interval = config.reconcile_interval if self._comparing else SWEEP_SECONDS
        self._wait = self._interval  # the start has just compared
        self.rounds = self.errors = self.missing = 0
        self.drift = {"missing": 0, "stale": 0}

    def take_over(self, namespaces: Sequence[Namespace] | None = None) -> None:
        """Put what the kernel has already into the table: of namespaces that have just joined; None: of all."""
        with self._table.exclusive():
            if namespaces is None:
                drift = self._reconciler.round(end=False)
            else:
                drift = self._reconciler.take_over([namespace.index for namespace in namespaces])
            _report(drift, "took over")
            self._taken_over(self._reconciler.marks())

    def wait(self, seconds: float) -> None:
        """Compare no sooner: until a guard that is leaving is gone, the kernel does not have all sessions."""
        self._wait = max(self._wait, seconds)

    def run(self) -> float:
        """Compare, or zero expired words alone."""
        if self._wait:
            wait, self._wait = self._wait, 0.0
            return wait
        with self._table.exclusive():
            seconds = self._compare() if self._comparing else self._reconciler.sweep()
        return max(self._interval, seconds / RECONCILE_SHARE)

    def _compare(self) -> float:
        try:
            drift = self._reconciler.round()
        except OSError as error:
            self.errors += 1
            log.warning("cannot compare the table with the kernel's list: %s", os.strerror(error.errno or 0))
            return 0.0
        self._taken_over(self._reconciler.marks())
        self.rounds += 1
        self.missing += drift.missing
        self.drift = {"missing": drift.missing, "stale": drift.stale}
        _report(drift, "reconciled")
        return drift.seconds


def _report(drift: Drift, what: str) -> None:
    if drift.missing or drift.stale:
        log.info("%s: %d sessions the table lacked, %d the kernel no longer has", what, drift.missing, drift.stale)


class Guarding:
    """Look at the devices of one namespace after the other and put back what is missing, besides the notifications."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._due: list[Namespace] = []

    def run(self) -> float:
        """Look at one namespace."""
        started = time.thread_time()
        namespaces = list(self._discovery.namespaces)
        self._due = [namespace for namespace in self._due if namespace in namespaces] or namespaces.copy()
        if self._due:
            self._discovery.attend(self._due.pop(), self._discovery.namespaces.mend_guard)
        return max(GUARD_SECONDS / max(1, len(namespaces)), (time.thread_time() - started) / GUARD_SHARE)


class Leaving:
    """Take away the guard that an earlier mode or table left, once the last vestige that only it knows has expired.

    Until then the table has the lives of the guard's vestiges, and then those of the configuration: whoever starts or
    reloads meanwhile waits as long. seconds: from the start until then; over: whether it is done.
    """

    def __init__(self, table: Table, ours: Ours, config: Config) -> None:
        self._table, self._ours, self._config = table, ours, config
        self.seconds: float = max(table.lives) / 1e9 + TICK
        self._end: float = time.monotonic() + self.seconds
        self.over = False

    def run(self) -> float:
        """Wait, then take it away for good."""
        if (wait := self._end - time.monotonic()) > 0:
            return wait
        for line in remove_guard(self._ours):
            log.warning("%s", line)
        log.info("the earlier guard is gone: all its sessions are over")
        self._table.guard = 0
        self._table.set_lives(self._config.time_wait, self._config.fin_wait2)
        self.over = True
        return math.inf
