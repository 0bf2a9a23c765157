"""Vestigial against stock, tcp_tw_reuse=1 and no TIME_WAIT at all: one client closing first toward one server.

One long run of each; tests/bench/pairs.py compares them more exactly in short ones.

As root, `python -m tests.bench.vestigial [SECONDS] [--picture FILE]` runs it alone, shorter or longer. FILE: the
connections of each second as a line for each way, as SVG or PNG; that needs the extra `bench`.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench.picture import draw
from tests.bench.truncate import toward_one_server
from tests.bench.ways import EXPERT, NONE, OURS, PORTS, REUSED, STOCK, WAYS, left_out, possible
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.layout import Layout

RATE, RATE_SECONDS = 1000, 10  # within what stock has ports for
SHORT_SECONDS = 4
SECONDS = 90  # the last two thirds are one whole life of a stock socket
PICTURED = (STOCK, REUSED, EXPERT, OURS)  # no TIME_WAIT lies over the last two
GOALS = {STOCK: 30.0, REUSED: 1.0, EXPERT: None, NONE: None}


def run(seconds: int = SECONDS, picture: Path | None = None, *, short: bool = False) -> dict[str, Any]:
    """Rates and their ratios, latency of connect(), memory. short: a few seconds of few ports."""
    if short:
        return _short()
    runs = {name: _toward_one_server(name, seconds) for name in possible([*GOALS, OURS])}
    if picture:
        series = {name: runs[name]["series"] for name in possible(PICTURED)}
        draw(series, picture, "connections a second toward one server")
    ours = runs[OURS]
    results: dict[str, Any] = {}
    for name, goal in GOALS.items():
        if name not in runs:
            continue
        ratio = ours["per_second"] / max(1.0, runs[name]["per_second"])
        results[f"connections a second toward one server, the last {seconds - seconds // 3} s, against {name}"] = {
            "vestigial": round(ours["per_second"]),
            name: round(runs[name]["per_second"]),
            "ratio": round(ratio, 2),
            "goal": goal,
            "met": goal is not None and ratio >= goal,
        }
    for name, each in runs.items():
        results[f"connect(), {name}"] = {f"{percent} us": each[percent] for percent in ("p50", "p99", "p999")} | {
            "failed": each["failed"]
        }
    return results | _memory(runs) | _idle() | left_out([*GOALS])


def _short() -> dict[str, Any]:
    """With 5,000 ports a stock client has none left after a moment."""
    few = {PORTS: "40000 44999"}
    runs = {name: _toward_one_server(name, SHORT_SECONDS, few) for name in (STOCK, NONE, OURS)}
    ours = runs[OURS]["per_second"]
    return {
        f"connections a second toward one server, {SHORT_SECONDS} s, against {name}": {
            "vestigial": round(ours),
            name: round(runs[name]["per_second"]),
            "ratio": round(ours / max(1.0, runs[name]["per_second"]), 2),
        }
        for name in (STOCK, NONE)
    }


def _toward_one_server(
    name: str, seconds: int, sysctls: Mapping[str, object] | None = None, rate: int = 0
) -> dict[str, Any]:
    mode = OURS if name == OURS else ""
    return toward_one_server("local", {**WAYS[name], **(sysctls or {})}, seconds, mode, rate)


def _idle() -> dict[str, Any]:
    """Share of both CPUs that is idle at a rate that all can do, on the same machine one after the other."""
    runs = {name: _toward_one_server(name, RATE_SECONDS, rate=RATE) for name in possible([*WAYS])}
    return {f"CPU idle at {RATE:,} connections a second": {name: round(each["idle"], 3) for name, each in runs.items()}}


def _memory(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    ours, stock = runs[OURS], runs[STOCK]
    layout = Layout({family: dict.fromkeys(Class, 65536) for family in FAMILIES})
    each = layout.bytes("ipv4") / layout.slots("ipv4")
    return {
        "kernel memory of a session": {
            "vestige B": round(each, 1),
            "stock B": round(stock["bytes"] / max(1, stock["sockets"])),
            "vestiges": ours["vestiges"],
            "sockets left by vestigial": ours["sockets"],
            "goal": 48,
            "met": each <= 48.01,
        }
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.vestigial")
    parser.add_argument("seconds", nargs="?", type=int, default=SECONDS)
    parser.add_argument("--picture", type=Path, metavar="FILE")
    said = parser.parse_args()
    print(json.dumps(run(said.seconds, said.picture), indent=1))


if __name__ == "__main__":
    main()
