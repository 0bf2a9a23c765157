"""What this kernel and host allow: one line each, with the reason and what to do."""

import contextlib
import dataclasses
import enum
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from twctl.addresses import FAMILIES, host_port
from twctl.advise.host import NEARLY
from twctl.classes import Class
from twctl.errors import TwctlError
from twctl.linux import btf, sockdiag
from twctl.linux.signals import put_off
from twctl.modes.feasible import can_destroy
from twctl.modes.obstacles import obstacles
from twctl.modes.translation import PORTS, look
from twctl.table import fields, loader
from twctl.table.pins import Pins, refuse_to_mount, sweep_trials, trial_of

PORTS_NEARLY = 0.8  # share of a translation's, as of the alert TwctlTranslatedPortsNearlyUsed


class Verdict(enum.StrEnum):
    """How a line of `twctl check` begins."""

    OK = "ok"
    LESS = "less"  # works, but something is seen less exactly
    FAIL = "fail"  # observe cannot work


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One thing that was tried: what, how it went, why, and what to do."""

    what: str
    verdict: Verdict
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:<5}{self.what:<11}{self.reason}{f' ({self.hint})' if self.hint else ''}"


def check(pins: Path) -> Iterator[Line]:
    """Try everything that observe needs, in order; loads the probes for real, in a folder of its own."""
    sweep_trials(pins)
    yield _line("root", _root)
    yield _line("BTF", _btf)
    yield _line("bpffs", lambda: _bpffs(pins))
    yield _line("sock_diag", _sock_diag)
    for probe in ("fentry", "tracepoint"):
        yield _probe(probe, pins)
    yield _destroy()
    yield _guard(pins)
    yield _conntrack()


def _line(what: str, attempt: Callable[[], str]) -> Line:
    try:
        return Line(what, Verdict.OK, attempt())
    except TwctlError as error:
        return Line(what, Verdict.FAIL, error.message, error.hint)


def _root() -> str:
    return f"uid 0, locked memory limit {resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]}"


def _btf() -> str:
    types = btf.Btf()
    offsets = fields.macros(types)
    types.close()
    return f"{btf.VMLINUX} has every field that is used" + (
        "" if "OFFSET_tcp_sock_ao_info" in offsets else ", TCP-AO is not built in"
    )


def _bpffs(pins: Path) -> str:
    if not Pins(pins).on_bpffs():
        refuse_to_mount(pins.parent)
        return f"not mounted at {pins.parent}; 'twctl run' mounts it and 'twctl release' unmounts it"
    return f"mounted at {pins.parent}"


def _sock_diag() -> str:
    diag = sockdiag.SockDiag()
    buffer = memoryview(bytearray(65536))
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            for _ in diag.dump(family, buffer):
                pass
    except OSError as error:
        why = "the tcp_diag module is missing" if error.errno == errno.ENOENT else os.strerror(error.errno or 0)
        raise TwctlError(f"the kernel does not list its TCP sockets: {why}", "modprobe tcp_diag") from error
    finally:
        diag.close()
    return "lists TIME_WAIT sockets"


def _destroy() -> Line:
    """Without it observe works, and truncate does not."""
    try:
        return Line("truncate", Verdict.OK, can_destroy())
    except TwctlError as error:
        return Line("truncate", Verdict.LESS, error.message, error.hint)


def _guard(pins: Path) -> Line:
    """Load the guard for real, and look for what would keep packets from it; without it the other modes work."""
    try:
        with _trial(pins, "tracepoint") as trial:
            loader.load_guard(trial.current)
        found = list(obstacles(None))
    except TwctlError as error:
        return Line("vestigial", Verdict.LESS, error.message, error.hint)
    if found:
        named = "; ".join(each.text for each in found)
        return Line("vestigial", Verdict.LESS, named, "mode vestigial needs --force here")
    reason = "the guard loads, and nothing here keeps packets from it (it cannot answer for TCP-MD5 and TCP-AO)"
    return Line("vestigial", Verdict.OK, reason)


def _conntrack() -> Line:
    """How full it is, and the host's own translation: beyond that connections fail, whatever becomes of TIME_WAIT."""
    found, worst = look("", 1)
    if found is None:
        return Line("conntrack", Verdict.OK, "not in use here")
    refused = "".join(f", {name} {count}" for name, count in (found.refused or {}).items())
    reason = f"{found.entries} of at most {found.most} connections{refused}"
    for each in worst:
        toward = host_port(each.remote, each.remote_port)
        reason += f", {PORTS - each.taken} of {PORTS} ports of {each.source} are left toward {toward}"
    shorter = "a shorter nf_conntrack_tcp_timeout_time_wait in [sysctl]"
    if found.entries >= NEARLY * found.most:
        return Line("conntrack", Verdict.LESS, reason, f"a greater net.netfilter.nf_conntrack_max, or {shorter}")
    if any(each.used > PORTS_NEARLY for each in worst):
        hint = f"{shorter}, connections that are kept alive, or more addresses to translate to"
        return Line("conntrack", Verdict.LESS, reason, hint)
    return Line("conntrack", Verdict.OK, reason)


@contextlib.contextmanager
def _trial(pins: Path, probe: str) -> Iterator[Pins]:
    """Load a small table and a probe in a folder of their own; a signal waits until it is gone."""
    sizes = {family: {class_.label: 256 for class_ in Class} for family in FAMILIES}
    trial = trial_of(pins)
    with put_off():
        try:
            trial.open()
            trial.load(loader.Request(str(trial.root / "next"), sizes, probe))
            yield trial
        finally:
            trial.remove()


def _probe(probe: str, pins: Path) -> Line:
    """Load one probe for real. Without fentry the tracepoint does its work, so its absence is not a failure."""
    try:
        with _trial(pins, probe):
            return Line(probe, Verdict.OK, "loads, attaches and pins")
    except TwctlError as error:
        if probe == "fentry":
            less = "ends are found by comparing with the kernel's list instead"
            return Line(probe, Verdict.LESS, error.message, less)
        return Line(probe, Verdict.FAIL, error.message, error.hint)
