"""The dry run and the lay-out of `twctl status`, without a kernel; and the arithmetic of the derived counters."""

import dataclasses

from tests.table.test_records import IPV4
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.commands.status import Freed, freed, text
from twctl.linux.procfs import SocketBytes
from twctl.table.counters import ACTIONS, COUNTERS, LANES, TICK, Counters, Reason
from twctl.table.records import decode
from twctl.table.sums import Sums

TIMES = {Class.LOOPBACK: 2.0, Class.LOCAL: 10.0, Class.REMOTE: 60.0}
ONE = decode("ipv4", IPV4, class_=Class.LOCAL, expires_in=50, age=11, names={})


def test_truncate_frees_what_is_older_than_its_class_and_ports_that_nobody_else_holds() -> None:
    """Two old sessions on two ports; a young one keeps one of the ports."""
    other = dataclasses.replace(ONE, local_port=40001)
    young = dataclasses.replace(ONE, age=1.0, remote_port=1)
    size = SocketBytes(mini=256, port=256)
    assert {
        "truncate": Freed(sessions=2, ports=1, bytes=2 * 256 + 256),
        "vestigial": Freed(sessions=3, ports=2, bytes=3 * 256 + 2 * 256 - 3 * 32),
    } == freed([ONE, other, young], TIMES, range(32768, 61000), size)


def test_a_server_s_port_is_not_freed() -> None:
    """Only ephemeral ports are held by sessions alone."""
    server = dataclasses.replace(ONE, local_port=443)
    assert freed([server], TIMES, range(32768, 61000), SocketBytes(256, 256))["truncate"].ports == 0


def zeros() -> dict[str, list[int]]:
    """Counters of a table that has seen nothing."""
    return {name: [0] * _size(shape) for name, shape in COUNTERS.items()}


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for each in shape:
        size *= each
    return size


def sums(values: dict[str, list[int]], living: dict[tuple[Class, str, int], int]) -> Sums:
    """One moment."""
    cells = {(class_, family, lane): 0 for class_ in Class for family in FAMILIES for lane in range(LANES)}
    return Sums(Counters({name: tuple(numbers) for name, numbers in values.items()}), cells | living)


def test_what_expired_is_what_was_planned_less_the_withdrawn_and_the_living() -> None:
    """Of 101 planned lives 7 ended early and 23 go on: 71 expired, after the mean life of their lane."""
    values = zeros()
    at = Class.REMOTE * LANES + 5
    values["planned"][at], values["planned_ticks"][at], values["withdrawn"][at] = 101, 101 * 900, 7
    values["ended"][Class.REMOTE * len(Reason) + Reason.RESET] = 7
    values["lifetime"][Class.REMOTE * LANES + 1], values["lifetime_ticks"][Class.REMOTE] = 7, 70
    now = sums(values, {(Class.REMOTE, "ipv4", 5): 20, (Class.REMOTE, "ipv6", 5): 3})
    assert (71, 7, 0) == (
        now.ended(Class.REMOTE, Reason.EXPIRED),
        now.ended(Class.REMOTE, Reason.RESET),
        now.ended(Class.LOCAL, Reason.EXPIRED),
    )
    lanes, seconds = now.lifetimes(Class.REMOTE)
    assert ([0, 7, 0, 0, 0, 71, 0, 0], (71 * 900 + 70) * TICK) == (lanes, seconds)


def test_the_status_fits_80_columns() -> None:
    """Even with large numbers."""
    big = 4_194_304
    row = {"class": "loopback", "family": "ipv4", "sessions": big, "entered": 10**11, "adopted": big, "capacity": big}
    found = {
        "mode": "observe",
        "probe": "tracepoint",
        "daemon": False,
        "pins": "/sys/fs/bpf/twctl",
        "time_wait": dict.fromkeys((class_.label for class_ in Class), 999.5),
        "configuration": "of the next start: the daemon's own cannot be read",
        "classes": [row],
        "ended": {class_.label: {reason.name.lower(): 10**11 for reason in Reason} for class_ in Class},
        "closed_without_time_wait": {"passive": 10**9, "reset": 10**6, "abort": 10**6, "timeout": 10**4},
        "dropped": {"contention": 1},
        "sessions": big,
        "kernel_sockets": None,
        "table_bytes": 10**9,
        "blame_bytes": 10**6,
        "stock_bytes": 10**9,
        "guard": dict.fromkeys(ACTIONS, 10**9) | {"raced": 0},
        "would_free": {"truncate": {"sessions": big, "ports": 28232, "bytes": 10**9}},
    }
    lines = text(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert "LOST: contention 1" in lines
    assert any(line.startswith("guard: acknowledged 1000000000") for line in lines)
    assert not any("raced" in line for line in lines)
