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


@pytest.mark.parametrize(
    ("text", "given", "found"),
    [
        ('pins = "/bpf/one"\nunknown = 1\n', None, "/bpf/one"),
        ('pins = "/bpf/one"\nmode = [\n', None, "/bpf/one"),
        ("mode = 7\n", "/bpf/two", "/bpf/two"),
        (None, "/bpf/two", "/bpf/two"),
        ("[", None, "/sys/fs/bpf/twctl"),
    ],
)
def test_a_bad_file_does_not_keep_from_releasing(  # noqa: PLR0913, PLR0917 - parameters and fixtures
    text: str | None,
    given: str | None,
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nor one that is not there, if the folder is given. One line tells of it."""
    monkeypatch.setattr(reach, "as_root", lambda: None)
    file = tmp_path / "twctl.toml"
    if text is not None:
        file.write_text(text)
    assert Path(found) == reach.pins_to_release(file, Path(given) if given else None)
    told = capsys.readouterr().err
    assert (1, True) == (len(told.splitlines()), told.endswith(f": releasing what is pinned at {found}\n")), told


@pytest.mark.parametrize(("text", "given"), [(None, None), ('pins = "here"\n', None), ("", "here"), ("[", "here")])
def test_what_to_release_has_to_be_known(
    text: str | None, given: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is not there, or the path of the pins is none."""
    monkeypatch.setattr(reach, "as_root", lambda: None)
    if text is not None:
        (tmp_path / "twctl.toml").write_text(text)
    with pytest.raises(TwctlError):
        reach.pins_to_release(tmp_path / "twctl.toml", Path(given) if given else None)
