"""What the cells told, a row for each mode and probe; docs/kernels.md keeps the newest rows of each kernel."""

import itertools
import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.docs import pages
from tests.vm import MODES, PROBES, SIGN
from tests.vm.kernels import may_refuse, release_of
from tests.vm.machine import Outcome

HEAD = ("kernel", "of", "Linux", "mode", "probe", "result", "date", "minutes")


@dataclass(frozen=True)
class Row:
    """One cell. kernel: as it is asked for. linux: its release. minutes: that all cells of its kernel took."""

    kernel: str
    architecture: str
    linux: str
    mode: str
    probe: str
    result: str
    date: str
    minutes: str

    @property
    def whose(self) -> tuple[str, str]:
        """The kernel that it is of: all rows of one are replaced together."""
        return self.architecture, self.kernel

    @property
    def is_failure(self) -> bool:
        """Failed, or refused by a kernel that must allow it."""
        refused = self.result.startswith("refused") and not may_refuse(*self.whose, self.probe)
        return refused or self.result.startswith("failed")

    def fields(self) -> tuple[str, ...]:
        """In the order of HEAD."""
        where = self.kernel, self.architecture, self.linux, self.mode, self.probe
        return (*where, self.result, self.date, self.minutes)


def rows(architecture: str, kernel: str, vmlinuz: Path, result: Outcome, seconds: float) -> list[Row]:
    """What one kernel's cells told. A kernel of your own is called by its release."""
    linux = release_of(vmlinuz)
    name = linux if "/" in kernel else kernel
    day, minutes = time.strftime("%Y-%m-%d"), f"{max(1, round(seconds / 60))}"
    return [
        Row(name, architecture, linux, mode, probe, text, day, minutes) for (mode, probe), text in cells(result).items()
    ]


def cells(result: Outcome) -> dict[tuple[str, str], str]:
    """What the table says for each mode and probe: how many tests passed, which failed, or why none ran."""
    told = [json.loads(line.partition(SIGN)[2]) for line in result.output.splitlines() if SIGN in line]
    if result.status == 125:
        return dict.fromkeys(itertools.product(MODES, PROBES), result.verdict)
    return {
        cell: verdict([(how, detail) for *where, how, detail in told if tuple(where) == cell])
        for cell in itertools.product(MODES, PROBES)
    }


def verdict(told: Iterable[tuple[str, str]]) -> str:
    """Return how a cell went: refused goes before failed, and failed before passed."""
    told = list(told)
    for how in ("refused", "failed"):
        if found := [detail.rpartition("::")[2] for each, detail in told if each == how]:
            return f"{how}: {', '.join(found)}"
    return f"passed {len(told)}" if told else "failed: no test ran to its end"


def table(of: Iterable[Row]) -> str:
    """As Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.fields() for row in of)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse(text: str) -> list[Row]:
    """The rows of a table."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in text.splitlines()]
    found = []
    for line in lines[2:]:
        kernel, architecture, linux, *rest = line
        found.append(Row(kernel, architecture, linux, *rest))
    return found


def written() -> list[Row]:
    """The rows of docs/kernels.md."""
    return [row for _, name, text in pages.blocks("cells") if name == "kernels" for row in parse(text)]


def write(fresh: Iterable[Row]) -> list[Path]:
    """Put fresh rows into docs/kernels.md, in place of those of the same kernels; all else there stays."""
    fresh = list(fresh)
    again = {row.whose for row in fresh}
    kept = [row for row in written() if row.whose not in again]
    return list(pages.write("cells", {"kernels": table(sorted([*kept, *fresh], key=order))}))


def order(row: Row) -> tuple[str, list[int]]:
    """By architecture and version, and as they came within."""
    return row.architecture, [int(number) for number in re.findall(r"\d+", row.linux)]


def minutes_of(asked: Iterable[tuple[str, str]], of: Iterable[Row]) -> Mapping[tuple[str, str], int | None]:
    """How long the cells of each kernel took when its rows were made; None: nobody knows."""
    known = {row.whose: int(row.minutes) for row in of if row.minutes.isdigit()}
    return {whose: known.get(whose) for whose in asked}
