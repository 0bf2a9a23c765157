"""Where the kernel objects are pinned: bpffs, the folder and its lock, and the way back to nothing."""

import contextlib
import fcntl
import os
import stat
import subprocess
import time
from pathlib import Path

from twctl.errors import BusyError, TwctlError
from twctl.table import loader

BPFFS = Path("/sys/fs/bpf")
PATH_BYTES = 80  # it becomes part of names that may have 255, in one of them three for each
GUARD = "guard"
_TRIAL = "-check-"
MOUNTED_BY_US = "twctl"  # the source name of a bpffs that we mounted
# `locked` holds the lock for some microseconds; `twctl top` asks each second, and must keep no daemon from starting.
LOCK_TRIES, LOCK_PAUSE = 20, 0.01  # s


class Pins:
    """The folder under bpffs, mode 0700.

    current/ holds the objects in use (maps/, programs/, links/), next/ those that a loader is just pinning. guard/ has
    the guard's links, which may outlive its table (modes/links.py). loaded: whether what is in use was loaded by this
    object.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.current = root / "current"
        self._next = root / "next"
        self._lock: int | None = None
        self.loaded = False

    def open(self) -> None:
        """Make the folder, mounting bpffs if need be, and lock it for a daemon until the process ends.

        :raises TwctlError: if another daemon holds the lock, or there can be no such folder here.
        """
        if len(os.fsencode(self.root)) > PATH_BYTES:
            raise TwctlError(f"{self.root} is too long", f"the path of pins may have {PATH_BYTES} bytes")
        if not self.on_bpffs():
            _mount_bpffs(self.root.parent)
        self.lock()

    @property
    def mounted(self) -> bool:
        """Whether the bpffs that they lie on was mounted for them."""
        return mount_of(self.root.parent)[1] == MOUNTED_BY_US

    def on_bpffs(self) -> bool:
        """Whether anything can be pinned here."""
        return mount_of(self.root.parent)[0] == "bpf"

    def lock(self) -> None:
        """Take the lock that a daemon holds as long as it lives; the folder is made if it is not there.

        :raises TwctlError: if another process has it, or the folder is not ours alone.
        """
        for _ in range(LOCK_TRIES):
            try:
                self._lock = self._try()
            except OSError as error:
                raise _unusable(self.root, error) from error
            if self._lock is not None:
                return
            time.sleep(LOCK_PAUSE)
        raise BusyError(f"another twctl uses {self.root}", "stop it first, or choose another folder with pins")

    def _try(self) -> int | None:
        """Descriptor of the folder, which holds the lock; None if another process has it. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            self.root.mkdir(mode=0o700)
        with contextlib.ExitStack() as undo, contextlib.suppress(BlockingIOError, FileNotFoundError):
            folder = os.open(self.root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
            undo.callback(os.close, folder)
            _refuse_others(self.root, os.fstat(folder))
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(folder), self.root.stat()):  # else who had the lock has just removed it
                undo.pop_all()
                return folder
        return None

    def load(self, request: loader.Request) -> loader.Loaded:
        """Load anew, then put the result in place of what is there.

        The new probes see nothing before a namespace is enrolled: the old ones can stay until the new ones are there.

        :raises TwctlError: if this kernel does not take the probes; then what is pinned is what was.
        """
        _unpin(self._next)
        self._next.mkdir(mode=0o700)
        try:
            loaded = loader.load(request)
        except TwctlError:
            _unpin(self._next)
            raise
        _unpin(self.current)
        self._next.rename(self.current)
        self.loaded = True
        return loaded

    def unpin(self, *, guard: bool = True) -> None:
        """Unpin everything. guard: also its links."""
        for folder in (*[self.root / GUARD] * guard, self.current, self._next):
            _unpin(folder)

    def locked(self) -> bool:
        """Whether a daemon holds the lock. Raises TwctlError if this is no folder."""
        try:
            folder = os.open(self.root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        except FileNotFoundError:
            return False
        except NotADirectoryError as error:
            raise _unusable(self.root, error) from error
        try:
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not see each other
        except BlockingIOError:
            return True
        finally:
            os.close(folder)
        return False

    def unlock(self) -> None:
        """Give the lock back. A folder with nothing in it goes: a start that fails leaves none."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self.root.rmdir()
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
            self.unlock()
        _unmount_unused(self.root.parent)
        return found


def trial_of(root: Path) -> Pins:
    """A folder beside the pins, for what this process loads for a try."""
    return Pins(root.with_name(f"{root.name}{_TRIAL}{os.getpid()}"))


def sweep_trials(root: Path) -> bool:
    """Remove those of processes that were killed, as nobody has their lock; False if there are none."""
    swept, name = False, f"{root.name}{_TRIAL}"
    for folder in [*root.parent.iterdir()] if root.parent.is_dir() else ():
        if folder.name.startswith(name) and folder.name.removeprefix(name).isdecimal():
            with contextlib.suppress(TwctlError, OSError):
                swept |= Pins(folder).remove()
    return swept


def _refuse_others(root: Path, found: os.stat_result) -> None:
    """Who else can write there could have us take over, or remove, what is not ours."""
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        whose = f"it belongs to user {found.st_uid} and has mode {stat.S_IMODE(found.st_mode):04o}"
        raise TwctlError(f"{root} is not ours alone: {whose}", "choose another folder with pins, or look whose it is")


def _unusable(root: Path, error: OSError) -> TwctlError:
    """Why there can be no such folder, and what to do."""
    hint = "choose another folder with pins"
    if isinstance(error, NotADirectoryError):
        return TwctlError(f"{root} is no folder", hint)
    if isinstance(error, FileNotFoundError):
        hint = f"make {root.parent} first, or {hint}"
    elif "." in root.name and mount_of(root.parent)[0] == "bpf":
        hint = f"on a bpffs no name has a dot: {hint}"
    elif os.geteuid():
        hint = "run as root"
    return TwctlError(f"cannot make {root}: {error.strerror}", hint)


def _unpin(folder: Path) -> None:
    """Unpin what is in a folder: links first, so that no program runs on."""
    for part in ("links", "programs", "maps"):
        for pin in sorted((folder / part).glob("*")):
            pin.unlink()
        if (folder / part).exists():
            (folder / part).rmdir()
    if folder.exists():
        folder.rmdir()


def _unmount_unused(point: Path) -> None:
    """Unmount a bpffs of ours that has no pins any more."""
    # maps.debug and progs.debug are the kernel's own.
    left = [pin for pin in point.iterdir() if pin.suffix != ".debug"] if point.is_dir() else []
    if mount_of(point)[1] == MOUNTED_BY_US and not left:
        subprocess.run(["umount", point], check=False, capture_output=True)  # noqa: S603, S607


def mount_of(path: Path) -> tuple[str, str]:
    """Return file system type and source of the mount that a path lies on."""
    path, best = path.resolve(), ("", "", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        point, kind, source = fields[4], *fields[fields.index("-") + 1 :][:2]
        if (path == Path(point) or Path(point) in path.parents) and len(point) >= len(best[0]):
            best = (point, kind, source)
    return best[1], best[2]


def refuse_to_mount(point: Path) -> None:
    """A bpffs belongs where the kernel has the place for it; elsewhere it would hide what is there. TwctlError."""
    if point != BPFFS:
        raise TwctlError(f"there is no bpffs at {point}", f"pins must be a folder below {BPFFS}, or on another bpffs")
    if point.is_mount():
        raise TwctlError(f"what is mounted at {point} is no bpffs", "mount -t bpf bpf DIR, and set pins to DIR/twctl")


def _mount_bpffs(point: Path) -> None:
    refuse_to_mount(point)
    done = subprocess.run(["mount", "-t", "bpf", MOUNTED_BY_US, point], check=False, capture_output=True, text=True)  # noqa: S603, S607
    if done.returncode:
        raise TwctlError(
            f"there is no bpffs at {point} and it cannot be mounted: {done.stderr.strip()}",
            "mount -t bpf bpf /sys/fs/bpf",
        )
