"""The network namespaces that the daemon works in: how one joins, what is held open in it, how it leaves.

Whatever is open in a namespace keeps it, so a namespace whose name goes has to leave at once (follow.py); until then an
open descriptor leads there, through which its sysctls are put back.
"""

import contextlib
import logging
import os
import select
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeVar

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.config.config import Config
from twctl.config.keys import Mode
from twctl.daemon.namespace import Namespace
from twctl.errors import TwctlError
from twctl.linux import netns
from twctl.linux.netfilter import has_tproxy_rule
from twctl.linux.procfs import EntryCount, MaxTimeWait, PortRange, Sockstat
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sysctl import Journal
from twctl.modes import guard as guards
from twctl.modes.filters import Ours
from twctl.modes.guard import DELAY_EDGES, Guard
from twctl.modes.histogram import Histogram
from twctl.modes.sysctls import FIN_TIMEOUT, GUARD_NEEDS, LO_FORWARDING, fin_timeout_of, sysctls_of
from twctl.routes.watcher import RouteWatcher
from twctl.table.counters import TICK
from twctl.table.enrolments import NETNS_GUARDED, NETNS_TPROXY, NETNS_WITNESSED, enrol, index_for, withdraw, witnessed
from twctl.table.maps import NAME_BYTES, Table
from twctl.table.tries import ClassTries

log = logging.getLogger("twctl")


Told = TypeVar("Told")


class FullError(TwctlError):
    """No index is free: the table tells 256 namespaces apart, those that left among them while vestiges have theirs."""


class Namespaces:
    """All that have joined. The daemon's one thread has them join and leave; a scrape's thread adds them up.

    folder: the pinned table. ours: how filters of our guard are told. diags: their sock_diag sockets by index, as it is
    now. suspended: where the kernel does TIME_WAIT's duty for the time being, in mode vestigial. guard_delays: how long
    new devices had no guard.
    """

    def __init__(self, table: Table, folder: Path, config: Config, journal: Journal, ours: Ours) -> None:
        self._table, self.folder, self._config, self._journal, self._ours = table, folder, config, journal, ours
        self._guarded = config.mode is Mode.VESTIGIAL
        self._sysctls = sysctls_of(config, orphans_stay=True)
        self._namespaces: dict[int, Namespace] = {}
        self._open: dict[int, contextlib.ExitStack] = {}
        self._by_fd: dict[int, Namespace] = {}
        self._lock = threading.Lock()
        self._past: Counter[str] = Counter()
        self._poll = select.epoll()
        self.diags: dict[int, SockDiag] = {}
        self.suspended: set[Namespace] = set()
        self.guard_delays = Histogram(DELAY_EDGES)

    def __iter__(self) -> Iterator[Namespace]:
        return iter(list(self._namespaces.values()))

    def __getitem__(self, index: int) -> Namespace:
        return self._namespaces[index]

    def fileno(self) -> int:
        """Readable when routes or devices of a namespace have changed."""
        return self._poll.fileno()

    def changed(self) -> list[Namespace]:
        """Those in which `follow` has something to do."""
        return [*{self._by_fd[fd].index: self._by_fd[fd] for fd, _ in self._poll.poll(0) if fd in self._by_fd}.values()]

    def close(self) -> None:
        """Close what is open; what is in force stays."""
        for stack in self._open.values():
            stack.close()
        self._poll.close()

    def keep(self, staying: Collection[int] = ()) -> list[str]:
        """Give up what was done in other namespaces than these; returns what was left alone, a line each.

        The sysctls come first: never a namespace without TIME_WAIT sockets and without a guard. staying: inodes of
        those where guard and index stay, for vestiges.
        """
        cookies = {namespace.cookie for namespace in self}
        reports = self._journal.keep(self._sysctls, cookies, strict=True)
        if self._table.guard:
            reports += guards.remove(self._ours, {*staying, *(namespace.inode for namespace in self)})
        for index, (cookie, name) in self._table.enrolments().items():
            if cookie in cookies or netns.inode(name or None) in staying:
                continue
            withdraw(self._table, index, cookie)
            with contextlib.closing(ClassTries(self._table, index)) as tries:
                tries.sync({})
        return reports

    def longest_life(self) -> float:
        """Seconds until the last vestige that the guard has now is over."""
        return float(max(self._table.lives) / 1e9 + TICK)

    def is_enrolled(self, name: str | None) -> bool:
        """Whether the probes watch a namespace already, also by an earlier daemon's doing. Raises TwctlError."""
        cookie = netns.cookie(name)
        return any(cookie == each for each, _ in self._table.enrolments().values())

    def join(self, name: str | None, *, suspended: bool = False) -> Namespace:
        """Do in a namespace (None: our own) what the mode says: classes and guard first, then entries, then sysctls.

        suspended: leave TIME_WAIT to the kernel at once, as `suspend` does.

        :raises TwctlError: if that cannot be; then it is as it was.
        """
        with contextlib.ExitStack() as opened, contextlib.ExitStack() as undo:
            namespace = self._opened(name, opened)
            known = namespace.index in self._table.enrolments()
            undo.callback(self._give_back, namespace, stays=known, guarded=known and self._table.mode == Mode.VESTIGIAL)
            namespace.tries.sync(namespace.routes.trie())
            if namespace.guard:
                namespace.guard.attach()
            if suspended:
                for line in self.suspend(namespace):
                    log.warning("%s", line)
            else:
                self.watch(namespace, guarded=self._guarded)
                if self._sysctls:
                    self._journal.set(self._sysctls, name)
            undo.pop_all()
            self._add(namespace, opened.pop_all())
        return namespace

    def watch(self, namespace: Namespace, *, guarded: bool) -> None:
        """Have the probes watch a namespace, and know what of its rules concerns the guard. Raises TwctlError."""
        proxied = guarded and netns.inside(namespace.path, has_tproxy_rule)
        witnessed = namespace.guard is not None and namespace.guard.witnessed
        flags = NETNS_GUARDED * guarded | NETNS_TPROXY * proxied | NETNS_WITNESSED * witnessed
        enrol(self._table, namespace.index, namespace.cookie, namespace.name or "", flags)

    def witnessed(self, namespace: Namespace) -> tuple[int, int, int]:
        """Sessions whose FIN the guard has noted, those where it has not, SYNs and FINs that it could not note."""
        return witnessed(self._table, namespace.index)

    def _opened(self, name: str | None, opened: contextlib.ExitStack) -> Namespace:
        if len((name or "").encode()) > NAME_BYTES:
            raise TwctlError(f"the name {name} is too long", f"up to {NAME_BYTES} bytes are allowed")
        cookie = netns.cookie(name)
        handle = os.open(netns.path(name), os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, handle)
        if any(cookie == namespace.cookie for namespace in self):
            raise TwctlError(f"network namespace {name} has joined under another name", "name each one once")
        if (index := index_for(self._table, cookie)) is None:
            raise FullError("there is no room for another network namespace", "name those that matter with netns")

        enter, closing = opened.enter_context, contextlib.closing
        path = f"/proc/self/fd/{handle}" if name else None
        namespace = Namespace(
            index,
            name,
            cookie,
            os.fstat(handle).st_ino,
            path,
            enter(closing(RouteWatcher(self._config.classes, name))),
            enter(closing(ClassTries(self._table, index))),
            enter(closing(SockDiag(name))),
            enter(closing(Sockstat(name))),
            enter(closing(PortRange(name))),
            enter(closing(EntryCount(name))),
            enter(closing(MaxTimeWait(name))),
            enter(closing(Guard(path, index, self.folder, self._ours, self.guard_delays))) if self._guarded else None,
        )
        if netns.inode(name) != namespace.inode:
            raise TwctlError(f"network namespace {name} became another one just now", "try again")
        return namespace

    def _add(self, namespace: Namespace, opened: contextlib.ExitStack) -> None:
        for source in (namespace.routes, namespace.guard):
            if source:
                self._poll.register(source.fileno(), select.EPOLLIN)
                self._by_fd[source.fileno()] = namespace
        self._open[namespace.index] = opened
        self.diags[namespace.index] = namespace.diag
        with self._lock:
            self._namespaces[namespace.index] = namespace

    def let_orphans_stay(self, stay: bool) -> None:  # noqa: FBT001 - the new state
        """Have orphans in FIN_WAIT2 stay sockets of the kernel, or become vestiges, in all and in those to come."""
        self._sysctls = sysctls_of(self._config, orphans_stay=stay)
        fin_timeout = fin_timeout_of(self._config, orphans_stay=stay)
        for namespace in set(self) - self.suspended:
            try:  # its name may be another's already
                self._journal.set({FIN_TIMEOUT: fin_timeout}, namespace.name, namespace.path)
            except TwctlError as error:
                log.warning("%s", error)

    def suspend(self, namespace: Namespace) -> list[str]:
        """Leave TIME_WAIT to the kernel; the guard stays for vestiges, and asks for routes. Returns what was left."""
        reports = self._journal.leave(namespace.cookie, namespace.path)
        self.watch(namespace, guarded=False)
        self._journal.set({**self._config.sysctl, **GUARD_NEEDS}, namespace.name, namespace.path)
        self.suspended.add(namespace)
        return reports

    def resume(self, namespace: Namespace) -> None:
        """Have the guard do it again, in the order of a start. Raises TwctlError, and then it is the kernel's still."""
        namespace.guard_all_devices()
        self.watch(namespace, guarded=True)
        try:
            self._journal.set(self._sysctls, namespace.name, namespace.path)
        except TwctlError:
            self.watch(namespace, guarded=False)
            raise
        self.suspended.discard(namespace)

    def mend_guard(self, namespace: Namespace) -> None:
        """Put back what somebody has taken from the guard: filters, and what it asks for routes by. Raises TwctlError.

        Whoever writes ip_forward changes lo's as well (inet_forward_change).
        """
        namespace.guard_all_devices()
        with contextlib.suppress(OSError):
            self._journal.set_again(LO_FORWARDING, 1, namespace.name, namespace.path)

    def leave(self, namespace: Namespace, *, stays: bool = False) -> list[str]:
        """Undo what was done in a namespace and let go of it; its vestiges expire. Returns what was left alone.

        stays: guard and index stay for them, until `keep`.
        """
        reports = self._give_back(namespace, stays=stays, guarded=stays)
        self._by_fd = {fd: each for fd, each in self._by_fd.items() if each is not namespace}
        del self.diags[namespace.index]
        self.suspended.discard(namespace)
        with self._lock:
            del self._namespaces[namespace.index]
            self._past += namespace.counts()
            self._open.pop(namespace.index).close()  # epoll forgets what is closed
        return reports

    def _give_back(self, namespace: Namespace, *, stays: bool = False, guarded: bool = False) -> list[str]:
        """Put back what sysctls were, then take the guard away and enrol no more; returns what was left, a line each.

        Where TIME_WAIT sockets cannot be had back, all stays. stays, guarded: enrolment and guard do anyway.
        """
        try:
            reports = self._journal.leave(namespace.cookie, namespace.path, strict=True)
        except TwctlError as error:
            return [str(error)]
        if namespace.guard and not guarded:
            with contextlib.suppress(OSError):
                namespace.guard.remove()
        if not stays:
            withdraw(self._table, namespace.index, namespace.cookie)
            namespace.tries.sync({})
        else:
            self.watch(namespace, guarded=False)
        return reports

    def give_up(self) -> None:
        """A start that fails leaves no guard that was not there before; sysctls are put back elsewhere."""
        for namespace in self:
            if namespace.guard and self._table.mode != Mode.VESTIGIAL:
                self._give_back(namespace, stays=True)

    def sysctls_kept(self) -> dict[str, bool]:
        """Whether each sysctl that was set in any of them still has that value."""
        return self._journal.kept()

    def guarded_devices(self) -> int:
        """Devices that have the guard."""
        return sum(self.ask(lambda namespace: len(namespace.guard.devices) if namespace.guard else 0))

    def missing_devices(self) -> int:
        """Devices without the guard at the last look at them, where it does TIME_WAIT's duty."""
        return sum(self.ask(lambda each: each.guard.missing if each.guard and each not in self.suspended else 0))

    def ask(self, question: Callable[[Namespace], Told]) -> list[Told]:
        """Ask each of them, for a scrape's thread: none leaves meanwhile."""
        with self._lock:
            return [question(namespace) for namespace in self._namespaces.values()]

    def counts(self) -> Counter[str]:
        """Sums over all that ever joined: changes, resyncs, reattached, late."""
        with self._lock:
            return sum((namespace.counts() for namespace in self._namespaces.values()), Counter(self._past))

    def prefixes(self) -> dict[tuple[Class, str], int]:
        """Prefixes that the probes ask, by class and family."""
        with self._lock:
            counts = [namespace.tries.counts() for namespace in self._namespaces.values()]
        return {(class_, f): sum(count[class_, f] for count in counts) for class_ in Class for f in FAMILIES}
