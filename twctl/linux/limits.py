"""Limits of the kernel's that TIME_WAIT and its ports can meet in a network namespace, and how near they are."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from twctl.linux.netns import inside
from twctl.linux.procfs import EntryCount, Sockstat

SYSCTLS = Path("/proc/sys/net")


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Numbers of one namespace; None: not shown there.

    overflow: sessions that max_tw_buckets has kept out of TIME_WAIT (TCPTimeWaitOverflow); timestamps: tcp_timestamps;
    tw_reuse: tcp_tw_reuse, and tw_reuse_delay (s); port_step: ip_local_port_step_width (Linux 7.1); orphans,
    max_orphans: of the whole host; conntrack: connections that conntrack remembers, of at most conntrack_max, each for
    conntrack_time_wait (s) after it was closed.
    """

    time_wait: int
    max_tw_buckets: int
    overflow: int
    timestamps: int
    tw_reuse: int
    tw_reuse_delay: float
    port_step: int | None
    orphans: int
    max_orphans: int | None
    conntrack: int | None
    conntrack_max: int | None
    conntrack_time_wait: int | None


def limits(netns: str | None) -> Limits:
    """Read them all.

    :raises TwctlError: if the namespace cannot be entered.
    """
    with contextlib.closing(Sockstat(netns)) as sockets, contextlib.closing(EntryCount(netns)) as entries:
        counted = {
            "time_wait": sockets.time_wait(),
            "orphans": sockets.orphans(),
            "overflow": entries.overflow(),
        }
    return Limits(**counted, **inside(netns, _sysctls))


def _sysctls() -> dict[str, Any]:
    delay = _sysctl("ipv4/tcp_tw_reuse_delay")
    return {
        "max_tw_buckets": _sysctl("ipv4/tcp_max_tw_buckets") or 0,
        "timestamps": _sysctl("ipv4/tcp_timestamps") or 0,
        "tw_reuse": _sysctl("ipv4/tcp_tw_reuse") or 0,
        "tw_reuse_delay": 1.0 if delay is None else delay / 1000,  # before Linux 6.14 always 1 s
        "port_step": _sysctl("ipv4/ip_local_port_step_width"),
        "max_orphans": _sysctl("ipv4/tcp_max_orphans"),
        "conntrack": _sysctl("netfilter/nf_conntrack_count"),
        "conntrack_max": _sysctl("netfilter/nf_conntrack_max"),
        "conntrack_time_wait": _sysctl("netfilter/nf_conntrack_tcp_timeout_time_wait"),
    }


def _sysctl(name: str) -> int | None:
    """One of net/; None where the kernel or the namespace has none of this name."""
    file = SYSCTLS / name
    return int(file.read_text()) if file.exists() else None
