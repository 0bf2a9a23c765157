"""Namespaces come and go while the daemon runs: those it is to work in join when they get a name, and leave with it."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from twctl.config.config import Config
from twctl.config.keys import Mode
from twctl.daemon.namespace import Namespace
from twctl.daemon.namespaces import FullError, Namespaces
from twctl.errors import TwctlError
from twctl.linux import netns
from twctl.modes.obstacles import Obstacle, obstacles

log = logging.getLogger("twctl")

# Mounts tell when a namespace gets or loses its name; this often the names are looked at all the same. s
LOOK_SECONDS = 10.0
# What could not join is tried again this often; where only room or a look at obstacles decides, each time names are
# looked at, but with many of them no more than one in so long. s
AGAIN_SECONDS, EACH_SECONDS = 300.0, 1.0
# A host that starts has hundreds of new namespaces at once: so many join, 0.1 s of work, before others have their turn.
AT_ONCE = 16

Place = tuple[str | None, int]  # name and inode: the same name may be given to another namespace


class ObstaclesError(TwctlError):
    """The guard has no business in a namespace as long as something is between wire and sockets there: `found`."""

    def __init__(self, found: Sequence[Obstacle]) -> None:
        super().__init__(_texts(found), "remove it, or give --force if you know")
        self.found = found


class Discovery:
    """Has namespaces join and leave: those that the configuration names, or our own; or our own and all with a name.

    In the last case (all_netns) what goes wrong in one namespace is that one's matter: it is said once, and the
    namespace left alone, but for a guard that is there until its last vestige is over. Those that are named have to
    join at the start, and what goes wrong there later ends the daemon, but not that a name goes.

    joined: called with new namespaces, not with those of the start. follows_names: bool, whether any can come or go.
    """

    def __init__(self, namespaces: Namespaces, config: Config, joined: Callable[[Sequence[Namespace]], None]) -> None:
        self.namespaces = namespaces
        self._names, self._every = config.netns, config.all_netns
        self._minds_obstacles = config.mode is Mode.VESTIGIAL and not config.force
        self.follows_names = bool(config.netns or config.all_netns)
        self._mounts = netns.Mounts()
        self._refused: dict[Place, tuple[Exception, float]] = {}  # why, and when to try again (monotonic)
        self._left_until = math.inf  # when the last vestige of those that had to be left alone is over (monotonic)
        self._joined = joined

    def close(self) -> None:
        """Follow no more."""
        self._mounts.close()

    def start(self) -> None:
        """Have all join that are there, and give up what an earlier daemon did elsewhere.

        :raises TwctlError: if one that has to join cannot; then no guard is left that was not there before.
        """
        try:
            for name in self._wanted() if self._every else self._names or (None,):
                self._join(name, strict=not self._every)
            left = self.namespaces.keep({inode for _, inode in self._refused})
        except (TwctlError, OSError):
            self.namespaces.give_up()
            raise
        for line in left:
            log.warning("%s", line)
        if self._refused:
            self._left_until = time.monotonic() + self.namespaces.longest_life()

    def states(self) -> dict[str, int]:
        """How many namespaces are in which state."""
        errors = [error for error, _ in list(self._refused.values())]
        full = sum(isinstance(error, FullError) for error in errors)
        return {"enrolled": len(list(self.namespaces)), "refused": len(errors) - full, "beyond_capacity": full}

    def obstacles(self) -> Counter[str]:
        """How many of each kind there are in those that were left alone for them. A scrape's thread asks, too."""
        errors = [error for error, _ in list(self._refused.values())]
        return Counter(each.kind for error in errors if isinstance(error, ObstaclesError) for each in error.found)

    def attend(self, namespace: Namespace, work: Callable[[Namespace], None]) -> None:
        """Do some work in a namespace. Raises TwctlError, if that one has to go on."""
        try:
            work(namespace)
        except TwctlError as error:
            self._failed(namespace, error)

    def fileno(self) -> int:
        """Readable when names may have come or gone."""
        return self._mounts.fileno()

    def handle(self, _: float) -> None:
        """Have those join and leave that have come and gone."""
        self._mounts.clear()
        self._look()

    def run(self) -> float:
        """Look at the names; returns seconds until the next time."""
        if time.monotonic() > self._left_until:
            self._left_until = math.inf
            self._give_up_left()
        return 0.0 if self._look() else LOOK_SECONDS

    def _wanted(self) -> Mapping[str | None, int]:
        """Which there are, and their inodes."""
        own: dict[str | None, int] = {None: netns.inode(None)}
        if self._every:
            return own | netns.present()
        if not self._names:
            return own
        return {name: inode for name in self._names if (inode := netns.inode(name))}

    def _look(self) -> bool:
        """Have some join and leave; True if there are more."""
        wanted, now = self._wanted(), time.monotonic()
        for namespace in self.namespaces:
            if wanted.get(namespace.name) != namespace.inode:
                self._leave(namespace)
                log.info("left network namespace %s: it is gone", namespace.name)
        self._refused = {place: why for place, why in self._refused.items() if wanted.get(place[0]) == place[1]}
        known = {namespace.name for namespace in self.namespaces}
        later = {name for (name, _), (_, again) in self._refused.items() if again > now}
        new = [name for name in wanted if name not in known | later]
        joined = [namespace for namespace in (self._join(name, strict=False) for name in new[:AT_ONCE]) if namespace]
        if joined:
            log.info("joined network namespaces: %s", ", ".join(namespace.name or "(own)" for namespace in joined))
            self._joined(joined)
        return len(new) > AT_ONCE

    def _join(self, name: str | None, *, strict: bool) -> Namespace | None:
        try:
            found = [] if strict else self._obstacles(name)
            namespace = self.namespaces.join(name, suspended=bool(found))
        except (TwctlError, OSError) as error:
            if strict:
                raise
            self._refuse((name, netns.inode(name)), error)
            return None
        self._refused.pop((name, namespace.inode), None)
        if found:
            tell_suspended(name, found)
        return namespace

    def _obstacles(self, name: str | None) -> list[Obstacle]:
        """Why the guard is to be suspended in one that joins.

        :raises ObstaclesError: if it cannot have vestiges there yet: then it is not even put there.
        """
        found = list(obstacles(name)) if self._minds_obstacles else []
        if found and not self.namespaces.is_enrolled(name):
            raise ObstaclesError(found)
        return found

    def _leave(self, namespace: Namespace, *, stays: bool = False) -> None:
        for line in self.namespaces.leave(namespace, stays=stays):
            log.warning("%s", line)

    def _give_up_left(self) -> None:
        try:
            left = self.namespaces.keep()
        except (TwctlError, OSError) as error:  # somewhere TIME_WAIT sockets cannot be had back, and the guard stays
            left, self._left_until = [str(error)], time.monotonic() + AGAIN_SECONDS
        for line in left:
            log.warning("%s", line)

    def _refuse(self, place: Place, error: Exception) -> None:
        """Say why, once; of all for which there is no room, once."""
        full = isinstance(error, FullError)
        before = [_reason(each) for where, (each, _) in self._refused.items() if full or where == place]
        if _reason(error) not in before:
            log.warning("network namespace %s is left alone: %s", place[0] or "(own)", error)
        soon = max(LOOK_SECONDS, len(self._refused) * EACH_SECONDS)
        again = soon if isinstance(error, FullError | ObstaclesError) else AGAIN_SECONDS
        self._refused[place] = (error, time.monotonic() + again)

    def _failed(self, namespace: Namespace, error: TwctlError) -> None:
        """What goes wrong in a namespace. Raises it again, where that one had to join."""
        if not self._every:
            raise error
        self._leave(namespace, stays=namespace.guard is not None)
        self._left_until = time.monotonic() + self.namespaces.longest_life()
        self._refuse((namespace.name, namespace.inode), error)


def tell_suspended(name: str | None, found: Sequence[Obstacle]) -> None:
    """Say why the guard is suspended in a namespace."""
    line = "network namespace %s: until this is gone, TIME_WAIT is left to the kernel: %s"
    log.warning(line, name or "(own)", _texts(found))


def _reason(error: Exception) -> str:
    """What is said once: not how many there are of a kind of obstacles."""
    return " ".join(sorted({each.kind for each in error.found}) if isinstance(error, ObstaclesError) else [str(error)])


def _texts(found: Sequence[Obstacle]) -> str:
    return "; ".join(each.text for each in found)


class FollowingNamespaces:
    """A source of the loop: keeps classes and guard of each namespace as its routes and devices say."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery

    def fileno(self) -> int:
        """Readable when routes or devices of a namespace have changed."""
        return self._discovery.namespaces.fileno()

    def handle(self, since: float) -> None:
        """Follow in each namespace that has changed."""
        for namespace in self._discovery.namespaces.changed():
            self._discovery.attend(namespace, lambda namespace: namespace.follow(since))
