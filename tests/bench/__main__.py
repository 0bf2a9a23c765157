"""The command behind tests/bench/run."""

import argparse
import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.bench.pages import write_figures
from twctl.table.pins import mount_of

NAMES = (
    *("table", "stress", "blame", "guard", "connections", "daemon", "ports", "truncate", "routes"),
    *("vestigial", "pairs", "latency", "half_open", "losses", "burst", "clients", "account", "connects"),
)
LONG = {"pairs", "latency", "burst", "clients"}  # have no part in a short run, unless they are named
BOUNDS = ROOT / "tests/bench/bounds.toml"
PICTURES = {"vestigial": ROOT / "tests/bench/connections.svg", "latency": ROOT / "tests/bench/latency.svg"}
BPFFS = Path("/sys/fs/bpf")

Figures = dict[str, Any]


def main(words: list[str]) -> int:
    """Run what is named, or everything; exit status 1 where a bound is broken, 2 for wrong usage."""
    said = _arguments(words)
    unknown = [name for name in said.names if name not in NAMES]
    if unknown:
        print(f"tests/bench/run: no benchmark {unknown[0]} (there are {', '.join(NAMES)})", file=sys.stderr)
        return 2
    _mount_bpffs()
    found: dict[str, dict[str, Figures]] = {}
    for name in said.names or [name for name in NAMES if not (said.short and name in LONG)]:
        found[name] = importlib.import_module(f"tests.bench.{name}").run(**_options(name, said))
        if not said.json:
            for what, figures in found[name].items():
                print(f"{what}: {line(figures)}", flush=True)
    results = {what: figures for each in found.values() for what, figures in each.items()}
    if said.json:
        print(json.dumps(results, indent=1))
    if said.docs:
        write_figures(found)
    broken = list(broken_bounds(results, tomllib.loads(BOUNDS.read_text()))) if said.short else []
    for each in broken:
        print(f"tests/bench/run: {each}", file=sys.stderr)
    return bool(broken)


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/bench/run", description="Measure, each thing against another.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes, and check the stored bounds")
    parser.add_argument("--docs", action="store_true", help="write tables and pictures of docs/benchmarks.md")
    return parser.parse_args(words)


def _options(name: str, said: argparse.Namespace) -> dict[str, Any]:
    picture = {"picture": PICTURES[name]} if said.docs and name in PICTURES else {}
    return {"short": said.short} | picture


def _mount_bpffs() -> None:
    """Some benchmarks pin; a new machine may have nothing mounted there."""
    if mount_of(BPFFS)[0] != "bpf":
        subprocess.run(["mount", "-t", "bpf", "bpf", BPFFS], check=True)


def line(figures: Figures) -> str:
    """Figures as one line, with the goal and whether it was met at its end."""
    shown = [f"{key} {value}" for key, value in figures.items() if key not in {"goal", "met"}]
    goal = "" if figures.get("goal") is None else f" (goal {figures['goal']}: {'met' if figures['met'] else 'MISSED'})"
    return ", ".join(shown) + goal


def broken_bounds(results: Mapping[str, Figures], bounds: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """A line for each stored bound that a short run breaks, or for which it has no figure."""
    for what, bound in bounds.items():
        figures = next((each for name, each in results.items() if name.startswith(what)), None)
        if figures is None:
            if len(results) and bound["benchmark"] in NAMES and _was_run(bound["benchmark"], results, bounds):
                yield f"no figure of {what!r} (a benchmark that gives none is broken)"
            continue
        value, least, most = figures[bound["key"]], bound.get("at_least"), bound.get("at_most")
        if (least is not None and value < least) or (most is not None and value > most):
            limit = f"at least {least}" if least is not None else f"at most {most}"
            yield f"{what}: {bound['key']} is {value}, the stored bound is {limit} (look for what has become slower)"


def _was_run(benchmark: str, results: Mapping[str, Figures], bounds: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether any other figure of the same benchmark is there."""
    mine = [what for what, bound in bounds.items() if bound["benchmark"] == benchmark]
    return any(name.startswith(what) for name in results for what in mine) or len(results) > len(bounds) // 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
