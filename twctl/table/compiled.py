"""Compile the C sources, load and attach their programs: the only module with bcc, and so with LLVM, in it."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from twctl.addresses import FAMILIES
from twctl.errors import TwctlError
from twctl.table.connects import CONNECTS, SEARCHED, SEARCHING
from twctl.table.shared import bpf_folder
from twctl.table.sources import source

RECONCILERS = ("take", "adopt", "sweep", "finish", "collect", "dismiss", "epoch")
GUARDS = ("guard_ingress", "guard_egress")
NEEDED_RELEASE = (5, 12)
# Before it arm64's JIT did not know atomic exchange, of which the kernel says ENOTSUPP where the JIT must do
# (bpf_prog_select_runtime): a number that has no name for programs.
ARM64_RELEASE, ARM64_REFUSES = (5, 18), "Unknown error 524"
ARM64_FENTRY = (6, 4)
STATE_EVENT = b"raw_tracepoint__inet_sock_set_state"
AGAIN = "again__inet_sock_set_state"
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
        "wires",
        "witnesses",
        "tallies",
        "failures",
        "listener",
    ),
)


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


def compiled(  # noqa: PLR0913, PLR0917 - what to compile, and how to call it
    file: str, flags: list[str], programs: Sequence[str], kind: str, what: str, shared: Mapping[str, int] | None = None
) -> tuple[Any, dict[str, int]]:
    """Compile a file, load these programs of it; returns bcc's object and their descriptors.

    shared: descriptors of maps that are there already, which take the place of those that the file declares.

    :raises TwctlError: with the reason, where the kernel or the compiler refuses.
    """
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    bcc = _bcc()
    failure = ""
    with _quiet() as lines:
        try:
            made = bcc.BPF(text=source(file).encode(), cflags=flags)
            # The instructions name a map by its descriptor's number; the kernel looks what that is when it loads them.
            # bcc itself would open a pinned map by ID, for which it needs CAP_SYS_ADMIN.
            for name, fd in (shared or {}).items():
                if (own := map_descriptor(made, name)) >= 0:
                    os.dup2(fd, own, inheritable=False)
            return made, {name: made.load_func(name, getattr(bcc.BPF, kind)).fd for name in programs}
        except Exception as error:  # noqa: BLE001 - bcc raises nothing more precise
            failure = str(error)
    hint = "run 'twctl check' to see what this kernel allows"
    if lacking := lacks(failure, running_release(), os.uname().machine):
        failure, lines = f"Linux {os.uname().release} has no {lacking}", []
        hint = "twctl needs Linux 5.15 or later, on arm64 5.18" if "atomic" in lacking else hint
    raise TwctlError(f"the {what} does not load: {_reason(lines, failure)}", hint)


class UnmeasuredError(Exception):
    """The kernel refuses the program that measures connect()'s search for a port."""


class Probes:
    """The probes of one kind, compiled, loaded and attached. flags: for the compiler; probe: tracepoint or fentry.

    searches: with what measures connect()'s search for a port, which is loaded and not attached.

    :raises UnmeasuredError: if that is refused; then nothing is attached.
    """

    def __init__(self, flags: list[str], probe: str, *, searches: bool = False) -> None:
        flags = [*flags, "-DPROBE_FENTRY"] if probe == "fentry" else flags
        flags = [*flags, "-DMEASURE_SEARCH"] if searches else flags
        self.bpf, self.programs = compiled("observe.c", flags, RECONCILERS, "RAW_TRACEPOINT", f"{probe} probe")
        self._again: dict[str, int] = {}
        self._maps = (*MAPS, CONNECTS, SEARCHING) if searches else MAPS
        if searches:
            self.programs[SEARCHED] = self._load_searched()
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

    def _load_searched(self) -> int:
        try:
            with _quiet() as lines:
                return int(self.bpf.load_func(SEARCHED, _bcc().BPF.SOCK_OPS).fd)
        except Exception as error:
            self.bpf.cleanup()
            raise UnmeasuredError(_reason(lines, str(error))) from error

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
        return {name: _bcc().lib.bpf_table_fd(self.bpf.module, name.encode()) for name in self._maps}


def _attach_raw_tracepoint(program: int) -> int:
    """Attach a second program to the tracepoint, which bcc itself would not; returns the link's descriptor."""
    fd = int(_bcc().lib.bpf_attach_raw_tracepoint(program, b"inet_sock_set_state"))
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), AGAIN)
    return fd


def map_descriptor(made: Any, name: str) -> int:  # noqa: ANN401 - bcc has no types
    """Descriptor of a map of what `compiled` made; below 0 if it has none of that name."""
    return int(_bcc().lib.bpf_table_fd(made.module, name.encode()))


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


def lacks(failure: str, release: tuple[int, ...], machine: str) -> str:
    """What a kernel of this release has not got yet, if this failure comes of that; empty if not."""
    if "Invalid argument" in failure and release < NEEDED_RELEASE:
        return "atomic exchange in BPF (5.12)"
    if ARM64_REFUSES in failure and machine == "aarch64" and release < ARM64_RELEASE:
        return "atomic exchange in BPF on arm64 (5.18)"
    if "Failed to attach BPF to" in failure and machine == "aarch64" and release < ARM64_FENTRY:
        return "direct calls of ftrace, which fentry needs, on arm64 (6.4)"
    return ""


def running_release() -> tuple[int, ...]:
    """Version of the running kernel, as far as the second number."""
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])


def _reason(lines: list[str], failure: str) -> str:
    told = [line for line in lines if "error:" in line or line.startswith("bpf:") or "not permitted" in line]
    return (told or [failure])[0].strip()
