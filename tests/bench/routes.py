"""What a host with 1,000,000 BGP routes costs: time to read them, memory, CPU while they change; and many namespaces.

Run as root: `python -m tests.bench.routes [ROUTES]`. That many real routes go into a namespace made for it (40 s for a
million), and real changes are followed there. Each figure of memory is that of a fresh process.
"""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.load.netns import namespace

ROUTES = 1_000_000
SHORT_ROUTES = 30_000
CHANGES = 10_000  # what the queue for notifications holds
NAMESPACES = 100


def run(routes: int = ROUTES, *, short: bool = False) -> dict[str, Any]:
    """Every figure with its goal. Needs root. short: few routes."""
    routes = SHORT_ROUTES if short else routes
    with _host(routes) as name:
        load, storm, passing = _fresh("load", name), _fresh("storm", name), _fresh("passing", name)
    seconds, share = load["seconds"], storm["us"] * CHANGES / 1e6
    return {
        "routes, read": load | {"routes": routes, "goal": 10, "met": seconds <= 10},
        "routes, share of a CPU at 10,000 changes a second": {
            "share": round(share, 3),
            **storm,
            "goal": 0.2,
            "met": share <= 0.2,
        },
        "routes, a change that matters": passing,
        "routes, memory": {
            "import pyroute2 kB": _import_kb("import pyroute2"),
            "import all kB": _import_kb("import twctl.routes.watcher"),
        },
        "routes, each of many namespaces": _fresh("many"),
    }


def _fresh(what: str, *arguments: str) -> dict[str, Any]:
    """A function of this module's in a Python that has done nothing else."""
    found: dict[str, Any] = json.loads(_python("-m", "tests.bench.routes", what, *arguments))
    return found


def _python(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout


def _import_kb(statement: str) -> int:
    """Resident memory that an import adds to a Python which has done nothing else."""
    code = f"from tests.bench.routes import _resident_kb as kb\nbefore = kb()\n{statement}\nprint(kb() - before)"
    return int(_python("-c", code))


def _resident_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise LookupError("VmRSS")


@contextlib.contextmanager
def _host(routes: int) -> Iterator[str]:
    """A host with subnets, and routes of 24 bits through four gateways, outside of the subnets but for 256."""
    with namespace() as made:
        setup = ["link add eth1 type veth peer name far1", "link set eth1 up", "link set far1 up"]
        setup += [f"addr add 10.{n}.0.1/24 dev eth1" for n in range(3)] + ["addr add 11.0.0.1/16 dev eth1"]
        _batch(made.name, setup)
        _batch(made.name, (f"route add {_prefix((11 << 16) + n)} via 10.0.0.{n % 4 + 2}" for n in range(routes)))
        yield made.name


def _prefix(number: int) -> str:
    return f"{number >> 16}.{number >> 8 & 255}.{number & 255}.0/24"


def _batch(name: str, lines: Iterable[str]) -> None:
    with subprocess.Popen(["ip", "-n", name, "-batch", "-"], stdin=subprocess.PIPE, text=True) as batch:
        assert batch.stdin is not None
        for line in lines:
            batch.stdin.write(line + "\n")
    if batch.returncode != 0:
        raise RuntimeError(f"ip -batch ended with {batch.returncode}")


def load(name: str) -> dict[str, Any]:
    """Start a watcher; then make an on-link prefix appear, which means reading once more."""
    from twctl.routes.watcher import RouteWatcher  # noqa: PLC0415 - memory before it counts

    before = _resident_kb()
    started = time.perf_counter()
    with RouteWatcher({}, name) as watcher:
        seconds = time.perf_counter() - started
        after = _resident_kb()
        entries = len(watcher.trie())
        _batch(name, ["route add 223.0.0.0/16 dev eth1"])
        watcher.follow()
        started = time.perf_counter()
        watcher.follow()
        again = time.perf_counter() - started
    return {"seconds": round(seconds, 2), "again": round(again, 2), "kB": after - before, "prefixes": entries}


def storm(name: str) -> dict[str, Any]:
    """Gateway routes outside of all subnets come and go, as a BGP daemon has them."""
    routes = [f"{_prefix((222 << 16) + n)} via 10.0.0.2 proto bgp metric 20" for n in range(CHANGES // 2)]
    return _followed(name, [f"route {verb} {route}" for verb in ("add", "del") for route in routes])


def passing(name: str) -> dict[str, Any]:
    """Gateway routes inside a subnet, every one of which pyroute2 has to decode."""
    routes = [f"10.2.0.{n}/32 via 10.0.0.2" for n in range(2, 252)]
    return _followed(name, [f"route {verb} {route}" for verb in ("add", "del") for route in routes])


def _followed(name: str, changes: list[str]) -> dict[str, Any]:
    from twctl.routes.watcher import RouteWatcher  # noqa: PLC0415 - the processes that measure memory do without

    with RouteWatcher({}, name) as watcher:
        watcher.follow()
        _batch(name, changes)
        before, started = watcher.changes, time.process_time()
        while watcher.changes - before < len(changes):
            watcher.follow()
        spent = time.process_time() - started
        assert watcher.resyncs == 0
    return {"changes": len(changes), "us": round(spent / len(changes) * 1e6, 2)}


def many() -> dict[str, Any]:
    """Watchers of many namespaces: what each adds."""
    from twctl.routes.watcher import RouteWatcher  # noqa: PLC0415 - memory before it counts

    with contextlib.ExitStack() as stack:
        names = [stack.enter_context(namespace()).name for _ in range(NAMESPACES + 1)]
        stack.enter_context(RouteWatcher({}, names.pop()))
        kilobytes, descriptors, started = _resident_kb(), _descriptors(), time.perf_counter()
        for name in names:
            stack.enter_context(RouteWatcher({}, name))
        return {
            "kB": round((_resident_kb() - kilobytes) / NAMESPACES, 1),
            "descriptors": (_descriptors() - descriptors) / NAMESPACES,
            "threads": threading.active_count() - 1,
            "ms": round((time.perf_counter() - started) / NAMESPACES * 1e3, 2),
        }


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


if __name__ == "__main__":
    ways = {"load": load, "storm": storm, "passing": passing, "many": many}
    if sys.argv[1:2] and sys.argv[1] in ways:
        print(json.dumps(ways[sys.argv[1]](*sys.argv[2:])))  # type: ignore[operator]
    else:
        print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
