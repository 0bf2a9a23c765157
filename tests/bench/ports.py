"""What the daemon's look at the ports costs: CPU and peak memory with [blame] destinations = 5 against 0.

Two daemons watch the same namespace in the same run, so both see the same closes. With many sockets toward one
destination a look takes longest: then the next has to come later.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.daemon import ROOMY, SOURCES, cpu_seconds
from tests.load.closes import run as closes
from tests.load.closes import serving
from tests.load.daemon import Daemon, daemon
from tests.load.netns import Namespace, link, namespace

RATE, SECONDS = 10_000, 60
# As many local addresses as it takes ports for so many sessions toward one destination.
MANY = 600_000
ONE_DESTINATION = ("--inline", "--threads", "1", "--port", "20000", "--source", "127.0.1.1+64")
AFTERWARDS = 45.0  # s, less than TIME_WAIT lasts
SHARE, MEGABYTES = 0.01, 5.0  # goals


def run(*, short: bool = False) -> dict[str, Any]:
    """What destinations = 5 takes more than 0."""
    if short:
        return {f"the look at the ports at {RATE:,} closes a second, loopback": _on_loopback(12)}
    seconds, many = SECONDS, MANY
    return {
        f"the look at the ports at {RATE:,} closes a second, loopback": _on_loopback(seconds),
        f"the look at the ports at {RATE:,} closes a second, over a link": _over_a_link(seconds),
        f"the look at the ports, {many:,} sessions toward one destination": _toward_one(many, AFTERWARDS),
    }


@contextlib.contextmanager
def two_daemons(ns: Namespace) -> Iterator[tuple[Daemon, Daemon]]:
    """One that looks at the ports, and one that does not; a link's sessions are local."""
    # Comparisons with the kernel's list would take time of their own, at other moments in either daemon.
    config = (
        "reconcile_interval = 0\n[blame]\ndestinations = {}\n[capacity.ipv4]\nloopback = 2097152\nlocal = 2097152\n"
    )
    with daemon(ns, config=config.format(5)) as one, daemon(ns, config=config.format(0)) as other:
        yield one, other


class Costs:
    """CPU time of a daemon since a moment, and its resident memory."""

    def __init__(self, one: Daemon) -> None:
        self._one, self._cpu, self._began = one, cpu_seconds(one), time.monotonic()

    def share(self) -> float:
        """Of one CPU."""
        return (cpu_seconds(self._one) - self._cpu) / (time.monotonic() - self._began)

    def megabytes(self) -> float:
        """The most so far; what is mapped of the table counts, too."""
        assert self._one.process
        rows = Path(f"/proc/{self._one.process.pid}/status").read_text().splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith("VmHWM:")) / 1024


def _figures(looking: Costs, other: Costs, one: Daemon) -> dict[str, Any]:
    share, without = looking.share(), other.share()
    memory, memory_without = looking.megabytes(), other.megabytes()
    return {
        "share of a CPU": round(share, 4),
        "without": round(without, 4),
        "more": round(share - without, 4),
        "MB": round(memory, 1),
        "MB without": round(memory_without, 1),
        "highest ratio": round(max(_ratios(one), default=0.0), 3),
        "goal": f"{SHARE} and {MEGABYTES} MB more",
        "met": share - without <= SHARE and memory - memory_without <= MEGABYTES,
    }


def _ratios(one: Daemon) -> list[float]:
    rows = one.metrics().items()
    return [value for name, value in rows if name.startswith("twctl_ephemeral_ports_used_ratio{")]


def _on_loopback(seconds: int) -> dict[str, Any]:
    with namespace(ROOMY) as ns, two_daemons(ns) as (one, other):
        costs = Costs(one), Costs(other)
        closes(ns, "--seconds", str(seconds), "--rate", str(RATE), "--close", "client", *SOURCES, timeout=seconds + 60)
        return _figures(*costs, one)


def _over_a_link(seconds: int) -> dict[str, Any]:
    """Toward 32 ports of the server: a client that has one address would have used up the ports toward one in 3 s."""
    with link(ROOMY) as both, two_daemons(both.client) as (one, other):
        options = ("--close", "client", "--address", both.server_ipv4, "--port", "20000-20031")
        with serving(both.server, *options):
            costs = Costs(one), Costs(other)
            load = ("--connect", "--seconds", str(seconds), "--rate", str(RATE), *options)
            closes(both.client, *load, timeout=seconds + 60)
            return _figures(*costs, one)


def _toward_one(count: int, seconds: float) -> dict[str, Any]:
    with namespace(ROOMY | {"net.ipv4.tcp_tw_reuse": 0}) as ns, two_daemons(ns) as (one, other):
        closes(ns, "--count", str(count), "--close", "client", *ONE_DESTINATION, timeout=240)
        costs = Costs(one), Costs(other)
        time.sleep(seconds)
        return _figures(*costs, one)
