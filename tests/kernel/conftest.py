"""What the kernel tests share: each probe that this kernel allows."""

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from twctl.table.pins import mount_of
from twctl.table.shared import bpf_folder

BPFFS = Path("/sys/fs/bpf")
# The least that the kernel may refuse: `twctl check` takes several seconds.
FENTRY = """
import os, sys
os.environ["BCC_KERNEL_SOURCE"] = sys.argv[1]
import bcc
bcc.BPF(text=b"KFUNC_PROBE(tcp_time_wait) { return 0; }")
"""


@functools.cache
def _reason_to_skip(probe: str) -> str:
    """Why this probe cannot be tested here; empty if it can. A forced run does not skip."""
    if os.geteuid():
        return "" if os.environ.get("TWCTL_TEST_KERNEL") else "BPF needs root; TWCTL_TEST_KERNEL=1 forces it"
    if probe == "fentry" and not os.environ.get("TWCTL_TEST_FENTRY"):
        tried = [sys.executable, "-c", FENTRY, str(bpf_folder())]
        said = subprocess.run(tried, capture_output=True, text=True, check=False).stderr
        # where it fails otherwise, or the real probe does, the tests are to say so
        return "this kernel refuses fentry; TWCTL_TEST_FENTRY=1 forces it" if "not permitted" in said else ""
    return ""


@pytest.fixture(scope="session", autouse=True)
def bpffs() -> Iterator[None]:
    """Mount bpffs where a new machine has not: some daemons of the tests have no right to."""
    mounted = os.geteuid() == 0 and mount_of(BPFFS)[0] != "bpf"
    if mounted:
        subprocess.run(["mount", "-t", "bpf", "bpf", BPFFS], check=True)
    yield
    if mounted:
        subprocess.run(["umount", BPFFS], check=True)


@pytest.fixture(scope="module", params=["tracepoint", "fentry"])
def probe(request: pytest.FixtureRequest) -> str:
    """Each probe that this kernel allows."""
    if reason := _reason_to_skip(request.param):
        pytest.skip(reason)
    return str(request.param)
