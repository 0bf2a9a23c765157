"""What people call the parties that cause TIME_WAIT: systemd units, cgroups, users, network namespaces."""

import functools
import pwd
import time
from collections.abc import Iterable
from typing import Any

from twctl.linux.cgroups import cgroup_paths, unit_of
from twctl.table.maps import Table
from twctl.table.tallies import OTHER, By, LocalPort, Owner, Party, Tally

CGROUPS_SECONDS = 10.0  # between two walks through all cgroups


class Names:
    """What people call the parties: cgroups and namespaces, looked up once, and again when asked to."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._learn_namespaces()
        self._learn_cgroups()

    def _learn_namespaces(self) -> None:
        self._namespaces = {index: name for index, (_, name) in self._table.enrolments().items()}

    def _learn_cgroups(self) -> None:
        self._cgroups, self._learned = cgroup_paths(), time.monotonic()

    def update(self, parties: Iterable[Party]) -> None:
        """Learn what is new. Cgroups only where one of these has no name, and not all the time: some are gone."""
        self._learn_namespaces()
        cgroups = {party.cgroup for party in parties if isinstance(party, Owner) and party != OTHER and party.cgroup}
        if cgroups - self._cgroups.keys() and time.monotonic() - self._learned > CGROUPS_SECONDS:
            self._learn_cgroups()

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
        """The systemd unit, or the cgroup's path, or its number."""
        if owner.cgroup is None:
            return "unknown"
        if owner == OTHER:
            return "other"
        path = self._cgroups.get(owner.cgroup)
        return unit_of(path) if path else f"cgroup {owner.cgroup}"  # gone, or of a hierarchy that is not shown here


@functools.lru_cache
def user_name(uid: int | None) -> str:
    """The user's name; the number where it has none, "-" where it is not known."""
    if uid is None:
        return "-"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
