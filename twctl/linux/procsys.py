"""/proc/sys as the journal of sysctls reaches it, in one network namespace or another."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from twctl.linux import netns as namespaces
from twctl.linux.netns import attempt_inside, cookie

# In a container /proc/sys is read-only; whoever runs one can mount net/ of the host's here.
MOUNTED = Path("/host/proc/sys")


class Access(Protocol):
    """How sysctls are reached; namespaces by name, None for our own. All raise TwctlError or OSError."""

    def cookie(self, netns: str | None) -> int:
        """What no other namespace has had since boot."""

    def read(self, netns: str | None, name: str) -> int:
        """The value in force."""

    def write(self, netns: str | None, name: str, value: int) -> None:
        """Set it."""

    def elsewhere(self, cookies: Collection[int]) -> AbstractContextManager[Mapping[int, str | None]]:
        """Paths by cookie to those that can be entered, whatever they are called; valid until the block ends."""

    def sees(self, netns: str | None) -> bool:
        """Whether a namespace that had this name (None: it was our own), and is not found elsewhere, is gone."""


class Kernel:
    """/proc/sys of the running kernel: net/ is that of the thread that opens it, wherever it is mounted."""

    def cookie(self, netns: str | None) -> int:
        """See Access."""
        return cookie(netns)

    def read(self, netns: str | None, name: str) -> int:
        """See Access."""
        return int(attempt_inside(netns, _path(name).read_text))

    def write(self, netns: str | None, name: str, value: int) -> None:
        """See Access."""
        attempt_inside(netns, lambda: _path(name).write_text(str(value)))

    def elsewhere(self, cookies: Collection[int]) -> AbstractContextManager[Mapping[int, str | None]]:
        """See Access."""
        return namespaces.paths(cookies)

    def sees(self, netns: str | None) -> bool:
        """See Access."""
        return namespaces.sees_all() if netns is None else namespaces.sees_names_beside(netns)


def _path(name: str) -> Path:
    return Path(MOUNTED if (MOUNTED / "net").is_dir() else "/proc/sys", *name.split("."))
