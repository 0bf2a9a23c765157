"""The tables of docs/benchmarks.md, written from what was measured: no figure there is typed by hand."""

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.docs import pages

# Above a benchmark's table; it draws the picture when it writes the table.
PICTURE = {
    "latency": "![connect() in microseconds, p50, p99, p99.9: stock takes a hundred times as long once half the ports"
    " are in use, the others take as long as before](../tests/bench/latency.svg)\n\n"
}


def write_figures(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Put the figures of each benchmark into its block of docs/benchmarks.md; all else there stays."""
    for page in pages.write(
        "figures", {name: PICTURE.get(name, "") + table(results) for name, results in found.items()}
    ):
        print(page.relative_to(ROOT))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """When, what and on which machine, then a row for each result."""
    rows = [
        f"| {what} | {_measured(figures)} | {_ratio(figures)} | {_goal(figures)} |" for what, figures in results.items()
    ]
    head = ["| what | measured | ratio | goal |", "|---|---|---|---|"]
    return "\n".join([f"{time.strftime('%Y-%m-%d')}, {_commit()}, {machine()}.", "", *head, *rows])


def _measured(figures: Mapping[str, Any]) -> str:
    hidden = {"ratio", "goal", "met"}
    return ", ".join(f"{name} {_number(value)}" for name, value in figures.items() if name not in hidden)


def _number(value: object) -> str:
    """Thousands apart, as a reader wants them."""
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _ratio(figures: Mapping[str, Any]) -> str:
    return str(figures.get("ratio", ""))


def _goal(figures: Mapping[str, Any]) -> str:
    if figures.get("goal") is None:
        return ""
    return f"{figures['goal']}" if figures["met"] else f"{figures['goal']}: **not met**"


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "no checkout"


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Processor, cores and kernel, without a name of the host."""
    models = [
        line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    return f"{models[0] if models else os.uname().machine}, {os.cpu_count()} cores, Linux {os.uname().release}"
