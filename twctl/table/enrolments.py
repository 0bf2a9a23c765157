"""Which network namespaces the probes watch: each has an index, by which records name it."""

import contextlib
import os
import struct
import time
from struct import calcsize

from twctl.errors import TwctlError
from twctl.linux import libbpf, netns
from twctl.linux.tcp import KERNEL_TIME_WAIT
from twctl.table.layout import LATE_SECONDS, NAMESPACES
from twctl.table.maps import ENROLMENT, Table
from twctl.table.pinned import store
from twctl.table.shared import CONSTANTS, STRUCTS

NETNS_GUARDED, NETNS_TPROXY, NETNS_WITNESSED = (
    CONSTANTS[f"NETNS_{name}"] for name in ("GUARDED", "TPROXY", "WITNESSED")
)
WITNESS = STRUCTS["witness"]
# Longest life of a vestige that no guard has (s): TIME_WAIT, and what fentry waits for an end.
UNGUARDED_SECONDS = KERNEL_TIME_WAIT + LATE_SECONDS


def enrol(table: Table, index: int, cookie: int, name: str, flags: int = 0) -> None:
    """Have the probes watch a namespace under this index.

    flags: NETNS_GUARDED, its vestiges live as `lives` says; NETNS_TPROXY; NETNS_WITNESSED.
    """
    _write(table, index, cookie, 0, name)
    table.update("namespaces", struct.pack("=Q", cookie), struct.pack("=I", index | flags))


def withdraw(table: Table, index: int, cookie: int) -> None:
    """Have the probes no longer watch a namespace; its vestiges expire, and then its index is free."""
    fd = table.fd("namespaces")
    try:
        with contextlib.suppress(FileNotFoundError):
            libbpf.map_delete(fd, struct.pack("=Q", cookie))
    finally:
        os.close(fd)
    _write(table, index, 0, time.monotonic_ns(), "")


def _write(table: Table, index: int, cookie: int, left_ns: int, name: str) -> None:
    """A row. Who reads it meanwhile sees a free one: its cookie, which comes first, is written last."""
    rows, at, after = table.enrolment_rows, index * ENROLMENT.size, calcsize("Q")
    store(rows, at, "Q", 0)
    rows[at + after : at + ENROLMENT.size] = ENROLMENT.pack(0, left_ns, name.encode())[after:]
    store(rows, at, "Q", cookie)


def witnessed(table: Table, index: int) -> tuple[int, int, int]:
    """Sessions of a namespace whose FIN the guard has noted, and those where it has not (NETNS_WITNESSED).

    Then SYNs and FINs that it has seen, and had no memory to note.
    """
    memory = table.map("witnesses", WITNESS.size * NAMESPACES)
    noted, missed, unnoted = WITNESS.packer(("noted", "missed", "unnoted")).unpack_from(memory, index * WITNESS.size)
    return noted, missed, unnoted


def index_for(table: Table, cookie: int) -> int | None:
    """The index that a namespace has, or else a free one; None: there is none."""
    known = [index for index, (other, _) in table.enrolments().items() if other == cookie]
    return known[0] if known else free_index(table)


def free_index(table: Table) -> int | None:
    """The index that was given back longest ago, if all vestiges that have it are over; None: there is none."""
    over = time.monotonic_ns() - max(*table.lives, UNGUARDED_SECONDS * 10**9)
    rows = (ENROLMENT.unpack_from(table.enrolment_rows, i * ENROLMENT.size) for i in range(NAMESPACES))
    free = [(left, i) for i, (cookie, left, _) in enumerate(rows) if not cookie and (not left or left < over)]
    return min(free)[1] if free else None


def reachable(table: Table) -> dict[int, str]:
    """Index and name of the enrolled namespaces that this process can enter; some may be gone by now.

    :raises TwctlError: if all are, or the one that the daemon runs in is not ours.
    """
    found = {}
    for index, (cookie, name) in table.enrolments().items():
        here = netns.cookie(name or None) if not name or netns.inode(name) else None
        if here == cookie:
            found[index] = name
        elif not name:
            raise TwctlError("this is another network namespace than the daemon's", "run this there")
    if not found:
        raise TwctlError("none of the enrolled network namespaces is here", "run this where the daemon runs")
    return found
