"""Ways in which a host can treat TIME_WAIT, to be measured in turn, each on a link of its own.

So what else the machine does meets all of them alike, and a ratio is one of runs that followed each other.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.load.closes import run as closes
from tests.load.closes import serving
from tests.load.daemon import Daemon, daemon
from tests.load.netns import Link, Namespace, link

REUSE, DELAY = "net.ipv4.tcp_tw_reuse", "net.ipv4.tcp_tw_reuse_delay"
BUCKETS, PORTS = "net.ipv4.tcp_max_tw_buckets", "net.ipv4.ip_local_port_range"
STOCK, REUSED, NONE, OURS = "stock", "tcp_tw_reuse=1", "no TIME_WAIT", "vestigial"
# What somebody who knows the kernel sets: a port is free again after 1 ms, instead of 1 s.
EXPERT = "tcp_tw_reuse=1 with tcp_tw_reuse_delay=1"
# What is set in both namespaces.
WAYS: dict[str, Mapping[str, object]] = {
    STOCK: {},
    REUSED: {REUSE: 1},
    EXPERT: {REUSE: 1, DELAY: 1},
    NONE: {BUCKETS: 0},
    OURS: {},
}
PORT_NUMBERS = range(32768, 61000)  # Linux's own default
NUMBER_OF_PORTS = len(PORT_NUMBERS)
# A Service as kube-proxy writes it, and the host's own masquerade behind it as Docker does.
SERVICE = "10.96.0.1"
SERVICE_RULES = """
table ip nat {{
  chain output {{ type nat hook output priority -100; ip daddr {service} tcp dport {port} dnat to {server}:{port}; }}
  chain postrouting {{ type nat hook postrouting priority srcnat; ip daddr {server} masquerade; }}
}}
"""
DEFAULTS = {"net.ipv4.tcp_rfc1337": 1, PORTS: f"{PORT_NUMBERS[0]} {PORT_NUMBERS[-1]}"}


def has_delay(proc: Path = Path("/proc/sys")) -> bool:
    """Whether the kernel has what EXPERT sets."""
    return (proc / DELAY.replace(".", "/")).exists()


def possible(names: Sequence[str]) -> list[str]:
    """Those of the ways that this kernel has."""
    return [name for name in names if name != EXPERT or has_delay()]


def left_out(names: Sequence[str]) -> dict[str, Any]:
    """A result that says which way was not measured, and why; nothing if all were."""
    if set(possible(names)) == set(names):
        return {}
    return {f"against {EXPERT}": {"skipped": f"Linux {os.uname().release} has no tcp_tw_reuse_delay (6.14 has)"}}


@dataclass(frozen=True)
class Place:
    """A way and its link. closer: which end closes first, and so has the guard in mode vestigial.

    address: that the client connects to; empty: the server's own.
    """

    name: str
    both: Link
    closer: str = "client"
    address: str = ""

    def behind_a_service(self) -> "Place":
        """The client connects to a Service from now on; its host translates both addresses."""
        rules = SERVICE_RULES.format(service=SERVICE, server=self.both.server_ipv4, port=20000)
        subprocess.run(self.both.client.command("nft", rules), check=True)
        self.both.client.ip("route", "add", SERVICE, "dev", self.both.device)
        return replace(self, address=SERVICE)

    @contextmanager
    def watched(self, config: str = "") -> Iterator[Daemon | None]:
        """The daemon works, if this way has one; not longer, for its probes see the closes of every namespace."""
        if self.name != OURS:
            yield None
            return
        guarded: Namespace = getattr(self.both, self.closer)
        with daemon(guarded, mode="vestigial", config=config) as one:
            yield one

    @contextmanager
    def serving(self, *options: str) -> Iterator[None]:
        """The server half."""
        with serving(self.both.server, "--address", self.both.server_ipv4, *options):
            yield

    def closes(self, *options: str, timeout: float = 120) -> dict[str, Any]:
        """One run of the client half toward the server, behind it where they share a CPU.

        A server that has its own keeps up. One that does not holds clients up: in FIN_WAIT2 their ports stay taken.
        """
        address = ("--connect", "--address", self.address or self.both.server_ipv4)
        return closes(self.both.client, *address, *options, timeout=timeout, niceness=10)


@contextmanager
def place(name: str, sysctls: Mapping[str, object] | None = None, closer: str = "client") -> Iterator[Place]:
    """A link of this way."""
    with link({**DEFAULTS, **WAYS[name], **(sysctls or {})}) as both:
        yield Place(name, both, closer)


def taking_turns(
    names: Sequence[str], rounds: int, sysctls: Mapping[str, object] | None = None, closer: str = "client"
) -> Iterator[Place]:
    """Every way that this kernel has once in each round, another one first each time; without sessions of before."""
    here = possible(names)
    for turn in range(rounds):
        first = turn % len(here)
        for name in (*here[first:], *here[:first]):
            with place(name, sysctls, closer) as each:
                yield each
