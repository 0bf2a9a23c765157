"""The lay-out of `twctl status`, without a kernel."""

from twctl.classes import Class
from twctl.commands.status import text
from twctl.table.counters import ACTIONS, CLOSES, Reason


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
        "unknown": "this is another network namespace than the daemon's (run this there)",
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
    assert "unknown: this is another network namespace than the daemon's (run this there)" in lines
    assert max(map(len, lines)) <= 80
    assert "LOST: contention 1" in lines
    assert any(line.startswith("guard: acknowledged 1000000000") for line in lines)
    assert not any("raced" in line for line in lines)
    assert 1 == "\n".join(lines).count("net.ipv4.tcp_max_tw_buckets")
    freed = {"truncate": {"sessions": big, "ports": None, "bytes": 10**9}}
    lines = text(found | {"sysctls": None, "would_free": freed}).splitlines()
    assert "sysctls unknown" in lines
    assert ["truncate", str(big), "unknown"] in [line.split()[:3] for line in lines]
