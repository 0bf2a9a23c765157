"""Real clients and servers, as Debian packages them, on each way: nginx under ab, redis-benchmark -k 0, pgbench -C.

nginx closes first, and so has the guard at its end; the other two are clients that close first. Each is measured in
rounds that take turns, within what a stock kernel has ports for; redis-benchmark also beyond that, without stock.

As root, `python -m tests.bench.clients [--short]` runs it alone; deploy/setup --test brings the programs.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.ways import EXPERT, NONE, OURS, STOCK, Place, left_out, possible, taking_turns
from tests.load import servers

NAMES = (OURS, STOCK, NONE, EXPERT)
ROUNDS = 5
REQUESTS, SHORT_REQUESTS = 60_000, 10_000
# Once every second port is in use, connect() on stock looks at all of those first, and takes a millisecond.
QUERIES, MANY_QUERIES = 13_000, 150_000
TRANSACTIONS = 500  # of each of 4 clients
GOAL = 0.97  # of nginx


Measure = Callable[[Place, Path], float]


@dataclass(frozen=True)
class Load:
    """What is run; closer: which end closes first, and so has the guard; goal: of the ratio."""

    what: str
    measure: Measure
    closer: str = "client"
    goal: float | None = None


def run(*, short: bool = False) -> dict[str, Any]:
    """Requests, queries and transactions a second, each one a connection. short: nginx alone."""
    if missing := _missing():
        return {"real clients": {"skipped": f"no {missing} (deploy/setup --test brings it)"}}
    if short:
        return _compare(Load("nginx under ab -c 20", _requests(SHORT_REQUESTS), "server"), (OURS, STOCK), 1)
    redis = "redis-benchmark -k 0 -c 20 -n"
    return (
        _compare(Load("nginx under ab -c 20", _requests(REQUESTS), "server", GOAL), NAMES)
        | _compare(Load(f"{redis} {QUERIES}", _queries(QUERIES)), NAMES)
        | _compare(Load(f"{redis} {MANY_QUERIES}", _queries(MANY_QUERIES)), (OURS, NONE, EXPERT))
        | _compare(Load(f"pgbench -C -c 4 -t {TRANSACTIONS}", _transactions), NAMES)
        | left_out(NAMES)
    )


def _compare(load: Load, names: Sequence[str], rounds: int = ROUNDS) -> dict[str, Any]:
    """The median of each way; the ratio is the median of those to the second way in the same round."""
    rates: dict[str, list[float]] = defaultdict(list)
    for each in taking_turns(names, rounds, closer=load.closer):
        with each.watched(), tempfile.TemporaryDirectory() as folder:
            rates[each.name].append(load.measure(each, Path(folder)))
    other = names[1]
    pairs = [ours / theirs for ours, theirs in zip(rates[OURS], rates[other], strict=True)]
    ratio = statistics.median(pairs)
    return {
        f"{load.what}, against {other}": {
            **{f"{name} a second": round(statistics.median(rates[name])) for name in possible(names)},
            "pairs": ", ".join(f"{each:.3f}" for each in pairs),
            "ratio": round(ratio, 3),
            "goal": load.goal,
            "met": load.goal is not None and ratio >= load.goal,
        }
    }


def _missing() -> str:
    """A program that is not there; empty if all are."""
    programs = ("ab", "redis-benchmark")
    absent = [name for name in programs if not shutil.which(name)]
    absent += [name for name in ("postgres", "pgbench") if not servers.postgresql_program(name)]
    return " and no ".join(absent)


def _client(each: Place, *command: str) -> str:
    """Run a client to its end; what it has printed."""
    done = subprocess.run(each.both.client.command(*command), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{each.name}: {done.stderr}"
    return done.stdout


def _found(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    assert match, text
    return float(match[1])


def _requests(count: int) -> Measure:
    """Pages from nginx."""

    def measure(each: Place, folder: Path) -> float:
        with servers.nginx(each.both.server, each.both.server_ipv4, folder):
            url = f"http://{each.both.server_ipv4}:{servers.NGINX_PORT}/"
            text = _client(each, "ab", "-q", "-n", str(count), "-c", "20", url)
        assert _found(r"Failed requests:\s+(\d+)", text) == 0, text
        return _found(r"Requests per second:\s+([\d.]+)", text)

    return measure


def _queries(count: int) -> Measure:
    """Counters of Redis."""

    def measure(each: Place, folder: Path) -> float:
        with servers.redis(each.both.server, each.both.server_ipv4, folder):
            where = ("-h", each.both.server_ipv4, "-p", str(servers.REDIS_PORT))
            command = ("redis-benchmark", *where, "-n", str(count), "-c", "20", "-k", "0", "-t", "incr", "--csv")
            return _found(r'"INCR","([\d.]+)"', _client(each, *command))

    return measure


def _transactions(each: Place, folder: Path) -> float:
    """SELECT 1 of PostgreSQL, which makes a process for each connection."""
    pgbench = servers.postgresql_program("pgbench")
    assert pgbench
    (folder / "select.sql").write_text("SELECT 1;\n")
    with servers.postgresql(each.both.server, each.both.server_ipv4, folder):
        where = ("-h", each.both.server_ipv4, "-p", str(servers.POSTGRESQL_PORT), "-U", "postgres")
        load = ("-C", "-n", "-c", "4", "-t", str(TRANSACTIONS), "-f", str(folder / "select.sql"))
        text = _client(each, str(pgbench), *where, *load, "postgres")
    return _found(r"tps = ([\d.]+)", text)


if __name__ == "__main__":
    print(json.dumps(run(short="--short" in sys.argv[1:]), indent=1))
