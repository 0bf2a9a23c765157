"""`twctl check` that does not come to its end leaves nothing, or what the next command finds."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.load import wait_until
from tests.load.daemon import START_SECONDS, twctl

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)


@pytest.fixture
def pins() -> Iterator[Path]:
    """Beside which it makes a folder of its own."""
    made = Path(f"/sys/fs/bpf/twctl-test-check-{os.getpid()}")
    yield made
    assert 0 == twctl("release", "--pins", str(made)).returncode
    assert [] == trials(made)


def trials(pins: Path) -> list[Path]:
    """What it has loaded for a try."""
    return [*pins.parent.glob(f"{pins.name}-check-*")]


def hang_up_ends() -> None:
    """As in a terminal; nohup, which may run the tests, has it ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def trying(pins: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A check whose probe is attached just now."""
    command = [sys.executable, "-m", "twctl", "check", "--pins", str(pins)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet, preexec_fn=hang_up_ends) as process:  # noqa: PLW1509 - no thread is here
        links = pins.with_name(f"{pins.name}-check-{process.pid}") / "next/links"
        wait_until(lambda: links.exists() or process.poll() is not None, timeout=START_SECONDS)
        assert process.poll() is None
        yield process


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
def test_a_signal_leaves_nothing(pins: Path, asked: signal.Signals) -> None:
    """It ends the command all the same."""
    with trying(pins) as process:
        process.send_signal(asked)
        assert 0 != process.wait(START_SECONDS)
    assert [] == trials(pins)


@pytest.mark.parametrize("command", ["check", "release"])
def test_what_was_killed_is_swept_away(pins: Path, command: str) -> None:
    """But not what another check has just loaded."""
    with trying(pins) as process:
        process.kill()
        process.wait()
        killed = trials(pins)
        assert 1 == len(killed)
    with trying(pins) as process:
        os.kill(process.pid, signal.SIGSTOP)
        assert 0 == twctl(command, "--pins", str(pins)).returncode
        assert 1 == len(trials(pins))
        assert killed != trials(pins)
        os.kill(process.pid, signal.SIGCONT)
        assert 0 == process.wait(START_SECONDS)
