"""Namespaces come and go while the daemon runs: those it is to work in join when they get a name, and leave with it."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from twctl import netns
from twctl.config import Config
from twctl.errors import TwctlError
from twctl.members import FullError, Member, Members, refuse_obstacles

log = logging.getLogger("twctl")

# Mounts tell when a namespace gets or loses its name; this often the names are looked at all the same. s
LOOK_SECONDS = 10.0
# What could not join is tried again, and what has joined is looked at for new obstacles, this often. s
AGAIN_SECONDS = 300.0
# The first time sooner: who makes a pod gives it its NAT and its devices once it has its namespace. s
SETTLED_SECONDS = 30.0
# A host that starts has hundreds of new namespaces at once: so many join, 0.1 s of work, before others have their turn.
AT_ONCE = 16

Place = tuple[str | None, int]  # name and inode: the same name may be given to another namespace


class Follower:
    """Has namespaces join and leave: those that the configuration names, or our own; or our own and all with a name.

    In the last case (all_netns) what goes wrong in one namespace is that one's matter: it is said once, and the
    namespace left alone. Those that are named have to join at the start, and what goes wrong there later ends the
    daemon, but not that a name goes.

    joined: called with new members, not with those of the start.
    """

    def __init__(self, members: Members, config: Config) -> None:
        self.members = members
        self._config, self._names, self._every = config, config.netns, config.all_netns
        self._mounts = netns.Mounts()
        self._refused: dict[Place, tuple[Exception, float]] = {}  # why, and when to try again (monotonic)
        self._settled: dict[Place, float] = {}  # when to look for obstacles (monotonic)
        self.joined: Callable[[Sequence[Member]], None] = lambda _: None

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
        except TwctlError:
            self.members.give_up()
            raise
        for line in self.members.keep({member.cookie for member in self.members}):
            log.warning("%s", line)

    def states(self) -> dict[str, int]:
        """How many namespaces are in which state."""
        errors = [error for error, _ in list(self._refused.values())]
        full = sum(isinstance(error, FullError) for error in errors)
        return {"enrolled": len(list(self.members)), "refused": len(errors) - full, "beyond_capacity": full}

    def attend(self, member: Member, work: Callable[[Member], None]) -> None:
        """Do some work in a member. Raises TwctlError, if that one has to go on."""
        try:
            work(member)
        except TwctlError as error:
            self._failed(member, error)

    def fileno(self) -> int:
        """Readable when names may have come or gone."""
        return self._mounts.fileno()

    def drain(self) -> None:
        """Have those join and leave that have come and gone."""
        self._mounts.drain()
        self._look()

    def run(self) -> float:
        """Look at the names and, with `every`, for obstacles; returns seconds until the next time."""
        more = self._look()
        if self._every:
            self._look_for_obstacles()
        return 0.0 if more else LOOK_SECONDS

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
        for member in self.members:
            if wanted.get(member.name) != member.inode:
                self._leave(member)
                log.info("left network namespace %s: it is gone", member.name)
        self._refused = {place: why for place, why in self._refused.items() if wanted.get(place[0]) == place[1]}
        known = {member.name for member in self.members}
        later = {name for (name, _), (_, again) in self._refused.items() if again > now}
        new = [name for name in wanted if name not in known | later]
        joined = [member for member in (self._join(name, strict=False) for name in new[:AT_ONCE]) if member]
        if joined:
            log.info("joined network namespaces: %s", ", ".join(member.name or "(own)" for member in joined))
            self.joined(joined)
        return len(new) > AT_ONCE

    def _join(self, name: str | None, *, strict: bool) -> Member | None:
        place = name, netns.inode(name)
        try:
            if not strict:
                refuse_obstacles(name, self._config)
            member = self.members.join(name)
        except (TwctlError, OSError) as error:
            if strict:
                raise
            self._refuse(place, error)
            return None
        self._refused.pop(place, None)
        self._settled[place] = time.monotonic() + SETTLED_SECONDS
        return member

    def _leave(self, member: Member) -> None:
        self._settled.pop((member.name, member.inode), None)
        for line in self.members.leave(member):
            log.warning("%s", line)

    def _refuse(self, place: Place, error: Exception) -> None:
        """Say why, once; of all for which there is no room, once."""
        full = isinstance(error, FullError)
        before = [str(each) for where, (each, _) in self._refused.items() if full or where == place]
        if str(error) not in before:
            log.warning("network namespace %s is left alone: %s", place[0] or "(own)", error)
        self._refused[place] = (error, time.monotonic() + (LOOK_SECONDS if full else AGAIN_SECONDS))

    def _failed(self, member: Member, error: TwctlError) -> None:
        """What goes wrong in a member. Raises it again, where that one had to join."""
        if not self._every:
            raise error
        self._leave(member)
        self._refuse((member.name, member.inode), error)

    def _look_for_obstacles(self) -> None:
        now = time.monotonic()
        due = [member for member in self.members if self._settled[member.name, member.inode] <= now]
        for member in due[:AT_ONCE]:
            self._settled[member.name, member.inode] = now + AGAIN_SECONDS
            self.attend(member, lambda member: refuse_obstacles(member.name, self._config))
