"""The task that has the kernel do TIME_WAIT's duty where something comes between wire and sockets (modes/obstacles.py).

Docker, a service mesh, a VPN start after twctl does. What nftables, TC and XDP change is noticed within a second, the
rest at the next look.
"""

import contextlib
import dataclasses
import logging
import time
from collections import Counter

from twctl.daemon.discovery import Discovery, tell_suspended
from twctl.daemon.namespace import Namespace
from twctl.linux.netfilter import RuleNotices
from twctl.modes.obstacles import Obstacle, PassedBy, obstacles

log = logging.getLogger("twctl")

# Each namespace is looked at this often, and one that has changed after so long (s).
LOOK_SECONDS, STEP_SECONDS = 10.0, 1.0
# With hundreds of namespaces a look takes this share of one CPU, and so more time.
SHARE = 0.005


@dataclasses.dataclass(slots=True)
class _Seen:
    """What is known of a namespace: what tells of changed rules, when to look again (monotonic), what was found."""

    rules: RuleNotices
    due: float
    passed_by: PassedBy
    found: list[Obstacle] = dataclasses.field(default_factory=list)


class Suspending:
    """Suspends the guard in a namespace that has an obstacle, and resumes it there when the last has gone."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._seen: dict[Namespace, _Seen] = {}

    def close(self) -> None:
        """Hear of no more changes."""
        for seen in self._seen.values():
            seen.rules.close()

    def found(self) -> Counter[str]:
        """How many obstacles of each kind there are in all namespaces. A scrape's thread asks, too."""
        joined = Counter(each.kind for seen in list(self._seen.values()) for each in seen.found)
        return joined + self._discovery.obstacles()

    def run(self) -> float:
        """Look at the namespace that has waited longest."""
        started = time.thread_time()
        self._follow(time.monotonic())
        first = min(self._seen, key=lambda each: self._seen[each].due, default=None)
        if first and self._seen[first].due <= time.monotonic():
            self._discovery.attend(first, self._look)
        return max(STEP_SECONDS, (time.thread_time() - started) / SHARE)

    def _follow(self, now: float) -> None:
        """Take note of those that came, have gone or have changed. Who comes was looked at, and may be suspended."""
        present = set(self._discovery.namespaces)
        for gone in self._seen.keys() - present:
            self._seen.pop(gone).rules.close()
        for new in present - self._seen.keys():
            due = now if new in self._discovery.namespaces.suspended else now + LOOK_SECONDS
            self._seen[new] = _Seen(RuleNotices(new.path), due, PassedBy(*self._discovery.namespaces.witnessed(new)))
        for namespace, seen in self._seen.items():
            if seen.rules.take() or (namespace.guard and namespace.guard.disturbed):
                seen.due = min(seen.due, now)
            if namespace.guard:
                namespace.guard.disturbed = False

    def _look(self, namespace: Namespace) -> None:
        namespaces, seen = self._discovery.namespaces, self._seen[namespace]
        seen.due = time.monotonic() + LOOK_SECONDS
        with contextlib.suppress(OSError):  # a device went while it was asked for
            seen.found = [*obstacles(namespace.path), *self._passed_by(namespace, seen)]
        if seen.found and namespace not in namespaces.suspended:
            tell_suspended(namespace.name, seen.found)
            for line in namespaces.suspend(namespace):
                log.warning("%s", line)
        elif not seen.found and namespace in namespaces.suspended:
            namespaces.resume(namespace)
            name = namespace.name or "(own)"
            log.info("network namespace %s: nothing is between wire and sockets any more, the guard goes on", name)
        elif not seen.found:
            namespaces.watch(namespace, guarded=True)

    def _passed_by(self, namespace: Namespace, seen: _Seen) -> list[Obstacle]:
        if namespace.guard and namespace.guard.witnessed:
            return list(seen.passed_by.look(*self._discovery.namespaces.witnessed(namespace)))
        seen.passed_by = PassedBy(*self._discovery.namespaces.witnessed(namespace))
        return []
