"""Names of cgroups: a socket has the number of its cgroup (version 2), which is the inode number of its folder."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

# A container sees its own part of the tree; whoever runs one can mount the host's /sys/fs/cgroup here.
MOUNTED = Path("/host/sys/fs/cgroup")
# The number that the root of a hierarchy has (its folder's inode); a container may see a lower one in its place.
_ROOT = 1
_UNIT = re.compile(r"[^/]+\.(?:service|scope)(?=/|$)")


def cgroup_paths(proc: Path = Path("/proc")) -> dict[int, str]:
    """The path of every cgroup by its number; paths as in /proc/PID/cgroup. Empty where no hierarchy is mounted.

    A host with version 1 has version 2 beside it, if at all (/sys/fs/cgroup/unified), and sockets have a number there.
    """
    for root in sorted(_mounts(proc), key=lambda each: not each.is_relative_to(MOUNTED)):
        return {folder.stat().st_ino: f"/{folder.relative_to(root)}".replace("/.", "/") for folder in _folders(root)}
    return {}


def root_cgroup(proc: Path = Path("/proc")) -> Path | None:
    """The folder of the cgroup that all others of version 2 are below; None: no mount here shows it."""
    return next((root for root in _mounts(proc) if root.stat().st_ino == _ROOT), None)


def _mounts(proc: Path) -> Iterator[Path]:
    for line in (proc / "self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            yield Path(where.encode().decode("unicode_escape"))


def _folders(root: Path) -> Iterator[Path]:
    """The root and every folder below it; one that is removed meanwhile is left out."""
    for folder, _, _ in os.walk(root):
        if os.path.isdir(folder):  # noqa: PTH112 - there may be thousands, and a Path takes longer than the call
            yield Path(folder)


def unit_of(path: str) -> str:
    """The innermost systemd unit of a path, such as nginx.service; else the path itself."""
    units = _UNIT.findall(path)
    return units[-1] if units else path
