"""Connections toward a peer that does not close its end: 5,000 sessions in FIN_WAIT2 while connect() goes on.

The others are reset, so that they leave no session and a stock kernel has ports for all of them; then they are closed
as usual, against what an expert sets, for stock has no ports for so many.

As root, `python -m tests.bench.half_open [--short]` runs it alone.
"""

import json
import statistics
import sys
from collections import defaultdict
from typing import Any

from tests.bench.ways import EXPERT, OURS, STOCK, Place, left_out, possible, taking_turns
from tests.load import counters
from tests.load.counters import FIN_WAIT2

HALF_OPEN, CONNECTS, ROUNDS = 5_000, 100_000, 3
GOAL = 1.2


def run(*, short: bool = False) -> dict[str, Any]:
    """Failures, and connect()'s p99 against stock's of the same round."""
    connects, rounds = (5_000, 1) if short else (CONNECTS, ROUNDS)
    results = _against(STOCK, "reset", connects, rounds)
    if short:
        return results
    return results | (_against(EXPERT, "client", connects, rounds) if possible((EXPERT,)) else left_out((EXPERT,)))


def _against(other: str, close: str, connects: int, rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for each in taking_turns((OURS, other), rounds):
        found[each.name].append(_round(each, close, connects))
    pairs = list(zip(found[OURS], found[other], strict=True))
    ratio = statistics.median(a["p99"] / b["p99"] for a, b in pairs)
    failed = {name: sum(each["failed"] for each in of_way) for name, of_way in found.items()}
    how = "that are reset" if close == "reset" else "that the client closes"
    return {
        f"connect() with {HALF_OPEN:,} sessions half open, {connects:,} {how}, against {other}": {
            **_figures("vestigial", found[OURS], failed[OURS]),
            **_figures(other, found[other], failed[other]),
            "ratio": round(ratio, 2),
            "goal": f"{GOAL}, none fails",
            "met": ratio <= GOAL and failed[OURS] <= failed[other],
        }
    }


def _figures(name: str, rounds: list[dict[str, Any]], failed: int) -> dict[str, Any]:
    middle = {key: statistics.median(each[key] for each in rounds) for key in ("p99", "p999", "a second", "held")}
    return {
        f"{name} p99 us": middle["p99"],
        f"{name} p99.9 us": middle["p999"],
        f"{name} a second": round(middle["a second"]),
        f"{name} failed": failed,
        f"{name} still half open": round(middle["held"]),
    }


def _round(each: Place, close: str, connects: int) -> dict[str, Any]:
    """The server keeps the first ones open."""
    with each.watched() as one, each.serving("--hold", str(HALF_OPEN)):
        each.closes("--close", "client", "--count", str(HALF_OPEN))
        report = each.closes("--close", close, "--count", str(connects), timeout=600)
        kept = sum(socket.state == FIN_WAIT2 for socket in counters.sockets(each.both.client))
        held = kept + sum(vestige.substate == "FIN_WAIT2" for vestige in (one.table() if one else ()))
    return {"failed": report["failed"], "a second": report["per_second"], "held": held, **report["connect_us"]}


if __name__ == "__main__":
    print(json.dumps(run(short="--short" in sys.argv[1:]), indent=1))
