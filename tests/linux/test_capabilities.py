"""Which capabilities are in force after a start, and which are given up; where the kernel needs CAP_BPF for all."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from twctl.linux import capabilities, libbpf
from twctl.linux.capabilities import RARE, Capability, Sets, in_force, lower, permitted, restore

ALL = (1 << 41) - 1
OURS = sum(1 << capability for capability in RARE)
BPF = 1 << Capability.BPF

# Prints the permitted capabilities of a process that gave all but two up, and of one that it starts.
GIVEN_UP = """
import subprocess
from twctl.linux.capabilities import Capability, keep
keep(Capability.NET_ADMIN, Capability.BPF)
print(open("/proc/self/status").read(), end="")
subprocess.run(["cat", "/proc/self/status"])
"""


class Thread:
    """The sets of a thread that may have everything."""

    def __init__(self) -> None:
        self.sets = Sets(ALL, ALL, 0)

    def change(self, change: Callable[[Sets], Sets]) -> None:
        """As capset(2)."""
        then = change(self.sets)
        assert not then.effective & ~then.permitted
        self.sets = then


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Thread:
    """What the module changes."""
    made = Thread()
    monkeypatch.setattr(capabilities, "_change", made.change)
    monkeypatch.setattr(capabilities, "_sets", lambda: made.sets)
    return made


def opened(_path: Path) -> int:
    """A kernel that opens a pinned map without CAP_BPF."""
    return os.open(os.devnull, os.O_RDONLY)


def refused(_path: Path) -> int:
    """A kernel before 5.19."""
    raise PermissionError


def test_only_what_is_rarely_needed_goes_out_of_force(thread: Thread, monkeypatch: pytest.MonkeyPatch) -> None:
    """All other capabilities stay, and all stay permitted."""
    monkeypatch.setattr(libbpf, "obj_get", opened)
    lower(Path("/nowhere"))
    assert Sets(ALL & ~OURS, ALL, 0) == thread.sets


def test_cap_bpf_stays_where_a_map_cannot_be_opened_without(thread: Thread, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon has to read its maps."""
    monkeypatch.setattr(libbpf, "obj_get", refused)
    lower(Path("/nowhere"))
    assert ALL & ~OURS | BPF == thread.sets.effective


def test_a_reload_has_them_again_as_far_as_they_are_permitted(thread: Thread) -> None:
    """A container may have fewer."""
    thread.sets = Sets(0, ALL & ~(1 << Capability.SYS_RESOURCE), 0)
    restore()
    assert OURS & ~(1 << Capability.SYS_RESOURCE) == thread.sets.effective


def test_one_is_in_force_for_a_moment(thread: Thread) -> None:
    """Where it is permitted; afterwards all is as before, also after an error."""
    thread.sets = Sets(BPF, BPF | 1 << Capability.SYS_ADMIN, 0)
    for capability, wanted in ((Capability.SYS_ADMIN, BPF | 1 << Capability.SYS_ADMIN), (Capability.PERFMON, BPF)):
        with contextlib.suppress(ArithmeticError), in_force(capability):
            assert wanted == thread.sets.effective
            raise ArithmeticError
        assert BPF == thread.sets.effective
    assert (True, False) == (permitted(Capability.SYS_ADMIN), permitted(Capability.PERFMON))


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root has none")
def test_what_was_given_up_comes_back_to_nobody() -> None:
    """Neither to the process, which is still root, nor to what it starts."""
    told = subprocess.run([sys.executable, "-c", GIVEN_UP], capture_output=True, text=True, check=True).stdout
    wanted = 1 << Capability.NET_ADMIN | BPF
    masks = [int(line.split()[1], 16) for line in told.splitlines() if line.startswith(("CapPrm", "CapEff"))]
    assert [wanted] * 4 == masks
