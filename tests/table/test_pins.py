"""The pins' folder and its lock, without a kernel."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from twctl.errors import TwctlError
from twctl.table import loader
from twctl.table.pins import Pins, mount_of

REQUEST = loader.Request("", {}, "auto")


def test_a_folder_that_is_not_there_is_not_locked(tmp_path: Path) -> None:
    """Nor is it made."""
    assert not Pins(tmp_path / "none").locked()
    assert not (tmp_path / "none").exists()


def test_one_who_only_asks_keeps_no_daemon_from_starting(tmp_path: Path) -> None:
    """A lock that is held for 50 ms is waited for; one that stays is an error."""
    asking = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    assert not Pins(tmp_path).locked()  # nor do two who ask see each other
    timer = threading.Timer(0.05, os.close, [asking])
    timer.start()
    daemon = Pins(tmp_path)
    daemon.lock()
    timer.join()
    assert Pins(tmp_path).locked()
    with pytest.raises(TwctlError, match="another twctl uses"):
        Pins(tmp_path).lock()
    daemon.unlock()
    assert not Pins(tmp_path).locked()


def test_nothing_is_left_of_a_folder_that_is_removed(tmp_path: Path) -> None:
    """Neither what was pinned in it, nor itself; once it is gone there is nothing more to remove."""
    for part in ("current/links", "current/maps", "next/programs"):
        (tmp_path / "twctl" / part).mkdir(parents=True)
    (tmp_path / "twctl/current/maps/meta").touch()
    (tmp_path / "twctl").chmod(0o700)
    assert Pins(tmp_path / "twctl").remove()
    assert not (tmp_path / "twctl").exists()
    assert not Pins(tmp_path / "twctl").remove()


def test_what_a_daemon_uses_is_not_removed(tmp_path: Path) -> None:
    """Another process is refused; the daemon itself may."""
    daemon = Pins(tmp_path / "twctl")
    daemon.lock()
    (daemon.root / "current").mkdir()
    with pytest.raises(TwctlError, match="another twctl uses"):
        Pins(daemon.root).remove()
    assert daemon.root.exists()
    assert daemon.remove()


def test_no_file_system_is_mounted_over_a_folder(tmp_path: Path) -> None:
    """Where there is no bpffs the start is refused, and what lies there stays to be seen."""
    (tmp_path / "letter").touch()
    before = mount_of(tmp_path)
    with pytest.raises(TwctlError, match="there is no bpffs at"):
        Pins(tmp_path / "twctl").open()
    assert ([tmp_path / "letter"], before) == ([*tmp_path.iterdir()], mount_of(tmp_path))


@pytest.mark.parametrize(("mode", "user"), [(0o755, 0), (0o720, 0), (0o700, 1)])
def test_a_folder_that_others_can_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, user: int
) -> None:
    """Made before us by somebody else, or open to others: neither used nor removed."""
    squatted = tmp_path / "twctl"
    squatted.mkdir()
    squatted.chmod(mode)
    ours = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: ours + user)
    for use in (Pins(squatted).lock, Pins(squatted).remove):
        with pytest.raises(
            TwctlError, match=f"not ours alone: it belongs to user {ours} and has mode {mode:04o}"
        ) as told:
            use()
        assert "remove" not in told.value.hint  # it may be all of a bpffs
    assert mode == squatted.stat().st_mode & 0o777


def test_a_link_is_no_folder(tmp_path: Path) -> None:
    """It would lead where its owner wants."""
    (tmp_path / "twctl").symlink_to(tmp_path)
    with pytest.raises(TwctlError, match="is no folder"):
        Pins(tmp_path / "twctl").lock()


@pytest.mark.parametrize("name", ["file", "file/twctl", "fifo"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    """In one line, by who asks and by who wants it; nobody waits for the other end of a pipe."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    pins = Pins(tmp_path / name)
    for use in (pins.locked, pins.lock):
        with pytest.raises(TwctlError, match=rf"^{pins.root} is no folder \(choose another folder with pins\)$"):
            use()
    if pins.root.exists():
        with pytest.raises(TwctlError, match="is no folder"):
            pins.remove()
    else:
        assert not pins.remove()


@pytest.mark.parametrize(
    ("kind", "name", "refused", "hint"),
    [
        ("bpf", "a/b", FileNotFoundError(2, ""), "make .*/a first, or choose"),
        ("bpf", "twctl.ops", PermissionError(1, ""), "on a bpffs no name has a dot: choose"),
        ("tmpfs", "twctl.ops", PermissionError(1, ""), "choose"),
    ],
)
def test_the_hint_is_about_the_reason(  # noqa: PLR0913, PLR0917 - fixtures, and a row
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, refused: OSError, hint: str
) -> None:
    """Who is root already is not told to become it."""

    def mkdir(_: Path, **__: object) -> None:
        raise refused

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr("twctl.table.pins.mount_of", lambda _: (kind, ""))
    with pytest.raises(TwctlError, match=rf"^cannot make .* \({hint}"):
        Pins(tmp_path / name).lock()


def test_a_start_that_pins_nothing_leaves_no_folder(tmp_path: Path) -> None:
    """Without root it would be one that root's own daemon has to refuse."""
    pins = Pins(tmp_path / "twctl")
    pins.lock()
    assert pins.root.exists()
    pins.unlock()
    assert not pins.root.exists()


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(tmp_path: Path) -> None:
    """A lock on what has no name any more would keep nobody away."""
    before = Pins(tmp_path / "twctl")
    before.lock()
    timer = threading.Timer(0.05, before.unlock)
    timer.start()
    after = Pins(before.root)
    after.lock()
    timer.join()
    assert before.root.exists()
    with pytest.raises(TwctlError, match="another twctl uses"):
        Pins(before.root).lock()
    after.unlock()


def test_what_is_pinned_stays_until_the_new_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If that cannot be loaded, for good; what an earlier loader left half done goes."""
    pins = Pins(tmp_path / "twctl")
    pins.lock()
    for part in ("current/maps/old", "next/maps/half"):
        (pins.root / part).parent.mkdir(parents=True)
        (pins.root / part).touch()

    def refused(_: loader.Request) -> loader.Loaded:
        raise TwctlError("the kernel does not take it", "")

    def loaded(_: loader.Request) -> loader.Loaded:
        assert (pins.current / "maps/old").exists()
        (pins.root / "next/maps").mkdir()
        (pins.root / "next/maps/new").touch()
        return loader.Loaded("tracepoint", "")

    monkeypatch.setattr(loader, "load", refused)
    with pytest.raises(TwctlError, match="does not take it"):
        pins.load(REQUEST)
    assert ["old"] == [file.name for file in pins.root.rglob("*") if file.is_file()]
    monkeypatch.setattr(loader, "load", loaded)
    pins.load(REQUEST)
    assert [pins.current / "maps/new"] == [file for file in pins.root.rglob("*") if file.is_file()]
    pins.remove()
