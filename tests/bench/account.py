"""What a connection costs in mode vestigial, event by event: how many runs of each program, and nanoseconds of each.

The kernel counts and times its programs itself (kernel.bpf_stats_enabled); its clock's own part, as an empty program
shows it, is taken off. A pair of programs of ours, attached before the probes and after them, tells the state
events apart. Client and server are on one machine here, so the probes see the events of both ends.

As root, `python -m tests.bench.account` runs it alone.
"""

import contextlib
import ctypes
import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.blame import statistics_enabled
from tests.bench.table import PROGRAMS
from tests.bench.ways import NONE, OURS, Place, place, taking_turns
from tests.load.guards import BOTH, standing
from tests.load.programs import Programs
from twctl.linux import libbpf
from twctl.table.shared import bpf_folder

CLOSES, ROUNDS, SECONDS = 100_003, 5, 4
STATES = (
    *("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT"),
    *("LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"),
)  # of include/net/tcp_states.h, by their number
SHOWN = {
    "guard_ingress": "guard, a segment that comes in",
    "guard_egress": "guard, a segment that goes out",
    "raw_tracepoint__inet_sock_set_state": "probe, its first copy at a state event",
    "again__inet_sock_set_state": "probe, its second copy at a state event",
}
# Single operations that the kernel runs on request, of the benchmark of the table.
OPERATIONS = {
    "insert_expired": "insertion into the table",
    "lookup_miss": "look-up that misses",
    "lookup_hit": "look-up that hits",
}
STOPWATCH = """
struct spent { u64 ns, count; };
struct watch { u64 since, sk; struct spent spent[256]; };
BPF_PERCPU_ARRAY(watches, struct watch, 1);

int before(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0;
	struct watch *w = watches.lookup(&zero);

	if (!w)
		return 0;
	w->sk = ctx->args[0];
	w->since = bpf_ktime_get_ns();
	return 0;
}

int after(struct bpf_raw_tracepoint_args *ctx)
{
	u64 now = bpf_ktime_get_ns();
	u32 zero = 0;
	struct watch *w = watches.lookup(&zero);
	struct spent *s;

	/* another socket's: an event that interrupted this one took the watch */
	if (!w || w->sk != ctx->args[0])
		return 0;
	s = &w->spent[(ctx->args[1] << 4 | ctx->args[2]) & 255];
	s->ns += now - w->since;
	s->count++;
	return 0;
}

int nothing(struct __sk_buff *skb) { return 0; }
"""


@dataclass(frozen=True)
class Spent:
    """Nanoseconds in so many runs."""

    ns: int = 0
    runs: int = 0

    def __sub__(self, earlier: "Spent") -> "Spent":
        return Spent(self.ns - earlier.ns, self.runs - earlier.runs)

    @property
    def each(self) -> float:
        """Of one run."""
        return self.ns / max(1, self.runs)


def run(*, short: bool = False) -> dict[str, Any]:
    """A row for each program, state event and operation; then a whole connection. short: programs and state events."""
    count = 20_011 if short else CLOSES
    stopwatch = Stopwatch()
    empty = stopwatch.empty()
    programs = _programs(count, empty)
    parts = programs | _events(stopwatch, count)
    return parts if short else parts | _programs(count, empty, 8) | _operations() | _whole(programs)


def fdinfo(fd: int) -> Spent:
    """What a program has done so far."""
    shown = Path(f"/proc/self/fdinfo/{fd}").read_text()
    fields = dict(line.split(":", 1) for line in shown.splitlines())
    return Spent(int(fields["run_time_ns"]), int(fields["run_cnt"]))


def _so_far(ours: Place, folder: Path) -> dict[str, Spent]:
    """What the programs have done so far: pinned ones, and those on the device, which call the guard's."""
    found = {}
    for programs in standing(ours.both.client, ours.both.device).values():
        for name, number in programs:
            if name in BOTH:
                fd = libbpf.libbpf().bpf_prog_get_fd_by_id(ctypes.c_uint32(number))
                found[name.replace("twctl", "guard")] = fdinfo(fd)
                os.close(fd)
    for path in sorted(folder.iterdir(), key=lambda path: (path.name not in SHOWN, SHOWN.get(path.name, path.name))):
        fd = libbpf.obj_get(path)
        found.setdefault(path.name, fdinfo(fd))
        os.close(fd)
    return found


@contextlib.contextmanager
def _served(name: str, threads: int = 1) -> Iterator[Place]:
    with place(name) as each, each.serving("--server-threads", str(threads)):
        yield each


def _programs(count: int, empty: float, threads: int = 1) -> dict[str, Any]:
    """Runs of each program and their time, for each of so many connections."""
    load = ("--count", str(count), "--threads", str(threads))
    with _served(OURS, threads) as ours, ours.watched() as one, statistics_enabled():
        assert one
        folder = one.pins / "current/programs"
        ours.closes(*load)
        before = _so_far(ours, folder)
        ours.closes(*load)
        after = _so_far(ours, folder)
    spent = {name: after[name] - before[name] for name in after}
    return {
        f"account: {SHOWN.get(name, name)}{f', {threads} client threads' if threads > 1 else ''}": {
            "runs a connection": round(each.runs / count, 2),
            "ns a run": round(each.each - empty),
            "us a connection": round((each.each - empty) * each.runs / count / 1000, 3),
        }
        for name, each in spent.items()
        if each.runs >= count // 100  # not those that the daemon runs now and then
    }


class Stopwatch:
    """Two programs at the state event's tracepoint: one is attached before the probes, the other after them."""

    def __init__(self) -> None:
        import bcc  # noqa: PLC0415 - Debian's, and heavy

        os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
        self._bpf: Any = bcc.BPF(text=STOPWATCH.encode())
        kind = bcc.BPF.RAW_TRACEPOINT
        self._fds = {name: int(self._bpf.load_func(name.encode(), kind).fd) for name in ("before", "after")}
        self._nothing = int(self._bpf.load_func(b"nothing", bcc.BPF.SCHED_CLS).fd)
        self._attach = bcc.lib.bpf_attach_raw_tracepoint

    @contextlib.contextmanager
    def attached(self, name: str) -> Iterator[None]:
        """The program of this name, `before` or `after`; what is attached later runs later."""
        link = int(self._attach(self._fds[name], b"inet_sock_set_state"))
        assert link >= 0, os.strerror(-link)
        try:
            yield
        finally:
            os.close(link)

    def take(self) -> dict[tuple[int, int], Spent]:
        """What each change of state took since the last look; from 0 on again."""
        watches = self._bpf[b"watches"]
        per_cpu = watches[0]
        found = {}
        for i in range(256):
            spent = Spent(sum(each.spent[i].ns for each in per_cpu), sum(each.spent[i].count for each in per_cpu))
            if spent.runs:
                found[i >> 4, i & 15] = spent
        watches.clear()
        return found

    def empty(self) -> float:
        """Nanoseconds that the kernel's clock shows of a program that does nothing."""
        packet = ctypes.create_string_buffer(64)
        opts = libbpf.TestRun(
            sz=ctypes.sizeof(libbpf.TestRun), data_in=ctypes.addressof(packet), data_size_in=64, repeat=300_000
        )
        with statistics_enabled():
            before = fdinfo(self._nothing)
            result = libbpf.libbpf().bpf_prog_test_run_opts(self._nothing, ctypes.byref(opts))
            assert result == 0, os.strerror(-result)
            return (fdinfo(self._nothing) - before).each


def _events(stopwatch: Stopwatch, count: int) -> dict[str, Any]:
    """Each change of state: what both copies of the probe take, above a tracepoint without them."""
    with _served(NONE) as none, stopwatch.attached("before"), stopwatch.attached("after"):
        none.closes("--count", str(count))
    without = stopwatch.take()
    with _served(OURS) as ours, stopwatch.attached("before"), ours.watched(), stopwatch.attached("after"):
        ours.closes("--count", str(count))
        stopwatch.take()
        ours.closes("--count", str(count))
        spent = stopwatch.take()
    floor = statistics.median(each.each for each in without.values() if each.runs >= count // 2)
    return {
        f"account: both copies, {STATES[before]} to {STATES[after]}": {
            "runs a connection": round(each.runs / count, 2),
            "ns a run": round(each.each - floor),
            "us a connection": round((each.each - floor) * each.runs / count / 1000, 3),
        }
        for (before, after), each in sorted(spent.items())
        if each.runs >= count // 100
    }


def _operations() -> dict[str, Any]:
    programs = Programs(PROGRAMS, 65_536)
    programs.nanoseconds("insert_evicting", 2 * 65_536)
    empty = statistics.median(programs.nanoseconds("nothing") for _ in range(ROUNDS))
    results = {}
    for name, what in OPERATIONS.items():
        if name == "lookup_hit":
            programs.nanoseconds("insert_evicting", 65_536)
        ns = statistics.median(programs.nanoseconds(name) for _ in range(ROUNDS))
        results[f"account: {what}, alone"] = {"ns a run": round(ns - empty)}
    return results


def _whole(programs: Mapping[str, Any]) -> dict[str, Any]:
    """A connection's time in turn with the programs and without; what of the difference is time in the programs."""
    took: dict[str, list[float]] = {NONE: [], OURS: []}
    for each in taking_turns((NONE, OURS), ROUNDS):
        with each.watched(), each.serving():
            each.closes("--seconds", "2")
            took[each.name].append(1e6 / each.closes("--seconds", str(SECONDS))["per_second"])
    ours, none = (statistics.median(took[name]) for name in (OURS, NONE))
    more = statistics.median(a - b for a, b in zip(took[OURS], took[NONE], strict=True))
    return {
        "account: a connection, against no TIME_WAIT": {
            "vestigial us": round(ours, 2),
            "no TIME_WAIT us": round(none, 2),
            "ratio": round(ours / none, 3),
            "us more": round(more, 2),
            "of them in programs": round(sum(row["us a connection"] for row in programs.values()), 2),
        }
    }


if __name__ == "__main__":
    print(json.dumps(run(short="--short" in sys.argv[1:]), indent=1))
