"""What the daemon costs: memory, the loader's time, CPU at 10,000 closes a second; and a million vestiges read."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.load.closes import run as closes
from tests.load.daemon import Daemon, daemon
from tests.load.netns import namespace

MILLION = 1_000_003
RESIDENT_MB, TOP_SHARE = 48, 0.2  # goals
SOURCES = ("--inline", "--threads", "2", "--port", "20000-20003", "--source", "127.0.1.1+16")
ROOMY = {"net.ipv4.tcp_rfc1337": 1, "net.ipv4.tcp_max_tw_buckets": 4_000_000}
CAPACITY = "[capacity.ipv4]\nloopback = 2097152\n"


def run(*, short: bool = False) -> dict[str, Any]:
    """Every figure with its goal. short: a tenth of the time, and of the sessions."""
    seconds, sessions = (8, 100_003) if short else (60, MILLION)
    return _memory_and_cpu(seconds) | _loader(1 if short else 3) | _scrape(sessions, top=not short)


def _status(one: Daemon, field: str) -> int:
    assert one.process
    for line in Path(f"/proc/{one.process.pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise LookupError(field)


def cpu_seconds(one: Daemon) -> float:
    """What the process has used so far, user and system."""
    assert one.process
    return _cpu_seconds(one.process.pid)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_and_cpu(seconds: int) -> dict[str, Any]:
    """With the default configuration, so with the look at the ports; at rest, and at its highest under load."""
    with namespace(ROOMY) as ns, daemon(ns, config=CAPACITY) as one:
        rest = _status(one, "VmRSS") / 1024
        before, started = cpu_seconds(one), time.monotonic()
        closes(ns, "--seconds", str(seconds), "--rate", "10000", "--close", "client", *SOURCES)
        share = (cpu_seconds(one) - before) / (time.monotonic() - started)
        resident = _status(one, "VmHWM") / 1024
        assert one.process
        llvm = "LLVM" in Path(f"/proc/{one.process.pid}/maps").read_text()
        rounds = one.metric("twctl_reconciliations_total")
    return {
        "daemon, resident memory": {
            "MB at rest": round(rest, 1),
            "MB under load": round(resident, 1),
            "goal": RESIDENT_MB,
            "met": resident <= RESIDENT_MB and not llvm,
        },
        "daemon, share of a CPU at 10,000 closes a second": {
            "share": round(share, 4),
            "comparisons": rounds,
            "goal": 0.01,
            "met": share <= 0.01,
        },
    }


def _loader(times: int) -> dict[str, Any]:
    seconds = []
    for _ in range(times):
        pins = Path(f"/sys/fs/bpf/twctl-bench-{os.getpid()}")
        pins.mkdir(mode=0o700)
        sizes = dict.fromkeys(("loopback", "local", "remote"), 65536)
        request = {"pins": str(pins), "capacity": {"ipv4": sizes, "ipv6": sizes}, "probe": "tracepoint"}
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "twctl.table.loader", str(os.getpid())],
            input=json.dumps(request),
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds.append(time.monotonic() - started)
        for path in sorted(pins.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        pins.rmdir()
    median = statistics.median(seconds)
    return {"loader": {"seconds": round(median, 2), "goal": 1.5, "met": median <= 1.5}}


def _scrape(count: int, *, top: bool) -> dict[str, Any]:
    with namespace(ROOMY) as ns, daemon(ns, config=f"reconcile_interval = 0\n{CAPACITY}") as one:
        closes(ns, "--count", str(count), "--close", "client", *SOURCES, timeout=240)
        seconds = []
        for _ in range(21):
            started = time.monotonic()
            one.get()
            seconds.append(time.monotonic() - started)
        sessions = one.metric("twctl_time_wait_sessions")
        share = _top(one) if top else None
    median = statistics.median(seconds) * 1000
    found = {"scrape over HTTP": {"ms": round(median, 1), "sessions": sessions, "goal": 20, "met": median <= 20}}
    if share is not None:
        met = share <= TOP_SHARE
        found["top"] = {"share of a CPU": round(share, 3), "sessions": sessions, "goal": TOP_SHARE, "met": met}
    return found


def _top(one: Daemon) -> float:
    """Once it runs evenly: without its start and its first reading."""
    command = [sys.executable, "-m", "twctl", "top", *one.options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        time.sleep(4)
        before, started = _cpu_seconds(process.pid), time.monotonic()
        time.sleep(12)
        share = (_cpu_seconds(process.pid) - before) / (time.monotonic() - started)
        process.terminate()
    return share
