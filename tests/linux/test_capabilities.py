"""Which capabilities are in force after a start, and where the kernel needs CAP_BPF for everything."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from twctl.linux import capabilities, libbpf
from twctl.linux.capabilities import Capability, lower, restore

ALL = (1 << 41) - 1
OURS = sum(1 << capability for capability in Capability)


class Process:
    """The sets of a process that may have everything."""

    def __init__(self) -> None:
        self.effective, self.permitted = ALL, ALL

    def change(self, effective: Callable[[int, int], int]) -> None:
        """As capset(2)."""
        self.effective = effective(self.effective, self.permitted) & self.permitted


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    """What the module changes."""
    made = Process()
    monkeypatch.setattr(capabilities, "_change", made.change)
    return made


def opened(_path: Path) -> int:
    """A kernel that opens a pinned map without CAP_BPF."""
    return os.open(os.devnull, os.O_RDONLY)


def refused(_path: Path) -> int:
    """A kernel before 5.19."""
    raise PermissionError


def test_only_what_the_start_needs_goes_out_of_force(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """All other capabilities stay."""
    monkeypatch.setattr(libbpf, "obj_get", opened)
    lower(Path("/nowhere"))
    assert ALL & ~OURS == process.effective


def test_cap_bpf_stays_where_a_map_cannot_be_opened_without(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon has to read its maps."""
    monkeypatch.setattr(libbpf, "obj_get", refused)
    lower(Path("/nowhere"))
    assert ALL & ~OURS | 1 << Capability.BPF == process.effective


def test_a_reload_has_them_again_as_far_as_they_are_permitted(process: Process) -> None:
    """A container may have fewer."""
    process.permitted = ALL & ~(1 << Capability.SYS_RESOURCE)
    process.effective = 0
    restore()
    assert OURS & ~(1 << Capability.SYS_RESOURCE) == process.effective
