"""The short-lived process that compiles, loads, attaches and pins: the only one with bcc, and so with LLVM, in it.

Run as `python -m twctl.table.loader` with a request (JSON) on standard input, for the probes and their table or for the
guard of a table that is pinned. Prints one JSON object: the answer or, with exit status 1, {"error": ..., "hint": ...}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.errors import TwctlError
from twctl.linux import btf, libbpf
from twctl.table.layout import BLOCKS, Layout
from twctl.table.maps import LIVES, META, RING, Table
from twctl.table.sources import (
    CLOCK_MONOTONIC_COARSE,
    bpf_folder,
    compile_flags,
    guard_identity,
    source,
    table_identity,
)

LATE_NANOSECONDS = 5_000_000_000  # fentry: how long after its timer a vestige waits for the end it is told of
# In the order of struct meta (vestige.h).
PROBES = ("tracepoint", "fentry")
RECONCILERS = ("take", "adopt", "sweep", "finish", "collect", "dismiss", "epoch")
NEEDED_RELEASE = (5, 12)
STATE_EVENT = b"raw_tracepoint__inet_sock_set_state"
AGAIN = "again__inet_sock_set_state"
GUARDS = ("guard_ingress", "guard_egress")


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What to load, and the empty folder under bpffs to pin it in."""

    pins: str
    capacity: dict[str, dict[str, int]]
    probe: str  # auto, fentry or tracepoint

    @property
    def layout(self) -> Layout:
        """Sizes of the table to load."""
        return Layout(
            {family: {Class(i): sizes[Class(i).label] for i in Class} for family, sizes in self.capacity.items()}
        )


@dataclasses.dataclass(frozen=True, slots=True)
class GuardRequest:
    """Load the guard of the table that is pinned in this folder, and pin it there."""

    table: str


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """Which probe runs, and why fentry does not where it was asked for."""

    probe: str
    refused: str


def load(request: Request) -> Loaded:
    """Load the probes and a new table.

    :raises TwctlError: with the loader's own message and hint.
    """
    return Loaded(**_run(request))


def load_guard(table: Path) -> None:
    """Load the guard of the table that is pinned in this folder.

    :raises TwctlError: with the loader's own message and hint.
    """
    _run(GuardRequest(str(table)))


def _run(request: Request | GuardRequest) -> dict[str, Any]:
    """Run the loader as a process of its own, so that LLVM's memory goes with it."""
    done = subprocess.run(
        [sys.executable, "-m", "twctl.table.loader"],
        input=json.dumps(dataclasses.asdict(request)),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise TwctlError(
            f"the loader failed: {lines[-1]}", "run 'twctl check' to see what this kernel allows"
        ) from None
    if "error" in answer:
        raise TwctlError(answer["error"], answer["hint"])
    return dict(answer)


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Collect what bcc and LLVM print on standard error (the reason of a failure); at the end it stands in the list."""
    lines: list[str] = []
    read, write = os.pipe()
    os.set_blocking(write, False)
    saved = os.dup(2)
    os.dup2(write, 2)
    os.close(write)
    try:
        yield lines
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        with os.fdopen(read, errors="replace") as pipe:
            lines += pipe.read().splitlines()


def _compile(file: str, flags: list[str], programs: Sequence[str], kind: str, what: str) -> tuple[Any, dict[str, int]]:
    """Compile a file, load these programs of it; returns bcc's object and their descriptors.

    :raises TwctlError: with the reason, where the kernel or the compiler refuses.
    """
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    bcc = _bcc()
    failure = ""
    with _quiet() as lines:
        try:
            made = bcc.BPF(text=source(file).encode(), cflags=flags)
            return made, {name: made.load_func(name, getattr(bcc.BPF, kind)).fd for name in programs}
        except Exception as error:  # noqa: BLE001 - bcc raises nothing more precise
            failure = str(error)
    hint = "run 'twctl check' to see what this kernel allows"
    if "Invalid argument" in failure and running_release() < NEEDED_RELEASE:
        failure, lines = f"Linux {os.uname().release} has no atomic exchange in BPF (5.12)", []
        hint = "twctl needs Linux 5.15 or later"
    if any("could not open bpf map" in line for line in lines):  # bcc opens pinned maps by number
        hint = "give it CAP_SYS_ADMIN and CAP_SYSLOG, as deploy/systemd/vestigial.conf does"
    raise TwctlError(f"the {what} does not load: {_reason(lines, failure)}", hint)


class _Object:
    """One compiled and attached bcc module."""

    def __init__(self, flags: list[str], probe: str) -> None:
        flags = [*flags, "-DPROBE_FENTRY"] if probe == "fentry" else flags
        self.bpf, self.programs = _compile("observe.c", flags, RECONCILERS, "RAW_TRACEPOINT", f"{probe} probe")
        self._again: dict[str, int] = {}
        if probe == "tracepoint":
            self.programs[AGAIN] = self._load_again()
            self._again[AGAIN] = _attach_raw_tracepoint(self.programs[AGAIN])

    def _load_again(self) -> int:
        """Load the program of the state event a second time (observe/twice.h); returns its descriptor."""
        first = self.bpf.funcs.pop(STATE_EVENT)  # bcc loads no function twice that it has in its list
        try:
            return int(self.bpf.load_func(STATE_EVENT, _bcc().BPF.RAW_TRACEPOINT).fd)
        finally:
            self.bpf.funcs[STATE_EVENT] = first

    def links(self) -> dict[str, int]:
        """Attached programs: name and descriptor of the link."""
        groups = (self.bpf.raw_tracepoint_fds, self.bpf.kfunc_entry_fds, self.bpf.kfunc_exit_fds)
        return self._again | {
            name.decode() if isinstance(name, bytes) else name: fd for group in groups for name, fd in group.items()
        }

    def probes(self) -> dict[str, int]:
        """The programs that are attached: name and descriptor."""
        return {name.decode(): function.fd for name, function in self.bpf.funcs.items() if b"__" in name}

    def maps(self) -> dict[str, int]:
        """Maps: name and descriptor. Not through BPF[name]: its JSON of two-dimensional arrays is broken."""
        return {name: _bcc().lib.bpf_table_fd(self.bpf.module, name.encode()) for name in MAPS}


def _attach_raw_tracepoint(program: int) -> int:
    """Attach a second program to the tracepoint, which bcc itself would not; returns the link's descriptor."""
    fd = int(_bcc().lib.bpf_attach_raw_tracepoint(program, b"inet_sock_set_state"))
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), AGAIN)
    return fd


MAPS = (
    *(f"{part}_{family}" for part in ("records", "lines", "starts", "seen", "classes") for family in FAMILIES),
    *(
        "rings",
        "living",
        "counters",
        "namespaces",
        "inbox",
        "outbox",
        "marks",
        "meta",
        "enrolments",
        "settings",
        "dues_map",
        "tos",
        "closing",
        "pending",
        "tallies",
    ),
)


def _bcc() -> Any:  # noqa: ANN401 - bcc has no types
    try:
        import bcc  # noqa: PLC0415 - this is the only process that may carry it
    except ImportError:
        raise TwctlError(
            "Python cannot import bcc",
            "install Debian's python3-bpfcc (PyPI's bcc is something else) and run deploy/setup",
        ) from None
    if not hasattr(bcc, "BPF"):
        raise TwctlError(
            "the installed bcc is not the BPF compiler collection",
            "pip uninstall bcc, and install Debian's python3-bpfcc",
        )
    return bcc


def running_release() -> tuple[int, ...]:
    """Version of the running kernel, as far as the second number."""
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])


def _reason(lines: list[str], failure: str) -> str:
    told = [line for line in lines if "error:" in line or line.startswith("bpf:") or "not permitted" in line]
    return (told or [failure])[0].strip()


def _attach(request: Request, seed: int) -> tuple[_Object, Loaded]:
    with contextlib.closing(btf.Btf()) as types:
        offsets = btf.macros(types)
    if request.probe == "tracepoint":
        return _Object(compile_flags(request.layout, offsets, 0, seed), "tracepoint"), Loaded("tracepoint", "")
    try:
        return _Object(compile_flags(request.layout, offsets, LATE_NANOSECONDS, seed), "fentry"), Loaded("fentry", "")
    except TwctlError as refused:
        if request.probe == "fentry":
            raise
        flags = compile_flags(request.layout, offsets, 0, seed)
        return _Object(flags, "tracepoint"), Loaded("tracepoint", refused.message)


def _prepare(maps: dict[str, int], request: Request, probe: str, seed: int) -> None:
    """Write what the programs read before the first namespace is enrolled: until then they ignore every event."""
    layout = request.layout
    for i, (class_, family) in enumerate((class_, family) for class_ in Class for family in FAMILIES):
        ring = layout.ring(family, class_)
        value = RING.pack(0, ring.base, ring.capacity, ring.block_shift, *(0 for _ in range(BLOCKS)))
        libbpf.map_update(maps["rings"], struct.pack("=I", i), value)
    known = (table_identity(layout, request.probe), time.monotonic_ns(), seed, 0, 0, PROBES.index(probe), 0)
    meta = META.pack(*known, *[0] * 2 * LIVES)
    libbpf.map_update(maps["meta"], bytes(4), meta)


def _pin(loaded: _Object, pins: Path) -> None:
    for folder, descriptors in (
        ("maps", loaded.maps()),
        ("programs", loaded.programs | loaded.probes()),
        ("links", loaded.links()),
    ):
        (pins / folder).mkdir(mode=0o700)
        for name, fd in descriptors.items():
            libbpf.obj_pin(fd, pins / folder / name)


def _load(request: Request) -> Loaded:
    seed = secrets.randbits(64)
    loaded, answer = _attach(request, seed)
    _prepare(loaded.maps(), request, answer.probe, seed)
    _pin(loaded, Path(request.pins))
    _find_epoch(libbpf.Program(Path(request.pins, "programs", "epoch")))
    return answer


def _find_epoch(program: libbpf.Program) -> None:
    """Look at jiffies and clock more than once in a jiffy, over three of them: one look is soon after a step."""
    jiffy = time.clock_getres(CLOCK_MONOTONIC_COARSE)
    program.run(1)
    end = time.monotonic() + 3 * jiffy
    while time.monotonic() < end:
        time.sleep(jiffy / 16)
        program.run(0)
    program.close()


def _load_guard(request: GuardRequest) -> None:
    """The programs share the table's maps, and its hash."""
    folder = Path(request.table)
    table = Table(folder, writable=True)
    with contextlib.closing(btf.Btf()) as types:
        offsets = btf.macros(types, btf.GUARD)
    flags = [*compile_flags(table.layout, offsets, seed=table.seed), f'-DPINS="{folder / "maps"}"']
    made, programs = _compile("guard.c", flags, GUARDS, "SCHED_CLS", "guard")
    pins = {folder / "programs" / name: fd for name, fd in programs.items()}
    pins[folder / "maps" / "actions"] = _bcc().lib.bpf_table_fd(made.module, b"actions")
    for pin, fd in pins.items():
        pin.unlink(missing_ok=True)
        libbpf.obj_pin(fd, pin)
    table.guard = guard_identity()


def main() -> int:
    """Serve one request."""
    asked = json.load(sys.stdin)
    try:
        if "table" in asked:
            _load_guard(GuardRequest(**asked))
            answer = {}
        else:
            answer = dataclasses.asdict(_load(Request(**asked)))
        print(json.dumps(answer))  # noqa: T201 - the answer
    except TwctlError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))  # noqa: T201
        return 1
    except OSError as error:
        hint = "run as root (CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN) with bpffs mounted"
        print(json.dumps({"error": f"cannot load and pin: {error}", "hint": hint}))  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
