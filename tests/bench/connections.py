"""Connections a second over lo, client closing first: with twctl observing and without, in turn."""

import statistics
from typing import Any

from tests.load.closes import run as closes
from tests.load.daemon import daemon
from tests.load.netns import namespace

ROUNDS = 7
LOAD = ("--count", "60007", "--close", "client", "--inline", "--threads", "2", "--cpus", "0,1", "--port", "20000-20003")
ROOMY = {"net.ipv4.tcp_rfc1337": 1, "net.ipv4.tcp_max_tw_buckets": 4_000_000}


def run(*, short: bool = False) -> dict[str, Any]:
    """The ratio of each pair of runs, in namespaces of their own: one is enrolled, the other is not."""
    with namespace(ROOMY) as stock, namespace(ROOMY) as observed, daemon(observed, config="capacity = 1048576"):
        pairs = []
        for turn in range(3 if short else ROUNDS):
            source = ("--source", f"127.0.{turn + 1}.1+16")
            order = (stock, observed) if turn % 2 else (observed, stock)
            speed = {ns.name: float(closes(ns, *LOAD, *source)["per_second"]) for ns in order}
            pairs.append((speed[observed.name], speed[stock.name]))
    ratio = statistics.median(a / b for a, b in pairs)
    return {
        "connections a second, observing against stock": {
            "observing": statistics.median(a for a, _ in pairs),
            "stock": statistics.median(b for _, b in pairs),
            "ratio": round(ratio, 3),
            "goal": 0.97,
            "met": ratio >= 0.97,
        }
    }
