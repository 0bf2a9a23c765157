"""What who is not root is told; tests/kernel/test_reach.py has everybody's commands, and `ip netns exec`."""

import os
import sys
from pathlib import Path

import pytest

from twctl.commands import reach
from twctl.errors import TwctlError

NOBODY = 65534


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/opt/twctl/bin/twctl", "status"], "sudo /opt/twctl/bin/twctl status"),
        (["twctl", "table", "--remote", "a b"], "sudo twctl table --remote 'a b'"),
        (["/src/twctl/__main__.py", "top"], f"sudo {sys.executable} -m twctl top"),
    ],
)
def test_who_is_not_root_has_a_line_to_paste(argv: list[str], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However twctl was called."""
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    with pytest.raises(TwctlError) as refused:
        reach.as_root()
    assert f"not root (run it as root: {line})" == str(refused.value)


def test_root_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its capabilities are: the kernel tells."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    reach.as_root()


@pytest.mark.parametrize(
    ("of_sys", "of_pins", "hidden"),
    [
        (("sysfs", "blue"), ("sysfs", "blue"), True),
        (("sysfs", "blue"), ("bpf", "bpf"), False),
        (("sysfs", "sysfs"), ("sysfs", "sysfs"), False),
        (("", ""), ("", ""), False),
    ],
    ids=["ip netns exec", "with a bpffs of its own", "a host without bpffs", "no /sys"],
)
def test_only_ip_netns_exec_hides_pins(
    of_sys: tuple[str, str],
    of_pins: tuple[str, str],
    hidden: bool,  # noqa: FBT001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its /sys bears the namespace's name."""
    (tmp_path / "blue").touch()
    monkeypatch.setattr(reach, "NAMESPACES", tmp_path)
    monkeypatch.setattr(reach, "mount_of", lambda path: of_sys if path == Path("/sys") else of_pins)
    pins = Path("/sys/fs/bpf/twctl")
    if hidden:
        with pytest.raises(TwctlError, match=f"^'ip netns exec blue' hides {pins} .*nsenter --net={tmp_path}/blue"):
            reach.in_sight(pins)
    else:
        reach.in_sight(pins)
