"""The dry run and the lay-out of `twctl status`, without a kernel."""

import dataclasses

from tests.table.test_records import IPV4
from twctl.classes import Class
from twctl.commands.status import Freed, freed, text
from twctl.linux.procfs import SocketBytes
from twctl.table.counters import ACTIONS, CLOSES, Reason
from twctl.table.records import decode

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
        "closed_without_time_wait": dict(zip(CLOSES, (10**9, 10**6, 10**6, 10**4, 10**4), strict=True)),
        "dropped": {"contention": 1},
        "sessions": big,
        "kernel_sockets": None,
        "table_bytes": 10**9,
        "blame_bytes": 10**6,
        "stock_bytes": 10**9,
        "guard": dict.fromkeys(ACTIONS, 10**9) | {"raced": 0},
        "sysctls": [
            {"netns": netns, "name": name, "before": 2**31 - 1, "now": 2**31 - 1, "written": 0}
            for name in ("net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_max_tw_buckets")
            for netns in (None, "blue")
        ],
        "would_free": {"truncate": {"sessions": big, "ports": 28232, "bytes": 10**9}},
    }
    lines = text(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert "LOST: contention 1" in lines
    assert any(line.startswith("guard: acknowledged 1000000000") for line in lines)
    assert not any("raced" in line for line in lines)
    assert 1 == "\n".join(lines).count("net.ipv4.tcp_max_tw_buckets")
