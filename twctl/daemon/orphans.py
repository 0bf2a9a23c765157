"""The task that keeps the memory of orphans bounded in mode vestigial.

There an orphan in FIN_WAIT2 stays a socket of the kernel (modes/sysctls.py), and a peer that never closes costs 2.2 kB
for each. The kernel counts orphans of all network namespaces together, and above tcp_max_orphans it resets them.
"""

import logging
import time

from twctl.daemon.namespaces import Namespaces
from twctl.linux.procfs import MaxOrphans, Sockstat

log = logging.getLogger("twctl")

# How often they are counted (s): so long can a flood of closes go beyond the limit.
LOOK_SECONDS = 0.25
# Orphans stay again once they have been fewer than half of the limit for so long (s).
CALM_SECONDS = 300.0


class WatchingOrphans:
    """Above the limit orphans in FIN_WAIT2 become vestiges, until there have been few for a while.

    most: of the configuration; half of tcp_max_orphans is a limit as well. stay: bool, whether they stay sockets.
    """

    def __init__(self, namespaces: Namespaces, most: int) -> None:
        self._namespaces, self._most = namespaces, most
        self._sockstat, self._max = Sockstat(), MaxOrphans()
        self._crowded_at = 0.0
        self.stay = True

    def close(self) -> None:
        """Close the files."""
        self._sockstat.close()
        self._max.close()

    def limit(self) -> int:
        """Sockets, at most. A scrape's thread asks, too."""
        return int(min(self._most, self._max.count() / 2))

    def orphans(self) -> int:
        """Sockets without an application, as the kernel counts them. A scrape's thread asks, too."""
        return self._sockstat.orphans()

    def run(self) -> float:
        """Count once, and act on it."""
        orphans, limit, now = self.orphans(), self.limit(), time.monotonic()
        if crowded := orphans > (limit if self.stay else limit / 2):
            self._crowded_at = now
        if crowded and self.stay:
            self._change(stay=False)
            log.warning("%d orphans, more than %d: those in FIN_WAIT2 become vestiges for now", orphans, limit)
        elif not self.stay and now - self._crowded_at > CALM_SECONDS:
            self._change(stay=True)
            log.info("%d orphans: those in FIN_WAIT2 stay sockets again", orphans)
        return LOOK_SECONDS

    def _change(self, *, stay: bool) -> None:
        self._namespaces.let_orphans_stay(stay)
        self.stay = stay  # last: a scrape's thread tells what is in force
