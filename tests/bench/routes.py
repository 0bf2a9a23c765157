"""What a host with 1,000,000 BGP routes costs: time to read them, resident memory, time per notification.

Run as root: `python tests/bench/routes.py [ROUTES]`. That many real routes go into a namespace made for it (40 s for a
million); the notification figures come from synthetic messages, byte for byte as the kernel writes them. Each figure
of memory is that of a fresh process.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from tests import ROOT

ROUTES = 1_000_000
SYNTHETIC_MESSAGES = 100_000


def run(routes: int = ROUTES) -> dict[str, float]:
    """Results by name; seconds, kilobytes (kB, resident) and microseconds (us) as the name says. Needs root."""
    found: dict[str, float] = {
        "pyroute2_import_kb": _import_kb("import pyroute2"),
        "routes_import_kb": _import_kb("import twctl.routes.watcher"),
    }
    found |= {"notification_us": _per_message(covers=0), "notification_near_subnets_us": _per_message(covers=5)}
    namespace = f"twr-bench-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    try:
        _fill(namespace, routes)
        found |= {"routes": routes} | json.loads(_python("tests/bench/routes.py", "--load", namespace))
    finally:
        subprocess.run(["ip", "netns", "del", namespace], check=True)
    return found


def _python(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, text=True, capture_output=True).stdout


def _import_kb(statement: str) -> int:
    """Resident memory that an import adds to a Python which has done nothing else."""
    code = f"from tests.bench.routes import _resident_kb as kb\nbefore = kb()\n{statement}\nprint(kb() - before)"
    return int(_python("-c", code))


def _resident_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise LookupError("VmRSS")


def _fill(namespace: str, routes: int) -> None:
    """A host with three subnets, and routes of 24 bits through four gateways, outside of the subnets but for 256."""
    setup = ["link set lo up", "link add eth1 type veth peer name far1", "link set eth1 up", "link set far1 up"]
    setup += [f"addr add 10.{n}.0.1/24 dev eth1" for n in range(3)] + ["addr add 11.0.0.1/16 dev eth1"]
    lines = (
        f"route add {(11 << 16) + n >> 16}.{n >> 8 & 255}.{n & 255}.0/24 via 10.0.0.{n % 4 + 2}" for n in range(routes)
    )
    batch = subprocess.Popen(["ip", "-n", namespace, "-batch", "-"], stdin=subprocess.PIPE, text=True)
    assert batch.stdin is not None
    for line in setup:
        batch.stdin.write(line + "\n")
    for line in lines:
        batch.stdin.write(line + "\n")
    batch.stdin.close()
    if batch.wait() != 0:
        raise RuntimeError(f"ip -batch ended with {batch.returncode}")


def _load(namespace: str) -> dict[str, float]:
    """Start a watcher in this process; then make an on-link prefix appear, which means reading once more."""
    from twctl.routes.watcher import RouteWatcher  # noqa: PLC0415 as above

    before = _resident_kb()
    started = time.perf_counter()
    with RouteWatcher({}, namespace) as watcher:
        loaded = time.perf_counter() - started
        after = _resident_kb()
        entries = len(watcher.trie())
        started = time.perf_counter()
        subprocess.run(["ip", "-n", namespace, "route", "add", "12.0.0.0/16", "dev", "eth1"], check=True)
        watcher.drain()
        seen = time.perf_counter() - started
        watcher.drain()
        again = time.perf_counter() - started - seen
    return {
        "load_seconds": loaded,
        "load_kb": after - before,
        "resident_kb": after,
        "prefixes": entries,
        "new_prefix_seconds": seen,
        "reread_seconds": again,
    }


def _per_message(covers: int) -> float:
    """Microseconds to drop a notified gateway route, next to on-link prefixes of so many lengths."""
    from twctl.linux import netlink  # noqa: PLC0415 the processes that measure memory import nothing before
    from twctl.routes import messages as rtnetlink  # noqa: PLC0415 the processes that measure memory import nothing before

    screen = rtnetlink.Screen((socket.AF_INET, 10 << 24, 24 - n) for n in range(covers))
    message = _gateway_route()
    buffer = bytearray(netlink.BUFFER_BYTES)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    spent = 0.0
    with ours, theirs:
        for _ in range(SYNTHETIC_MESSAGES // 100):
            for _ in range(100):
                theirs.send(message)
            started = time.perf_counter()
            for _ in range(100):
                for _ in screen.select(buffer, ours.recv_into(buffer)):
                    raise AssertionError("this route is irrelevant")
            spent += time.perf_counter() - started
    return spent / SYNTHETIC_MESSAGES * 1e6


def _gateway_route() -> bytes:
    """RTM_NEWROUTE of 203.0.113.0/24 via 10.0.0.2 as a BGP daemon adds it (protocol 186), in the kernel's order."""
    from twctl.linux import netlink  # noqa: PLC0415
    from twctl.routes import messages as rtnetlink  # noqa: PLC0415

    values = ((15, struct.pack("=I", 254)), (1, b"\xcb\0\x71\0"), (6, struct.pack("=I", 20)), (5, b"\x0a\0\0\2"))
    attributes = b"".join(struct.pack("=HH", 8, type_) + value for type_, value in values)
    body = rtnetlink.RTMSG.pack(socket.AF_INET, 24, 0, 0, 254, 186, 0, rtnetlink.UNICAST, 0) + attributes
    return netlink.HEADER.pack(16 + len(body), 24, 0x400, 0, 0) + body


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        print(json.dumps(_load(sys.argv[2])))
    else:
        sys.path.insert(0, str(ROOT))
        print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
