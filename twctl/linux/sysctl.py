"""Sysctls that twctl manages while it runs: journalled before they are changed, put back also after a crash."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from twctl.errors import TwctlError
from twctl.linux.netns import cookie, inside

FOLDER = Path("/run/twctl")
# In a container /proc/sys is read-only; whoever runs one can mount net/ of the host's here.
MOUNTED = Path("/host/proc/sys")
# Key of [sysctl] to the sysctl's full name.
NAMES = {
    "tcp_fin_timeout": "net.ipv4.tcp_fin_timeout",
    "tcp_tw_reuse": "net.ipv4.tcp_tw_reuse",
    "tcp_tw_reuse_delay": "net.ipv4.tcp_tw_reuse_delay",
    "tcp_max_tw_buckets": "net.ipv4.tcp_max_tw_buckets",
    "nf_conntrack_tcp_timeout_time_wait": "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
}


class Access(Protocol):
    """How sysctls are reached; namespaces by name, None for our own. All raise TwctlError or OSError."""

    def cookie(self, netns: str | None) -> int:
        """What no other namespace has had since boot."""

    def read(self, netns: str | None, name: str) -> int:
        """The value in force."""

    def write(self, netns: str | None, name: str, value: int) -> None:
        """Set it."""


class Kernel:
    """/proc/sys of the running kernel: net/ is that of the thread that opens it, wherever it is mounted."""

    def cookie(self, netns: str | None) -> int:
        """See Access."""
        return cookie(netns)

    def read(self, netns: str | None, name: str) -> int:
        """See Access."""
        return int(inside(netns, _path(name).read_text))

    def write(self, netns: str | None, name: str, value: int) -> None:
        """See Access."""
        inside(netns, lambda: _path(name).write_text(str(value)))


def _path(name: str) -> Path:
    return Path(MOUNTED if (MOUNTED / "net").is_dir() else "/proc/sys", *name.split("."))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One sysctl that was changed: where (name of the namespace), what it was, what we wrote; a line of the journal."""

    namespace: str | None
    cookie: int
    name: str
    before: int
    written: int


class Journal:
    """What is to be put back, in a file that is written before anything is changed."""

    def __init__(self, path: Path, access: Access | None = None) -> None:
        self._path = path
        self._access: Access = access or Kernel()

    def keep(self, wanted: Container[str], cookies: Container[int]) -> list[str]:
        """Put everything back but these sysctls (full names) of these namespaces; returns what was left alone."""
        entries = self._load()
        stays = [entry for entry in entries if entry.name in wanted and entry.cookie in cookies]
        reports = [line for entry in entries if entry not in stays for line in self._put_back(entry)]
        self._save(stays)
        return reports

    def set(self, wanted: Mapping[str, int], netns: str | None) -> None:
        """Set these sysctls (full names) in a namespace; what the journal has of it already is what was there before.

        :raises TwctlError: if one cannot be read or set; then all of this namespace are as they were.
        """
        entries = self._load()
        known = {(entry.cookie, entry.name): entry for entry in entries}
        fresh = [self._entry(known, netns, name, value) for name, value in wanted.items()]
        mine = {(entry.cookie, entry.name) for entry in fresh}
        self._save([entry for entry in entries if (entry.cookie, entry.name) not in mine] + fresh)
        try:
            for entry in fresh:
                self._access.write(entry.namespace, entry.name, entry.written)
        except OSError as error:
            self.leave(entry.cookie)
            raise TwctlError(
                f"cannot set {entry.name}: {error.strerror}", "run as root, or leave it out of [sysctl]"
            ) from error

    def leave(self, cookie: int, through: str | None = None) -> list[str]:
        """Put back what was set in a namespace; returns what was left alone, a line each.

        through: path that leads there, if its name does not any more.
        """
        entries = self._load()
        mine = [entry for entry in entries if entry.cookie == cookie]
        reports = [line for entry in mine for line in self._put_back(entry, through)]
        if mine:
            self._save([entry for entry in entries if entry.cookie != cookie])
        return reports

    def _entry(self, known: Mapping[tuple[int, str], Entry], where: str | None, name: str, value: int) -> Entry:
        cookie = self._access.cookie(where)
        try:
            before = self._access.read(where, name)
        except OSError as error:
            message = f"this kernel has no {name} in network namespace {where or '(own)'}: {error.strerror}"
            raise TwctlError(message, "leave it out of [sysctl], or load the module that brings it") from error
        entry = known.get((cookie, name))
        return Entry(where, cookie, name, entry.before if entry else before, value)

    def restore(self) -> list[str]:
        """Put everything back; returns what was left alone, a line each. Harmless when there is nothing."""
        reports = [line for entry in self._load() for line in self._put_back(entry)]
        self._save([])
        return reports

    def kept(self) -> dict[str, bool]:
        """Whether each sysctl that was set still has that value, in every namespace where it was."""
        found: dict[str, bool] = {}
        for entry in self._load():
            with contextlib.suppress(TwctlError, OSError):
                as_set = self._access.read(entry.namespace, entry.name) == entry.written
                found[entry.name] = found.get(entry.name, True) and as_set
        return found

    def _put_back(self, entry: Entry, through: str | None = None) -> Iterator[str]:
        where = through or entry.namespace
        try:
            if self._access.cookie(where) != entry.cookie:
                yield f"{entry.name} of network namespace {entry.namespace} is not put back: another has that name now"
                return
            now = self._access.read(where, entry.name)
            if now == entry.written:
                self._access.write(where, entry.name, entry.before)
            elif now != entry.before:
                yield f"{entry.name} is left at {now}: somebody else changed it from {entry.written}"
        except (TwctlError, OSError) as error:
            yield f"{entry.name} of network namespace {entry.namespace or '(own)'} is not put back: {error}"

    def _load(self) -> list[Entry]:
        try:
            return [Entry(**entry) for entry in json.loads(self._path.read_text())]
        except FileNotFoundError:
            return []

    def _save(self, entries: Sequence[Entry]) -> None:
        """Before anything is changed: a crash in between puts back what is there already, which changes nothing."""
        if not entries:
            if self._path.exists():  # where the file system is read-only, there is none, and no way to remove one
                self._path.unlink()
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        with part.open("w") as file:
            json.dump([dataclasses.asdict(entry) for entry in entries], file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path)


def journal_of(pins: Path) -> Journal:
    """Return the journal of the daemon that pins there."""
    return Journal(FOLDER / f"{pins.name}.json")
