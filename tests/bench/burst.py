"""64,000 sessions as fast as the machine can, stock against vestigial: how long, CPU idle meanwhile, memory held.

That is the test that NetBSD's Vestigial Time-Wait was announced with. The client closes first, toward as many ports of
a server that a stock kernel does not run out of its own.

As root, `python -m tests.bench.burst [--short]` runs it alone.
"""

import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tests.bench.truncate import cpu_ticks, slab_caches
from tests.bench.ways import OURS, STOCK, Place, taking_turns
from tests.load import counters
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.layout import Layout

SESSIONS, SHORT_SESSIONS, ROUNDS = 64_000, 10_000, 5
PORTS = "20000-20007"
MEMORY = "MB of sockets and ports afterwards"


def run(*, short: bool = False) -> dict[str, Any]:
    """Of each way the medians of all rounds."""
    sessions, rounds = (SHORT_SESSIONS, 1) if short else (SESSIONS, ROUNDS)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for each in taking_turns((STOCK, OURS), rounds):
        found[each.name].append(_burst(each, sessions))
    what = f"{sessions:,} sessions as fast as possible"
    results = {f"{what}, {key}": _row(found[OURS], found[STOCK], key) for key in found[STOCK][0]}
    results[f"{what}, {MEMORY}"] |= _table(sessions)
    return results


def _row(ours: Sequence[dict[str, float]], stock: Sequence[dict[str, float]], key: str) -> dict[str, Any]:
    mine, other = (statistics.median(each[key] for each in way) for way in (ours, stock))
    return {"vestigial": round(mine, 3), "stock": round(other, 3), "ratio": round(mine / other, 3) if other else None}


def _burst(each: Place, sessions: int) -> dict[str, float]:
    with each.watched(), each.serving("--port", PORTS):
        memory, before, began = sum(slab_caches().values()), cpu_ticks(), time.monotonic()
        report = each.closes("--port", PORTS, "--count", str(sessions))
        took = time.monotonic() - began
        idle, all_ = (after - earlier for after, earlier in zip(cpu_ticks(), before, strict=True))
        held = sum(slab_caches().values()) - memory
        assert report["failed"] == 0, report["errors"]
        return {
            "seconds": took,
            "CPU idle": idle / all_,
            "us of CPU a session": (all_ - idle) / os.sysconf("SC_CLK_TCK") * 1e6 / sessions,
            MEMORY: held / 1e6,
            "TIME_WAIT sockets afterwards": counters.time_wait_count(each.both.client),
        }


def _table(sessions: int) -> dict[str, float]:
    """Its memory with the default capacity, all of it there from the start; and the part that these sessions use."""
    layout = Layout({family: dict.fromkeys(Class, 65_536) for family in FAMILIES})
    share = sessions / layout.slots("ipv4")
    return {
        "table MB": round(sum(layout.bytes(family) for family in FAMILIES) / 1e6, 1),
        "of it these sessions": round(layout.bytes("ipv4") * share / 1e6, 1),
    }


if __name__ == "__main__":
    print(json.dumps(run(short="--short" in sys.argv[1:]), indent=1))
