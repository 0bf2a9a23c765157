"""Truncate against stock: connections a second from one client to one server, kernel memory held, lateness, CPU.

As root, `python -m tests.bench.truncate [--short]` runs it alone.
"""

import json
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench.daemon import ROOMY, SOURCES, cpu_seconds
from tests.bench.ways import DEFAULTS, PORTS, REUSE
from tests.load import counters
from tests.load.closes import run as closes
from tests.load.closes import serving
from tests.load.daemon import daemon
from tests.load.netns import Namespace, link, namespace

SECONDS = 90  # the last two thirds are one whole life of a stock socket: its ports come back once
ENTRIES, ENTRY_SECONDS = 10_000, 15
CACHES = ("tw_sock_TCP", "tcp_bind_bucket", "tcp_bind2_bucket")
TIME_WAIT = {"loopback": 2, "local": 10}
# Class, tcp_tw_reuse, ports. The kernel's default of tcp_tw_reuse, 2, gives a port on lo out again after 1 s; on a link
# it does nothing. In the default range connect() itself is slow: it looks at every port of one parity, 2 ms once they
# are used up, before it takes one of the other. Of a few ports the lifetime alone decides.
WAYS = (
    ("loopback", 0, "32768 60999"),
    ("loopback", 2, "32768 60999"),
    ("local", 2, "32768 60999"),
    ("local", 2, "40000 44999"),
)
FEW = 5000


def run(*, short: bool = False) -> dict[str, Any]:
    """Every figure, and its ratio to stock's of the same run. short: one rate on lo alone."""
    if short:
        return _at_a_steady_rate(5, 2000)
    seconds = SECONDS
    results = {}
    for class_, reuse, ports in WAYS:
        truncate = toward_one_server(class_, {REUSE: reuse, PORTS: ports}, seconds, mode="truncate")
        stock = toward_one_server(class_, {REUSE: reuse, PORTS: ports}, seconds)
        what = f"toward one server over {seconds} s, {class_}, {truncate['ports']} ports, tcp_tw_reuse {reuse}"
        results[f"connections a second once the ports are used up, {what}"] = _rates(class_, truncate, stock)
        results[f"kernel memory at the end, {what}"] = _memory(truncate, stock)
    return results | _at_a_steady_rate(ENTRY_SECONDS, ENTRIES)


def _rates(class_: str, truncate: Mapping[str, float], stock: Mapping[str, float]) -> dict[str, Any]:
    allowed = truncate["ports"] / TIME_WAIT[class_]
    share = truncate["per_second"] / allowed
    goal = {"goal": 0.9, "met": share >= 0.9} if truncate["ports"] == FEW else {}
    return {
        "truncate": round(truncate["per_second"]),
        "stock": round(stock["per_second"]),
        "ratio": round(truncate["per_second"] / max(1.0, stock["per_second"]), 2),
        "ports/time_wait": round(allowed),
        "share of it": round(share, 3),
    } | goal


def _memory(truncate: Mapping[str, float], stock: Mapping[str, float]) -> dict[str, Any]:
    return {
        "truncate MB": round(truncate["bytes"] / 1e6, 2),
        "stock MB": round(stock["bytes"] / 1e6, 2),
        "ratio": round(truncate["bytes"] / stock["bytes"], 3),
        "truncate sockets": truncate["sockets"],
        "stock sockets": stock["sockets"],
        "caches": ", ".join(slab_caches()),
    }


def toward_one_server(
    class_: str, sysctls: Mapping[str, object], seconds: int, mode: str = "", fixed: int = 0
) -> dict[str, Any]:
    """One run of one client thread against one server thread; the rate is that of the last two thirds.

    mode: of the daemon that watches the client; empty: none does. fixed: connections a second; 0: as fast as can be.
    """
    sysctls = {**DEFAULTS, **sysctls}
    with ExitStack() as stack:
        if class_ == "local":
            both = stack.enter_context(link(sysctls))
            client, options = both.client, ["--close", "client", "--address", both.server_ipv4]
            stack.enter_context(serving(both.server, *options))
            options.append("--connect")
        else:
            client, options = stack.enter_context(namespace(sysctls)), ["--close", "client"]
        watching = stack.enter_context(daemon(client, mode=mode)) if mode else None
        if fixed:
            options += ["--rate", str(fixed)]
        before = cpu_ticks()
        report = closes(client, *options, "--seconds", str(seconds), timeout=seconds + 60)
        idle, all_ = (after - earlier for after, earlier in zip(cpu_ticks(), before, strict=True))
        low, high = map(int, str(sysctls[PORTS]).split())
        rate = statistics.mean(report["series"][seconds // 3 :])
        vestiges = watching.metric("twctl_time_wait_sessions") if watching else 0
        found: dict[str, Any] = {
            "per_second": rate,
            "series": report["series"],
            "ports": high - low + 1,
            "vestiges": vestiges,
            "failed": report["failed"],
            "idle": idle / all_,
        }
        found |= _held(client) | report["connect_us"]
        return found


def cpu_ticks(stat: Path = Path("/proc/stat")) -> tuple[int, int]:
    """Idle time of all CPUs and time altogether, since the start."""
    times = [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
    return times[3] + times[4], sum(times)


def _at_a_steady_rate(seconds: int, rate: int) -> dict[str, Any]:
    """Sessions that enter on lo at one rate: what is held with truncate and without, how late it goes, what that costs.

    The daemon's CPU is taken over the run and the two seconds until the last is gone.
    """
    load = ("--seconds", str(seconds), "--rate", str(rate), "--close", "client", *SOURCES)
    sysctls = {**ROOMY, REUSE: 0}  # every session ends by truncation or not at all
    with namespace(sysctls) as ns, daemon(ns, mode="truncate", config="[capacity.ipv4]\nloopback = 1048576\n") as one:
        before, started = cpu_seconds(one), time.monotonic()
        report = closes(ns, *load)
        truncate = _held(ns)
        time.sleep(TIME_WAIT["loopback"] + 1)
        share = (cpu_seconds(one) - before) / (time.monotonic() - started - 1)
        late = "twctl_truncate_lateness_seconds"
        intime, all_ = one.metric(f"{late}_bucket", le="0.25"), one.metric(f"{late}_count")
    with namespace(sysctls) as ns:
        closes(ns, *load)
        stock = _held(ns)
    what = f"at {rate:,} entries a second for {seconds} s, loopback"
    goals = report["made"] >= 0.95 * rate * seconds  # a machine that is too busy for this rate tells nothing
    return {
        f"kernel memory {what}": _memory(truncate, stock),
        f"destroyed within 250 ms of due {what}": {
            "ratio": round(intime / all_, 4),
            "sockets": all_,
            "entered": report["made"],
            "goal": 0.99 if goals else None,
            "met": intime >= 0.99 * all_ and all_ >= 0.99 * report["made"],
        },
        f"truncating daemon, share of a CPU {what}": {
            "ratio": round(share, 3),
            "goal": 0.1 if goals else None,
            "met": share <= 0.1,
        },
    }


def _held(ns: Namespace) -> dict[str, float]:
    """Mini-sockets of the namespace, and the bytes of objects in use in CACHES, of the whole machine."""
    return {"sockets": counters.time_wait_count(ns), "bytes": sum(slab_caches().values())}


def slab_caches(proc: Path = Path("/proc/slabinfo"), slab: Path = Path("/sys/kernel/slab")) -> dict[str, int]:
    """Bytes in use by cache; one that is merged with others, and so not in /proc/slabinfo, is counted with them, once.

    The name tells: "tcp_bind_bucket+tcp_bind2_bucket (merged: :A-0000128)".
    """
    lines = (line.split() for line in proc.read_text().splitlines()[2:])
    listed = {words[0]: int(words[1]) * int(words[3]) for words in lines}
    found = {name: listed[name] for name in CACHES if name in listed}
    merged: dict[Path, list[str]] = {}
    for name in CACHES:
        if name not in listed:
            merged.setdefault((slab / name).resolve(strict=True), []).append(name)
    for cache, names in merged.items():
        objects = int((cache / "objects").read_text().split()[0])
        found[f"{'+'.join(names)} (merged: {cache.name})"] = objects * int((cache / "object_size").read_text())
    return found


if __name__ == "__main__":
    print(json.dumps(run(short="--short" in sys.argv[1:]), indent=1))
