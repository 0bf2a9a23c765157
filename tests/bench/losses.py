"""What is lost under way: SYNs that the guard holds back, FINs that have to be sent again, of a million closes.

Either end's FINs count; nothing else is sent again here, for the connections carry no data. Against what an expert
sets, where the kernel's own sockets do the work. `--closes N` takes another number than a million.

As root, `python -m tests.bench.losses [--closes N]` runs it alone.
"""

import argparse
import json
from typing import Any

from tests.bench.ways import EXPERT, OURS, Place, left_out, taking_turns
from tests.load import counters
from tests.load.netns import Namespace

CLOSES, SHORT_CLOSES = 1_000_000, 100_000


def run(closes: int = CLOSES, *, short: bool = False) -> dict[str, Any]:
    """With one client thread and with eight; none may be held, and none lost."""
    if short:
        return _with_threads(1, SHORT_CLOSES, (OURS,))
    return _with_threads(1, closes) | _with_threads(8, closes) | left_out((EXPERT,))


def _with_threads(threads: int, closes: int, names: tuple[str, ...] = (OURS, EXPERT)) -> dict[str, Any]:
    found = {each.name: _lost(each, threads, closes) for each in taking_turns(names, 1)}
    ours = found.pop(OURS)
    others = {f"{name} {key}": value for name, each in found.items() for key, value in each.items() if "FINs" in key}
    return {
        f"of {closes:,} closes, {threads} client thread{'s' if threads > 1 else ''}": {
            **ours,
            **others,
            "goal": "no SYN held, no FIN lost",
            "met": ours["SYNs held"] == ours["FINs sent again"] == ours["failed"] == 0,
        }
    }


def _lost(each: Place, threads: int, closes: int) -> dict[str, int]:
    ends = each.both.client, each.both.server
    with each.watched() as one, each.serving("--server-threads", str(threads)):
        report = each.closes("--count", str(closes), "--threads", str(threads), timeout=closes / 1000 + 60)
        held = one.metric("twctl_guard_segments_total", action="held") if one else 0
    again = [_sent_again(ns) for ns in ends]
    return {
        "SYNs held": round(held),
        "FINs sent again": sum(fins for fins, _ in again),
        "SYNs sent again": sum(syns for _, syns in again),
        "failed": report["failed"],
        "a second": round(report["per_second"]),
    }


def _sent_again(ns: Namespace) -> tuple[int, int]:
    """FINs, and SYNs with SYN|ACKs. The kernel counts those in both numbers (tcp_rtx_synack())."""
    syns = counters.tcpext(ns)["TCPSynRetrans"]
    return counters.tcp(ns)["RetransSegs"] - syns, syns


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.losses")
    parser.add_argument("--closes", type=int, default=CLOSES)
    print(json.dumps(run(parser.parse_args().closes), indent=1))


if __name__ == "__main__":
    main()
