"""A task that looks at conntrack: how full it is, and how many ports the host's own translation has left."""

import contextlib
import time
from functools import partial

from twctl.daemon.namespaces import Namespaces
from twctl.daemon.ports import PORTS_SECONDS
from twctl.errors import TwctlError
from twctl.linux.conntrack import Fill
from twctl.linux.netns import inside
from twctl.modes.holders import pause
from twctl.modes.translation import Translation, look


class WatchingConntrack:
    """Look once in a while, in every namespace; a scrape's thread reads what was found.

    destinations: so many are told; 0: entries are not looked at. fills: by the namespace's name. translations: the
    worst of all namespaces.
    """

    def __init__(self, namespaces: Namespaces, destinations: int) -> None:
        self._namespaces, self._destinations = namespaces, destinations
        self.fills: dict[str, Fill] = {}
        self.translations: list[Translation] = []

    def run(self) -> float:
        """Look once; the longer it takes, the later comes the next look."""
        fills: dict[str, Fill] = {}
        found: list[Translation] = []
        cost = 0.0
        for each in self._namespaces:
            name = each.name or ""
            with contextlib.suppress(OSError, TwctlError):  # it goes
                fill, worst, seconds = inside(each.path, partial(self._look, name))
                cost += seconds
                found += worst
                if fill:
                    fills[name] = fill
        self.fills = fills
        self.translations = sorted(found, key=lambda each: -each.taken)[: self._destinations]
        return pause(PORTS_SECONDS, cost)

    def _look(self, name: str) -> tuple[Fill | None, list[Translation], float]:
        """In the calling thread's namespace; with the CPU time (s) of this thread."""
        began = time.thread_time()
        return *look(name, self._destinations), time.thread_time() - began
