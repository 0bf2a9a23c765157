"""Dry run of the modes that change something: what they would have freed by now."""

import dataclasses
from collections.abc import Iterable, Mapping

from twctl.addresses import Address
from twctl.classes import Class
from twctl.linux.procfs import SocketBytes
from twctl.linux.tcp import KERNEL_TIME_WAIT
from twctl.table.layout import RECORD_BYTES
from twctl.table.records import Vestige


@dataclasses.dataclass(frozen=True, slots=True)
class Freed:
    """Sessions, ephemeral ports and bytes of kernel memory that a mode would have freed by now."""

    sessions: int
    ports: int
    bytes: int


def freed(
    vestiges: Iterable[Vestige], time_wait: Mapping[Class, float], ports: range, size: SocketBytes
) -> dict[str, Freed]:
    """Dry run of the other modes over the live sessions.

    `truncate` frees a session once it is older than its class's time_wait (s). `vestigial` frees every session's
    socket and keeps its record. An ephemeral port counts as freed if no session that
    stays holds it on the same address.
    """
    old: set[tuple[Address, int]] = set()
    stay: set[tuple[Address, int]] = set()
    sessions = truncated = records = 0
    for vestige in vestiges:
        sessions += 1
        records += RECORD_BYTES[vestige.family]
        due = vestige.age >= min(time_wait[vestige.class_], KERNEL_TIME_WAIT)
        truncated += due
        if vestige.local_port in ports:
            (old if due else stay).add((vestige.local, vestige.local_port))
    every = old | stay
    return {
        "truncate": Freed(truncated, len(old - stay), truncated * size.mini + len(old - stay) * size.port),
        "vestigial": Freed(sessions, len(every), sessions * size.mini + len(every) * size.port - records),
    }
