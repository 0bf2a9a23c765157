"""The short-lived process that compiles, loads, attaches and pins; what compiled.py imports is in no other process.

Run as `python -m twctl.table.loader PID`, by the process of this number, with a request (JSON) on standard input, for
the probes and their table or for the guard of a table that is pinned. Prints one JSON object: the answer or, with exit
status 1, {"error": ..., "hint": ...}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.errors import TwctlError
from twctl.linux import btf, capabilities, libbpf
from twctl.linux.capabilities import Capability
from twctl.linux.signals import end_with, put_off
from twctl.table import fields
from twctl.table.compiled import GUARDS, MAPS, Probes, UnmeasuredError, compiled, map_descriptor
from twctl.table.layout import BLOCKS, LATE_SECONDS, Layout
from twctl.table.maps import META, PROBES, RING, Table
from twctl.table.records import TICK_SHIFT
from twctl.table.sources import (
    CLOCK_MONOTONIC_COARSE,
    EARLIER_GUARD,
    compile_flags,
    guard_identity,
    table_identity,
)

# DAC_READ_SEARCH: the sources, in a checkout that belongs to somebody else.
NEEDED = (Capability.DAC_READ_SEARCH, Capability.NET_ADMIN, Capability.PERFMON, Capability.BPF)


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What to load, and the empty folder under bpffs to pin it in.

    probe: auto, fentry or tracepoint. searches: whether connect()'s search for a port is to be measured. earlier: where
    the guard of an earlier table still stands, how long its vestiges live (ns), as Table.lives; else empty.
    """

    pins: str
    capacity: dict[str, dict[str, int]]
    probe: str
    earlier: list[int] = dataclasses.field(default_factory=list)
    searches: bool = False

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
    """Which probe runs, why fentry does not where it was asked for, and why connect() is not measured where it was."""

    probe: str
    refused: str
    unmeasured: str = ""


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
    """Run the loader as a process of its own, so that LLVM's memory goes with it.

    Ctrl-C and a service manager's SIGTERM are meant for the daemon, which stops when its start is over.
    """
    with put_off():
        done = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-m", "twctl.table.loader", str(os.getpid())],
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


def _attach(request: Request, seed: int) -> tuple[Probes, Loaded]:
    with contextlib.closing(btf.Btf()) as types:
        offsets = fields.macros(types)
    flags = compile_flags(request.layout, offsets, 0, seed)
    if request.probe == "tracepoint":
        probes, unmeasured = _measuring(request, flags, "tracepoint")
        return probes, Loaded("tracepoint", "", unmeasured)
    try:
        late = compile_flags(request.layout, offsets, LATE_SECONDS * 10**9, seed)
        probes, unmeasured = _measuring(request, late, "fentry")
        return probes, Loaded("fentry", "", unmeasured)
    except TwctlError as refused:
        if request.probe == "fentry":
            raise
        probes, unmeasured = _measuring(request, flags, "tracepoint")
        return probes, Loaded("tracepoint", refused.message, unmeasured)


def _measuring(request: Request, flags: list[str], probe: str) -> tuple[Probes, str]:
    """The probes, with what measures connect() if that is wanted and can be had; and why it cannot."""
    if request.searches:
        try:
            return Probes(flags, probe, searches=True), ""
        except UnmeasuredError as error:
            return Probes(flags, probe), str(error)
    return Probes(flags, probe), ""


def _prepare(maps: dict[str, int], request: Request, probe: str, seed: int) -> None:
    """Write what the programs read before the first namespace is enrolled: until then they ignore every event."""
    layout = request.layout
    for i, (class_, family) in enumerate((class_, family) for class_ in Class for family in FAMILIES):
        ring = layout.ring(family, class_)
        value = RING.pack(0, ring.base, ring.capacity, ring.block_shift, *(0 for _ in range(BLOCKS)))
        libbpf.map_update(maps["rings"], struct.pack("=I", i), value)
    meta, now_ns = bytearray(META.size), time.monotonic_ns()
    numbers = {
        "identity": table_identity(layout, request.probe, searches=request.searches),
        "loaded": now_ns,
        "seed": seed,
        "probe": PROBES.index(probe),
        "swept": now_ns >> TICK_SHIFT,
        "guard": EARLIER_GUARD if request.earlier else 0,
    }
    for name, number in numbers.items():
        struct.pack_into(f"={META.fields[name].format}", meta, META.fields[name].offset, number)
    for name, lives in (("time_wait", request.earlier[: len(Class)]), ("fin_wait2", request.earlier[len(Class) :])):
        struct.pack_into(f"={len(lives)}Q", meta, META.fields[name].offset, *lives)
    libbpf.map_update(maps["meta"], bytes(4), bytes(meta))


def _pin(loaded: Probes, pins: Path) -> None:
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
        offsets = fields.macros(types, fields.GUARD)
    flags = [*compile_flags(table.layout, offsets, seed=table.seed), "-DLATER"]
    shared = {name: table.fd(name) for name in MAPS}
    made, programs = compiled("guard.c", flags, GUARDS, "SCHED_CLS", "guard", shared)
    pins = {folder / "programs" / name: fd for name, fd in programs.items()}
    pins[folder / "maps" / "actions"] = map_descriptor(made, "actions")
    for pin, fd in pins.items():
        pin.unlink(missing_ok=True)
        libbpf.obj_pin(fd, pin)
    table.guard = guard_identity()


def main() -> int:
    """Serve one request, with no other rights than it needs.

    Who asked has the lock of the pins: when that is killed, the next who has it must not meet this process there.
    """
    end_with(int(sys.argv[1]))
    asked = json.load(sys.stdin)
    try:
        capabilities.keep(*NEEDED)
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
