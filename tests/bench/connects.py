"""What it costs to measure connect()'s search for a port: calls while it is, in between, and without it, in turn.

A connect() over lo that is refused at once is the shortest there is: what is added shows best there. The tracepoint's
probes are attached in any case, so the difference is all that the measuring costs: the look at the event to SYN_SENT,
the program at the cgroup, and the calls that the kernel makes of that for other things. What is accepted has as many.

As root, `python -m tests.bench.connects [--short]` runs it alone.
"""

import contextlib
import ctypes
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.account import Spent, Stopwatch, fdinfo
from tests.bench.blame import statistics_enabled
from tests.load.netns import Namespace, namespace
from tests.load.programs import set_up
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.config.keys import KEYS
from twctl.daemon.searches import SECONDS
from twctl.linux import btf, libbpf, netns
from twctl.linux.cgroups import root_cgroup
from twctl.modes.searching import LINGER
from twctl.table import fields
from twctl.table.compiled import AGAIN, STATE_EVENT, Probes
from twctl.table.connects import SEARCHED, SEARCHING
from twctl.table.layout import Layout
from twctl.table.sources import compile_flags

ROUNDS, CALLS = 101, 2003
CLOSED = 9  # a port on which nobody listens
GOAL = 100  # ns
RUNS = 4  # of the program for a connect(); what else the machine connects runs it, too
FOR_EVER = (1 << 62).to_bytes(8, sys.byteorder)  # a tick that never comes


class Attachable:
    """The tracepoint's probes, loaded, and with `searches` what measures them."""

    def __init__(self, cookie: int, *, searches: bool) -> None:
        with contextlib.closing(btf.Btf()) as types:
            layout = Layout({family: dict.fromkeys(Class, 256) for family in FAMILIES})
            flags = compile_flags(layout, fields.macros(types))
        self._probes = Probes(flags, "tracepoint", searches=searches)
        maps = self._maps = self._probes.maps()
        set_up(maps.__getitem__, layout)
        libbpf.map_update(maps["namespaces"], cookie.to_bytes(8, "little"), bytes(4))
        for fd in self._probes.links().values():
            os.close(fd)
        self._probes.bpf.raw_tracepoint_fds.clear()
        self.programs = self._probes.programs | self._probes.probes()

    @contextlib.contextmanager
    def attached(self, cgroup: Path | None = None) -> Iterator[None]:
        """As the loader does it; with a cgroup while searches are measured."""
        lib, event = libbpf.libbpf(), b"inet_sock_set_state"
        links = [lib.bpf_raw_tracepoint_open(event, self.programs[name]) for name in (STATE_EVENT.decode(), AGAIN)]
        if cgroup:
            folder = os.open(cgroup, os.O_RDONLY)
            links.append(libbpf.link_create(self.programs[SEARCHED], folder, libbpf.CGROUP_SOCK_OPS, 0))
            os.close(folder)
            libbpf.map_update(self._maps[SEARCHING], bytes(4), FOR_EVER)
        assert min(links) >= 0
        try:
            yield
        finally:
            if cgroup:
                libbpf.map_update(self._maps[SEARCHING], bytes(4), bytes(8))
            for link in links:
                os.close(link)


def call_nanoseconds(ns: Namespace, calls: int) -> float:
    """CPU time of a connect() that is refused, and of the clock: of the tenth that was disturbed least."""
    address = socket.AF_INET.to_bytes(2, sys.byteorder) + CLOSED.to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8)
    connect, clock = ctypes.CDLL(None).connect, time.thread_time_ns
    spent = []
    for _ in range(calls):
        with ns.socket(socket.AF_INET) as one:
            fd = one.fileno()
            began = clock()
            connect(fd, address, len(address))
            spent.append(clock() - began)
    return statistics.mean(sorted(spent)[: calls // 10])


def run(*, short: bool = False) -> dict[str, Any]:
    """Nanoseconds that a call takes more, by the share of the time that is measured, and the program's part."""
    rounds = 11 if short else ROUNDS
    if (cgroup := root_cgroup()) is None:
        return {
            "connect(), its search measured now and then": {"ns": None, "why": "no mount shows the root of cgroup v2"}
        }
    with namespace() as ns:
        cookie = netns.cookie(ns.name)
        without, with_it = Attachable(cookie, searches=False), Attachable(cookie, searches=True)
        ways = [(without, None), (with_it, None), (with_it, cgroup)]
        taken: list[list[float]] = [[], [], []]
        for i in range(rounds):
            for which in (0, 1, 2) if i % 2 else (2, 1, 0):
                one, where = ways[which]
                with one.attached(where):
                    taken[which].append(call_nanoseconds(ns, CALLS))
        own = _own(with_it, cgroup, ns, Stopwatch().empty())
    plain = min(taken[0])
    between, meanwhile = (min(each) - plain for each in taken[1:])
    share = (SECONDS + LINGER) / int(str(KEYS["connect.port_search"].default))
    more = share * own["ns a call"]
    return {
        "connect(), the program that measures its search, in the mean of all seconds": {
            "ns more": round(more),
            "share of the time": round(share, 3),
            **own,
            "goal": GOAL,
            "met": more <= GOAL,
        },
        "connect(), its search measured, against one without": {
            "ns more in between": round(between),
            "ns more while it is": round(meanwhile),
            "of ns": round(plain),
        },
    }


def _own(one: Attachable, cgroup: Path, ns: Namespace, empty: float) -> dict[str, Any]:
    fd = one.programs[SEARCHED]
    with one.attached(cgroup), statistics_enabled():
        before = fdinfo(fd)
        call_nanoseconds(ns, CALLS)
        spent: Spent = fdinfo(fd) - before
    each = spent.each - empty
    return {"runs a call": RUNS, "ns a run": round(each), "ns a call": round(each * RUNS)}


if __name__ == "__main__":
    print(json.dumps(run(short="--short" in sys.argv[1:]), indent=1))
