"""Where the kernel objects are pinned: bpffs, the folder and its lock, and the way back to nothing."""

import contextlib
import fcntl
import os
import subprocess
import time
from pathlib import Path

from twctl.errors import TwctlError
from twctl.table import loader

MOUNTED_BY_US = "twctl"  # the source name of a bpffs that we mounted
# `locked` holds the lock for some microseconds; `twctl top` asks each second, and must keep no daemon from starting.
LOCK_TRIES, LOCK_PAUSE = 20, 0.01  # s


class Pins:
    """The folder under bpffs, mode 0700.

    current/ holds the objects in use (maps/, programs/, links/), next/ those that a loader is just pinning.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.current = root / "current"
        self._lock: int | None = None

    def open(self) -> None:
        """Make the folder, mounting bpffs if need be, and lock it for a daemon until the process ends.

        :raises TwctlError: if another daemon holds the lock, or there can be no bpffs here.
        """
        try:
            if mount_of(self.root.parent)[0] != "bpf":
                _mount_bpffs(self.root.parent)
            self.root.mkdir(mode=0o700, exist_ok=True)
            self.root.chmod(0o700)
        except OSError as error:
            raise TwctlError(
                f"cannot make {self.root}: {error}", "run as root; pins must be a folder under bpffs"
            ) from error
        self.lock()

    @property
    def mounted(self) -> bool:
        """Whether the bpffs that they lie on was mounted for them."""
        return mount_of(self.root.parent)[1] == MOUNTED_BY_US

    def lock(self) -> None:
        """Take the lock that a daemon holds as long as it lives.

        :raises TwctlError: if another process has it.
        """
        folder = os.open(self.root, os.O_RDONLY | os.O_CLOEXEC)
        for _ in range(LOCK_TRIES):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock = folder
                return
            time.sleep(LOCK_PAUSE)
        os.close(folder)
        raise TwctlError(f"another twctl uses {self.root}", "stop it first, or choose another folder with pins")

    def load(self, request: loader.Request) -> loader.Loaded:
        """Load anew and put the result in place of what is there.

        The old objects go first: two probes would count each session twice, in two tables.

        :raises TwctlError: if this kernel does not take the probes; then nothing is pinned any more.
        """
        self.unpin()
        (self.root / "next").mkdir(mode=0o700)
        try:
            loaded = loader.load(request)
        except TwctlError:
            self.unpin()
            raise
        (self.root / "next").rename(self.current)
        return loaded

    def unpin(self) -> None:
        """Unpin everything: links first, so that no program runs on."""
        for folder in (self.current, self.root / "next"):
            for part in ("links", "programs", "maps"):
                for pin in sorted((folder / part).glob("*")):
                    pin.unlink()
                if (folder / part).exists():
                    (folder / part).rmdir()
            if folder.exists():
                folder.rmdir()

    def locked(self) -> bool:
        """Whether a daemon holds the lock."""
        try:
            folder = os.open(self.root, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not see each other
        except BlockingIOError:
            return True
        finally:
            os.close(folder)
        return False

    def unlock(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self) -> bool:
        """Leave nothing: pins, folder, and a bpffs that was mounted for them. False if there was nothing.

        :raises TwctlError: if a daemon is running, other than this process.
        """
        found = self.root.exists()
        if found:
            if self._lock is None:
                self.lock()
            self.unpin()
            self.root.rmdir()
            self.unlock()
        _unmount_unused(self.root.parent)
        return found


def _unmount_unused(point: Path) -> None:
    """Unmount a bpffs of ours that has no pins any more."""
    # maps.debug and progs.debug are the kernel's own.
    left = [pin for pin in point.iterdir() if pin.suffix != ".debug"] if point.exists() else []
    if mount_of(point)[1] == MOUNTED_BY_US and not left:
        subprocess.run(["umount", point], check=False, capture_output=True)  # noqa: S603, S607


def mount_of(path: Path) -> tuple[str, str]:
    """Return file system type and source of the mount that a path lies on."""
    best = ("", "", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        point, kind, source = fields[4], *fields[fields.index("-") + 1 :][:2]
        if (path == Path(point) or Path(point) in path.parents) and len(point) >= len(best[0]):
            best = (point, kind, source)
    return best[1], best[2]


def _mount_bpffs(point: Path) -> None:
    done = subprocess.run(["mount", "-t", "bpf", MOUNTED_BY_US, point], check=False, capture_output=True, text=True)  # noqa: S603, S607
    if done.returncode:
        raise TwctlError(
            f"there is no bpffs at {point} and it cannot be mounted: {done.stderr.strip()}",
            "mount -t bpf bpf /sys/fs/bpf",
        )
