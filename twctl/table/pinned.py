"""What a loader has pinned in one folder: maps are opened and mapped into memory, programs opened and asked."""

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from struct import calcsize

from twctl.errors import TwctlError
from twctl.linux import libbpf

_PAGE = mmap.PAGESIZE


def store(memory: mmap.mmap, at: int, format_: str, number: int) -> None:
    """Write a number of this format (struct's) in one store: who reads meanwhile sees the old one or the new one.

    struct.pack_into does not: it clears the bytes first.
    """
    memoryview(memory)[at : at + calcsize(format_)].cast(format_)[0] = number  # type: ignore[call-overload]


class Pinned:
    """The folders maps/ and programs/.

    :raises TwctlError: if nothing is pinned there.
    """

    def __init__(self, current: Path, *, writable: bool = False) -> None:
        self._pins = current
        self._access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        if not (current / "maps").is_dir():
            raise TwctlError(f"no table is pinned at {current}", "start 'twctl run' as root first")

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep others from running the programs that share inbox, outbox and dues: the daemon and `twctl drain`.

        :raises TwctlError: if the pins were removed meanwhile.
        """
        try:
            folder = os.open(self._pins / "programs", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise self._removed() from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _removed(self) -> TwctlError:
        return TwctlError(f"the table at {self._pins} was removed", "start 'twctl run' again")

    def fd(self, name: str) -> int:
        """Open a map; the caller closes it.

        :raises TwctlError: without the right to, or if the pins were removed meanwhile.
        """
        try:
            return libbpf.obj_get(self._pins / "maps" / name)
        except FileNotFoundError as error:
            raise self._removed() from error
        except OSError as error:
            raise TwctlError(f"cannot open {self._pins / 'maps' / name}: {error.strerror}", "run as root") from error

    def has(self, name: str) -> bool:
        """Whether there is such a map: some are there only if they are wanted."""
        return (self._pins / "maps" / name).exists()

    def attach(self, name: str, cgroup: Path) -> int:
        """Attach a pinned program of type SOCK_OPS to a cgroup; returns the link's descriptor (raises OSError)."""
        with contextlib.ExitStack() as opened:
            program = libbpf.obj_get(self._pins / "programs" / name)
            opened.callback(os.close, program)
            folder = os.open(cgroup, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
            opened.callback(os.close, folder)
            return libbpf.link_create(program, folder, libbpf.CGROUP_SOCK_OPS, 0)

    def program(self, name: str) -> libbpf.Program:
        """Open a pinned program."""
        return libbpf.Program(self._pins / "programs" / name)

    def map(self, name: str, size: int) -> mmap.mmap:
        """Map an array of `size` bytes into memory."""
        fd = self.fd(name)
        try:
            return mmap.mmap(fd, -(-size // _PAGE) * _PAGE, mmap.MAP_SHARED, self._access)
        finally:
            os.close(fd)

    def update(self, name: str, key: bytes, value: bytes) -> None:
        """Set one element of a map (raises OSError)."""
        fd = self.fd(name)
        try:
            libbpf.map_update(fd, key, value)
        finally:
            os.close(fd)

    @cached_property
    def _probes(self) -> dict[str, list[int]]:
        """Programs that are attached (descriptors), by what to: they are pinned as HOW__WHAT."""
        programs: dict[str, list[int]] = {}
        for pin in (self._pins / "programs").iterdir():
            how, separator, what = pin.name.partition("__")
            place = f"{how} {what}" if "func" in how else what  # entry and exit of a function are two
            if separator:
                programs.setdefault(place, []).append(libbpf.obj_get(pin))
        return programs

    def close(self) -> None:
        """Close the programs that `nested` opened; memory goes with the last one who reads it."""
        for programs in self.__dict__.pop("_probes", {}).values():
            for program in programs:
                os.close(program)

    def nested(self) -> int:
        """Events that the probes did not see, as they came on a CPU in the middle of another one.

        The kernel runs no program a second time inside of itself. Of two at one place one sees it (observe.c,
        is_first). The events of all namespaces count.
        """
        return sum(libbpf.misses(programs[0]) for programs in self._probes.values() if len(programs) == 1)
