"""Sysctls that twctl manages while it runs: journalled before they are changed, put back also after a crash."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from twctl.errors import TwctlError
from twctl.linux import journal_file
from twctl.linux.journal_file import Entry
from twctl.linux.procsys import Access, Kernel

FOLDER = Path("/run/twctl")
# Key of [sysctl] to the sysctl's full name.
NAMES = {
    "tcp_fin_timeout": "net.ipv4.tcp_fin_timeout",
    "tcp_tw_reuse": "net.ipv4.tcp_tw_reuse",
    "tcp_tw_reuse_delay": "net.ipv4.tcp_tw_reuse_delay",
    "tcp_max_tw_buckets": "net.ipv4.tcp_max_tw_buckets",
    "nf_conntrack_tcp_timeout_time_wait": "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
}
# At 0 there are no TIME_WAIT sockets: what does their duty has to stay until it is put back.
VITAL = NAMES["tcp_max_tw_buckets"]


class Raised(NamedTuple):
    """What a sysctl was, and so much more; at most so much."""

    by: int
    most: int | None = None

    def of(self, before: int) -> int:
        """What it is to be."""
        return before + self.by if self.most is None else min(before + self.by, self.most)


Wanted = Mapping[str, int | Raised]


@dataclasses.dataclass(frozen=True, slots=True)
class Changed:
    """A sysctl of a namespace that is to be put back: what it was, is now, and was last set to."""

    netns: str | None
    name: str
    before: int
    now: int
    written: int


Known = Mapping[tuple[int, str], Entry]


class _LeftError(TwctlError):
    """A sysctl could not be put back, and stays in the journal. there: whether its namespace is known to exist."""

    def __init__(self, message: str, hint: str, *, there: bool) -> None:
        super().__init__(message, hint)
        self.there = there


def _in_order(known: Known, fresh: Known) -> list[Entry]:
    """All entries; those that are set now in the order in which they are set, whatever it was before."""
    following = iter(fresh.values())
    return [next(following) if key in fresh else entry for key, entry in {**known, **fresh}.items()]


class Journal:
    """What is to be put back, in a file that is written before anything is changed.

    earlier: where an earlier version had it; its place is taken by the first change. unseen: inodes of namespaces that
    twctl works in and that cannot be entered from here: one of them may be what is not found.

    A namespace is known by its cookie, and found also where it has another name here, or none. What cannot be put back
    stays in the journal, unless its namespace is gone. strict: then tcp_max_tw_buckets among it is an error.
    """

    def __init__(
        self,
        path: Path,
        access: Access | None = None,
        earlier: Path | None = None,
        unseen: Callable[[], Collection[int]] = frozenset,
    ) -> None:
        self._path, self._earlier, self._unseen = path, earlier, unseen
        self._access: Access = access or Kernel()

    def keep(self, wanted: Container[str], cookies: Container[int] | None = None, *, strict: bool = False) -> list[str]:
        """Put everything back but these sysctls (full names) of these namespaces (None: of all).

        Returns what was left alone, a line each. Raises TwctlError.
        """
        entries = self._load()
        stays = [each for each in entries if each.name in wanted and (cookies is None or each.cookie in cookies)]
        return self._put_all_back([entry for entry in entries if entry not in stays], strict=strict)

    def set(self, wanted: Wanted, netns: str | None, through: str | None = None) -> None:
        """Set these sysctls (full names) in a namespace, in their order; they are put back in the opposite one.

        through: path that leads there, also when another has that name.

        :raises TwctlError: if one cannot be read or set; then all of this namespace are as they were.
        """
        known = {(entry.cookie, entry.name): entry for entry in self._load()}
        fresh = [self._entry(known, netns, through, name, value) for name, value in wanted.items()]
        self._save(_in_order(known, {(entry.cookie, entry.name): entry for entry in fresh}))
        try:
            for entry in fresh:
                self._access.write(through or netns, entry.name, entry.written[-1])
        except OSError as error:
            self.leave(entry.cookie, through)
            raise TwctlError(
                f"cannot set {entry.name}: {error.strerror}", "run as root, or leave it out of [sysctl]"
            ) from error

    def set_again(self, name: str, value: int, netns: str | None, through: str | None = None) -> None:
        """Set a sysctl, unless it has this value. Raises OSError, TwctlError."""
        if value != self._access.read(through or netns, name):
            self.set({name: value}, netns, through)

    def leave(self, cookie: int, through: str | None = None, *, strict: bool = False) -> list[str]:
        """Put back what was set in a namespace; returns what was left alone, a line each. Raises TwctlError.

        through: path that leads there, if its name does not any more.
        """
        entries = self._load()
        mine = [entry for entry in entries if entry.cookie == cookie]
        return self._put_all_back(mine, through, strict=strict) if mine else []

    def _entry(self, known: Known, netns: str | None, through: str | None, name: str, value: int | Raised) -> Entry:
        """What is there is ours, and the journal has what was there before; or it is somebody else's."""
        where = through or netns
        cookie = self._access.cookie(where)
        try:
            before, earlier = self._access.read(where, name), tuple[int, ...]()
        except OSError as error:
            message = f"this kernel has no {name} in network namespace {netns or '(own)'}: {error.strerror}"
            raise TwctlError(message, "leave it out of [sysctl], or load the module that brings it") from error
        entry = known.get((cookie, name))
        if entry and before in entry.written:
            before, earlier = entry.before, (before,)
        return Entry(netns, cookie, name, before, (*earlier, value.of(before) if isinstance(value, Raised) else value))

    def restore(self, *, strict: bool = False) -> list[str]:
        """Put everything back; returns what was left alone, a line each. Harmless when there is nothing.

        Raises TwctlError.
        """
        return self._put_all_back(self._load(), strict=strict)

    def _put_all_back(self, entries: Sequence[Entry], through: str | None = None, *, strict: bool = False) -> list[str]:
        reports: list[str] = []
        left: dict[Entry, _LeftError] = {}
        with self._paths(entries, through) as paths:
            for entry in reversed(entries):
                try:
                    reports += self._put_back(entry, paths)
                except _LeftError as error:
                    reports.append(str(error))
                    left[entry] = error
        self._save([each for each in self._load() if each not in entries or each in left])
        for entry, why in left.items():
            if strict and entry.name == VITAL and why.there:
                raise why
        return list(dict.fromkeys(reports))

    @contextlib.contextmanager
    def _paths(self, entries: Sequence[Entry], through: str | None = None) -> Iterator[Mapping[int, str | None]]:
        """What leads to their namespaces, by cookie: the name, else what is found."""
        named = {entry.cookie: through or entry.namespace for entry in entries}
        found = {cookie: where for cookie, where in named.items() if self._cookie(where) == cookie}
        with self._access.elsewhere(named.keys() - found.keys()) as others:
            yield {**found, **others}

    def _cookie(self, where: str | None) -> int | None:
        with contextlib.suppress(TwctlError, OSError):
            return self._access.cookie(where)
        return None

    def changed(self) -> Iterator[Changed]:
        """What is to be put back, where it can be read by the name that its namespace had."""
        cookies: dict[str | None, int | None] = {}
        for entry in self._load():
            if entry.namespace not in cookies:
                cookies[entry.namespace] = self._cookie(entry.namespace)
            with contextlib.suppress(TwctlError, OSError):
                if cookies[entry.namespace] == entry.cookie:
                    now = self._access.read(entry.namespace, entry.name)
                    yield Changed(entry.namespace, entry.name, entry.before, now, entry.written[-1])

    def cookies(self) -> Collection[int]:
        """Namespaces in which something is to be put back."""
        return frozenset(entry.cookie for entry in self._load())

    def holds(self, name: str) -> bool:
        """Whether a sysctl is to be put back anywhere."""
        return any(entry.name == name for entry in self._load())

    def kept(self) -> dict[str, bool]:
        """Whether each sysctl that was set still has that value, in every namespace where it was."""
        found: dict[str, bool] = {}
        for each in self.changed():
            found[each.name] = found.get(each.name, True) and each.now == each.written
        return found

    def _put_back(self, entry: Entry, paths: Mapping[int, str | None]) -> list[str]:
        """Put one back; returns a line if it is left for good. Raises _LeftError."""
        if entry.cookie not in paths:
            return self._not_found(entry)
        where, line = paths[entry.cookie], f"{entry.name} of network namespace {_called(entry)} is not put back"
        try:
            now = self._access.read(where, entry.name)
            if now in entry.written:
                self._access.write(where, entry.name, entry.before)
            elif now != entry.before:
                return [f"{entry.name} is left at {now}: somebody else changed it from {entry.written[-1]}"]
        except FileNotFoundError:  # the module that brings it was unloaded
            return [f"{line}: it is not there any more"]
        except (TwctlError, OSError) as error:
            hint = "'twctl release' puts it back where /proc/sys can be written"
            raise _LeftError(f"{line}: {error}", hint, there=True) from error
        return []

    def _not_found(self, entry: Entry) -> list[str]:
        """Whose name has gone, where names are seen, is gone; of who had none that takes a look at all processes."""
        unseen = sorted(self._unseen())
        if not unseen and self._access.sees(entry.namespace):
            return [f"network namespace {_called(entry)} is gone, and with it what was set there"]
        which = f" (inode {', '.join(map(str, unseen))})" if unseen else ""
        raise _LeftError(
            f"what was set in network namespace {_called(entry)} is not put back: it cannot be entered from here",
            f"run 'twctl release' inside that network namespace{which}",
            there=bool(unseen),
        )

    def _load(self) -> list[Entry]:
        for path in (self._path, self._earlier):
            with contextlib.suppress(FileNotFoundError):
                if path:
                    return journal_file.read(path)
        return []

    def _save(self, entries: Sequence[Entry]) -> None:
        """Before anything is changed: a crash in between puts back what is there already, which changes nothing.

        :raises TwctlError: if it cannot be written.
        """
        if entries:
            folder = self._path.parent
            try:
                journal_file.write(self._path, entries)
            except OSError as error:
                hint = (
                    f"[sysctl] and mode vestigial need it: make it writable, in a container mount the host's {folder}"
                )
                message = f"cannot write to {folder} what sysctls were: {error.strerror}"
                raise TwctlError(message, hint) from error
        for path in (self._earlier, *(() if entries else (self._path, journal_file.part_of(self._path)))):
            if path and path.exists():  # where the file system is read-only, there is none, and no way to remove one
                path.unlink()


def _called(entry: Entry) -> str:
    return entry.namespace or f"(own, cookie {entry.cookie})"


def journal_of(pins: Path, unseen: Callable[[], Collection[int]] = frozenset) -> Journal:
    """Return the journal of the daemon that pins there; an earlier version named it after the folder's last name."""
    return Journal(FOLDER / f"{quote(str(pins), safe='')}.json", None, FOLDER / f"{pins.name}.json", unseen)
