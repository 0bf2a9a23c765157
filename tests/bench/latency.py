"""How long connect() takes while ever more of the ports toward its server are in use by sessions in TIME_WAIT.

For a stock kernel, for what an expert sets, and for mode vestigial, where it is vestiges that use them. The ports are
those that connect() would take: every second one first, in no order. TIME_WAIT is 60 s in each.

As root, `python -m tests.bench.latency [--short] [--picture FILE]` runs it alone; a picture needs the extra `bench`.
"""

import argparse
import json
import socket
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.picture import draw_panels
from tests.bench.ways import (
    EXPERT,
    NUMBER_OF_PORTS,
    OURS,
    PORT_NUMBERS,
    PORTS,
    REUSE,
    STOCK,
    Place,
    left_out,
    taking_turns,
)
from tests.load import wait_until
from tests.load.counters import FIN_WAIT2, TIME_WAIT
from tests.load.daemon import Daemon

SERVER_PORT, HALF = 20000, NUMBER_OF_PORTS // 2
SHARES = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 100)  # percent
SHOWN = (0, 40, 60, 98, 100)  # in rows; the picture has all
CONNECTS, ROUNDS, ATTEMPTS = 1_000, 7, 9
PERCENTILES = (50, 99, 99.9)
NAMES = (STOCK, EXPERT, OURS)
LIFE = "[time_wait]\nlocal = 60\n"


class Connects:
    """What became of a number of calls. took: microseconds, and how many took them."""

    def __init__(self) -> None:
        self.took: Counter[float] = Counter()
        self.failed = 0

    def add(self, report: Mapping[str, Any]) -> None:
        """Those of one more run."""
        self.took.update(dict(report["histogram"]))
        self.failed += report["failed"]

    def percentile(self, percent: float) -> float:
        """What so many took at most, to 3 %."""
        below = 0
        for us, count in sorted(self.took.items()):
            below += count
            if below >= self.took.total() * percent / 100:
                return us
        raise LookupError(percent)


Found = defaultdict[str, defaultdict[int, Connects]]


def run(picture: Path | None = None, *, short: bool = False) -> dict[str, Any]:
    """Rows of some shares of the ports, and the picture of all of them. short: one row."""
    shares, connects, rounds = ((60,), 500, 1) if short else (SHARES, CONNECTS, ROUNDS)
    found: Found = defaultdict(lambda: defaultdict(Connects))
    for each in taking_turns(NAMES, rounds):
        for share, report in _sweep(each, shares, connects):
            found[each.name][share].add(report)
    if picture:
        draw_panels(_curves(found), picture, "connect() while ports are in use by TIME_WAIT", "% of the ports in use")
    return {
        f"connect() with {share} % of the ports in use": _row(found, share) for share in shares if share in SHOWN
    } | left_out(NAMES)


def _row(found: Found, share: int) -> dict[str, Any]:
    """Microseconds of each way; the ratio is that of vestigial's p99 to stock's."""
    row: dict[str, Any] = {}
    for name, of_way in found.items():
        if of_way[share].took:
            row |= {f"{name} p{percent} us": of_way[share].percentile(percent) for percent in PERCENTILES}
        if of_way[share].failed:
            row[f"{name} failed"] = f"{of_way[share].failed} of {of_way[share].failed + of_way[share].took.total()}"
    ours, stock = found[OURS][share], found[STOCK][share]
    return row | ({"ratio": round(ours.percentile(99) / stock.percentile(99), 2)} if ours.took and stock.took else {})


def _curves(found: Found) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """For each percentile, of each way, its points: share and microseconds."""
    return {
        f"p{percent}": {
            name: [(share, each.percentile(percent)) for share, each in of_way.items() if each.took]
            for name, of_way in found.items()
        }
        for percent in PERCENTILES
    }


def _sweep(each: Place, shares: Iterable[int], connects: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Fill the ports up from one share to the next, and connect at each. A reset leaves no session behind."""
    with each.watched(LIFE) as one, each.serving():
        for share in shares:
            wanted = NUMBER_OF_PORTS * share // 100
            for parity, count in enumerate((min(wanted, HALF), max(0, wanted - HALF))):
                _use(each, one, parity, count)
            yield share, each.closes("--close", "reset", "--count", str(connects))
            left = len(_in_time_wait(each, one))
            assert left >= wanted - connects, f"{wanted - left} sessions ended meanwhile (this takes an idle machine)"


def _ports(each: Place, state: int) -> set[int]:
    """Local ports of the client's sockets in this state."""
    lines = (line.split(maxsplit=4) for line in each.both.client.read("tcp").splitlines())
    return {int(local.rpartition(":")[2], 16) for _, local, _, named, _ in lines if named == f"{state:02X}"}


def _in_time_wait(each: Place, one: Daemon | None) -> set[int]:
    """Local ports of vestiges, or of the kernel's sockets."""
    return {vestige.local_port for vestige in one.table()} if one else _ports(each, TIME_WAIT)


def _use(each: Place, one: Daemon | None, parity: int, count: int) -> None:
    """Have sessions in TIME_WAIT on so many of the even (parity 0) or odd ports.

    Again for the few that a kernel forgets that skips state events, and for the last port, which no odd range reaches.
    """
    for attempt in range(ATTEMPTS):
        used = {port for port in _in_time_wait(each, one) if port % 2 == parity}
        if count <= len(used):
            return
        if one:
            _use_by_bind(each, sorted(set(PORT_NUMBERS[parity::2]) - used)[: count - len(used)])
        else:
            _use_by_connect(each, 0 if attempt else parity, count - len(used))
        wait_until(lambda: not _ports(each, FIN_WAIT2), what="the server has closed its ends")
    raise AssertionError(f"{each.name}: of {count} ports {len(used)} are used")


def _use_by_connect(each: Place, parity: int, count: int) -> None:
    """The kernel chooses free ones: first those that are even or odd as the range begins (__inet_hash_connect()).

    It would never give out again those of a bind(), and so would tell less of either kernel.
    """
    client = each.both.client
    before = {name: client.sysctl(name) for name in (REUSE, PORTS)}
    client.sysctl(REUSE, 0)
    client.sysctl(PORTS, f"{PORT_NUMBERS[parity]} {PORT_NUMBERS[-1]}")
    each.closes("--count", str(count))
    for name, value in before.items():
        client.sysctl(name, value)


def _use_by_bind(each: Place, ports: Sequence[int]) -> None:
    """A vestige is no port of the kernel's, so that connect() would choose some of them twice."""
    with each.both.client.entered():
        for port in ports:
            with socket.socket() as made:
                made.bind((each.both.client_ipv4, port))
                made.connect((each.both.server_ipv4, SERVER_PORT))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.latency")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    said = parser.parse_args()
    print(json.dumps(run(said.picture, short=said.short), indent=1))


if __name__ == "__main__":
    main()
