"""Vestigial against no TIME_WAIT at all and against what an expert sets, in short runs that take turns.

One client toward one server, which closes first, once the ports are used up. A pair is two runs of the same round.

As root, `python -m tests.bench.pairs [ROUNDS]` runs it alone.
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.bench.ways import EXPERT, NONE, OURS, Place, left_out, taking_turns

ROUNDS, SECONDS = 5, 8
FILL_SECONDS = 2  # at 20,000 a second every port has had a session then
RATE, TRANSLATED_RATE, SECOND, LATENCY = 0.97, 0.95, 0.9, 1.2  # goals
COMPARED = (NONE, EXPERT)

Reports = Sequence[Mapping[str, Any]]


def run(*, short: bool = False) -> dict[str, Any]:
    """Of one client thread and of eight: rates, the worst second of each way, connect()'s slowest thousandth."""
    if short:
        return _with_threads(1, 1, 3)
    return _with_threads(1) | _with_threads(8) | left_out(COMPARED) | _translated(1) | _translated(8)


def _with_threads(threads: int, rounds: int = ROUNDS, seconds: int = SECONDS) -> dict[str, Any]:
    what = _threads(threads)
    reports = _in_turn((OURS, *COMPARED), threads, rounds, seconds)
    results: dict[str, Any] = {}
    for name in reports.keys() - {OURS}:
        results |= _against(name, reports[OURS], reports[name], what, RATE)
    return dict(sorted(results.items())) | _seconds(reports, what) | _failures(reports, what)


def _translated(threads: int) -> dict[str, Any]:
    what = f"{_threads(threads)}, to a Service, masqueraded"
    reports = _in_turn((OURS, NONE), threads, ROUNDS, SECONDS, Place.behind_a_service)
    return _against(NONE, reports[OURS], reports[NONE], what, TRANSLATED_RATE) | _failures(reports, what)


def _in_turn(
    names: Sequence[str], threads: int, rounds: int, seconds: int, placed: Callable[[Place], Place] = lambda each: each
) -> dict[str, list[Mapping[str, Any]]]:
    """The reports of each way. placed: what is done to each new place."""
    reports: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    load = ("--threads", str(threads), "--seconds")
    for each in map(placed, taking_turns(names, rounds)):
        with each.watched(), each.serving("--server-threads", str(threads)):
            each.closes(*load, str(FILL_SECONDS))
            reports[each.name].append({"threads": threads, **each.closes(*load, str(seconds))})
    return reports


def _threads(threads: int) -> str:
    return f"{threads} client thread{'s' if threads > 1 else ''}"


def _against(name: str, ours: Reports, others: Reports, what: str, goal: float) -> dict[str, Any]:
    pairs = list(zip(ours, others, strict=True))
    rates = [a["per_second"] / b["per_second"] for a, b in pairs]
    slowest = [a["connect_us"]["p999"] / b["connect_us"]["p999"] for a, b in pairs]
    rate, latency = statistics.median(rates), statistics.median(slowest)
    return {
        f"connections a second in turn, {what}, against {name}": {
            "vestigial": round(statistics.median(each["per_second"] for each in ours)),
            name: round(statistics.median(each["per_second"] for each in others)),
            "ratio": round(rate, 3),
            "pairs": ", ".join(f"{each:.3f}" for each in rates),
            "while it had a CPU": round(statistics.median(_busy_rate(a) / _busy_rate(b) for a, b in pairs), 3),
            "goal": goal,
            "met": rate >= goal,
        },
        f"connect() p99.9 in turn, {what}, against {name}": {
            "vestigial us": statistics.median(each["connect_us"]["p999"] for each in ours),
            f"{name} us": statistics.median(each["connect_us"]["p999"] for each in others),
            "ratio": round(latency, 2),
            "pairs": ", ".join(f"{each:.2f}" for each in slowest),
            "goal": LATENCY,
            "met": latency <= LATENCY,
        },
    }


def _busy_rate(report: Mapping[str, Any]) -> float:
    """Connections in a second of the clients' time, without that in which others had their CPU."""
    return float(report["made"] / (report["seconds"] - report["waited"] / report["threads"]))


def _seconds(reports: Mapping[str, Reports], what: str) -> dict[str, Any]:
    """The worst of all seconds, as a share of the mean of its run."""
    worst = {
        name: min(min(each["series"]) / statistics.mean(each["series"]) for each in of_way)
        for name, of_way in reports.items()
    }
    return {
        f"worst second, {what}, against its run's mean": {
            **{name: round(share, 3) for name, share in worst.items() if name != OURS},
            "ratio": round(worst[OURS], 3),
            "goal": SECOND,
            "met": worst[OURS] >= SECOND,
        }
    }


def _failures(reports: Mapping[str, Reports], what: str) -> dict[str, Any]:
    failed = {name: sum(each["failed"] for each in of_way) for name, of_way in reports.items()}
    return {f"connect() that failed, {what}": failed}


if __name__ == "__main__":
    print(json.dumps(run(short="--short" in sys.argv[1:]), indent=1))
