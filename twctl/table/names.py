"""What people call the parties that cause TIME_WAIT: systemd units, pods, cgroups, users, network namespaces."""

import functools
import pwd
import time
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from twctl.linux.cgroups import cgroup_paths, unit_of
from twctl.linux.pods import PodNames
from twctl.table.maps import Table
from twctl.table.tallies import OTHER, By, LocalPort, Owner, Party, Tally

# Between two walks through all cgroups; and these take at most this share of one CPU, however many there are.
CGROUPS_SECONDS, CGROUPS_SHARE = 10.0, 0.005
# A cgroup whose name is not found in so many walks is gone, or is not shown here. The second one finds the container's
# name, which the kubelet writes down a moment after the start.
WALKS = 2


class Names:
    """What people call the parties: cgroups and namespaces, looked up once, and again when asked to.

    What has gone keeps its name for as long as somebody asks for it.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._cgroups: dict[int, str] = {}
        self._pods = PodNames()
        self._walks: Counter[int] = Counter()
        self._learn_namespaces()
        self._learn_cgroups(())

    def _learn_namespaces(self) -> None:
        self._namespaces = {index: name for index, (_, name) in self._table.enrolments().items()}

    def _learn_cgroups(self, asked: Collection[int]) -> None:
        began = time.thread_time()
        kept = {number: path for number, path in self._cgroups.items() if number in asked}
        self._cgroups = kept | cgroup_paths()
        self._pods.learn(kept.values())
        self._walks.update(asked)
        self._next = time.monotonic() + max(CGROUPS_SECONDS, (time.thread_time() - began) / CGROUPS_SHARE)

    def update(self, parties: Iterable[Party]) -> None:
        """Learn what is new. Cgroups only where one of these has no name yet, and not all the time."""
        self._learn_namespaces()
        asked = {party.cgroup for party in parties if isinstance(party, Owner) and party != OTHER and party.cgroup}
        self._walks = Counter({number: self._walks[number] for number in asked})
        if time.monotonic() >= self._next and any(not self._is_settled(number) for number in asked):
            self._learn_cgroups(asked)

    def _is_settled(self, cgroup: int) -> bool:
        path = self._cgroups.get(cgroup)
        return self._walks[cgroup] >= WALKS or (path is not None and self._pods.is_settled(path))

    def row(self, by: By, tally: Tally) -> dict[str, Any]:
        """Plain values of a tally, as `twctl blame --json` prints them."""
        numbers = {name: getattr(tally, name) for name in ("sessions", "entered", "error", "no_port")}
        return {"by": by.value, **self._names(tally.party), **numbers}

    def _names(self, party: Party) -> dict[str, Any]:
        if isinstance(party, Owner):
            return {"owner": self.owner(party), "cgroup": self._cgroups.get(party.cgroup or 0), "uid": party.uid}
        where = {"netns": self._namespaces.get(party.netns, f"#{party.netns}")}
        if isinstance(party, LocalPort):
            return {"local_port": party.port, **where}
        return {"remote": str(party.address), "remote_port": party.port, **where}

    def owner(self, owner: Owner) -> str:
        """Namespace, pod and container, or the systemd unit, or the cgroup's path, or its number."""
        if owner.cgroup is None:
            return "unknown"
        if owner == OTHER:
            return "other"
        path = self._cgroups.get(owner.cgroup)
        if path is None:
            return f"cgroup {owner.cgroup}"  # gone, or of a hierarchy that is not shown here
        return self._pods.name(path) or unit_of(path)


@functools.lru_cache
def user_name(uid: int | None) -> str:
    """The user's name; the number where it has none, "-" where it is not known."""
    if uid is None:
        return "-"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
