"""A client that closes first toward one server over 90 s: stock against truncate, on lo and on a link."""

import statistics
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from tests.load import counters
from tests.load.closes import run as closes
from tests.load.closes import serving
from tests.load.daemon import daemon
from tests.load.netns import Namespace, link, namespace

SECONDS = 90
STOCK = {"net.ipv4.tcp_rfc1337": 1, "net.ipv4.tcp_tw_reuse": 0}


def run() -> dict[str, Any]:
    """Connections a second once the port range is used up (the last 60 s), and TIME_WAIT sockets at the end."""
    results = {}
    for klass, measure in (("loopback", _over_lo), ("local", _over_link)):
        stock, truncate = measure(truncating=False), measure(truncating=True)
        ratio = truncate["per_second"] / max(1.0, stock["per_second"])
        results[f"one server over {SECONDS} s, {klass}, truncate against stock"] = {
            "truncate": truncate,
            "stock": stock,
            "ratio": round(ratio, 2),
        }
    return results


def _over_lo(*, truncating: bool) -> dict[str, float]:
    with ExitStack() as stack:
        ns = stack.enter_context(namespace(STOCK))
        if truncating:
            stack.enter_context(daemon(ns, mode="truncate"))
        return _measure(ns, closes(ns, "--seconds", str(SECONDS), "--close", "client", timeout=SECONDS + 60))


def _over_link(*, truncating: bool) -> dict[str, float]:
    with ExitStack() as stack:
        both = stack.enter_context(link(STOCK))
        if truncating:
            stack.enter_context(daemon(both.client, mode="truncate"))
        options = ("--close", "client", "--address", both.server_ipv4, "--port", "20000")
        stack.enter_context(serving(both.server, *options))
        report = closes(both.client, "--connect", "--seconds", str(SECONDS), *options, timeout=SECONDS + 60)
        return _measure(both.client, report)


def _measure(ns: Namespace, report: Mapping[str, Any]) -> dict[str, float]:
    return {"per_second": statistics.mean(report["series"][30:]), "sockets": counters.time_wait_count(ns)}
