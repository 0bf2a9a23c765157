"""While it is measured how long connect() looks for a local port: a program at the root cgroup.

It goes with whoever attached it, for its link has no pin: a crash leaves nothing of it.
"""

import os
import struct
import time
from typing import Self

from twctl.errors import TwctlError
from twctl.linux.cgroups import root_cgroup
from twctl.table.connects import CONNECTS, SEARCHED, SEARCHING
from twctl.table.maps import Table
from twctl.table.records import TICK_SHIFT

# Longer than a search takes: so much longer than searches begin their ends are waited for (s).
LINGER = 0.1


class Searching:
    """Measures while its block lasts, or from begin() to end().

    :raises TwctlError: where this host does not let it, with what would help.
    """

    def __init__(self, table: Table) -> None:
        found = root_cgroup()
        if not table.has(CONNECTS):
            raise TwctlError("the table was loaded without it", "set [connect] port_search")
        if found is None:
            hint = "mount one; into a container, the host's /sys/fs/cgroup"
            raise TwctlError("no mount of cgroup v2 shows its root", hint)
        self._table, self._cgroup, self._link = table, found, -1

    def begin(self, seconds: float) -> None:
        """Have searches measured that begin within so many seconds from now. Raises TwctlError, as the class."""
        if self._link < 0:
            try:
                self._link = self._table.attach(SEARCHED, self._cgroup)
            except OSError as error:
                hint = "another program there may want to be alone: bpftool cgroup tree"
                raise TwctlError(f"no program can be attached to {self._cgroup}: {error.strerror}", hint) from error
        until = time.monotonic_ns() + int(seconds * 1e9) >> TICK_SHIFT
        self._table.update(SEARCHING, bytes(4), struct.pack("=Q", until))

    def end(self) -> None:
        """Take it away."""
        if self._link >= 0:
            os.close(self._link)
            self._link = -1

    def __enter__(self) -> Self:
        self.begin(60.0)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
