"""The daemon of `twctl run`: its `run` is the boot order, its loop is what happens afterwards."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from twctl import check, loader, netns
from twctl.classes import Class
from twctl.config import KERNEL_TIME_WAIT, Config, Mode, load
from twctl.errors import TwctlError
from twctl.guard import Guard
from twctl.kernel import FinTimeout, PortRange, Sockstat, socket_bytes
from twctl.layout import FAMILIES, NAMESPACES, Layout, guard_identity
from twctl.metrics import DaemonState, TwctlCollector
from twctl.notify import Notifier
from twctl.obstacles import obstacles
from twctl.pins import Pins
from twctl.pressure import Pressure
from twctl.reconcile import Drift, Reconciler
from twctl.routes import RouteWatcher
from twctl.server import Server
from twctl.sockdiag import SockDiag
from twctl.sysctl import Journal, journal_of
from twctl.table import TICK, ClassTries, Reason, Table
from twctl.truncate import DRAIN_BATCH, Limits, Reaper

log = logging.getLogger("twctl")

# Expired index words are zeroed this often where no reconciliation does it: they must not stay for 13 days (vestige.h).
SWEEP_SECONDS = 300.0
# A comparison with the kernel's list may take this share of one CPU: after a long one the next comes later.
RECONCILE_SHARE = 0.005
# Due sockets are destroyed in batches, so that the walk of a busy ring costs little; half of what lateness may be.
TRUNCATE_SECONDS = 0.05
# One pass destroys about this many of a class, 20 ms of work, before routes and signals have their turn.
TRUNCATE_BATCH = 2048
# How often memory is asked about: reclaim begins within a second.
PRESSURE_SECONDS = 0.5
# Notifications say when a filter is taken away; this often all devices are looked at all the same.
GUARD_SECONDS = 10.0
MAX_TW_BUCKETS = "net.ipv4.tcp_max_tw_buckets"
_DOING = {Mode.OBSERVE: "observing", Mode.TRUNCATE: "truncating", Mode.VESTIGIAL: "guarding"}


@dataclasses.dataclass
class Namespace:
    """One enrolled network namespace and what the daemon holds open in it."""

    index: int
    name: str | None
    routes: RouteWatcher
    tries: ClassTries
    diag: SockDiag
    sockstat: Sockstat
    fin_timeout: FinTimeout
    ports: PortRange


def run(config: Config, reread: Callable[[], Config | None], notifier: Notifier) -> Config | None:
    """Do what the mode says until SIGINT or SIGTERM (returns None), or until SIGHUP brings another configuration.

    reread: reads the configuration again; None where it cannot be used, and what was goes on. notifier: hears of it
    when all is in force, and not before.

    :raises TwctlError: if something that is needed cannot be had; then nothing new is left pinned.
    """
    following: Config | None = None
    with contextlib.ExitStack() as undo, _signals() as signals:
        pins = Pins(config.pins)
        pins.open()
        undo.callback(pins.unlock)
        if config.mode is Mode.TRUNCATE:
            check.can_destroy()
        cookies = {name: netns.cookie(name) for name in config.netns or (None,)}
        if config.mode is Mode.VESTIGIAL:
            _refuse_obstacles(cookies, force=config.force)
        table = _table(pins, config)
        indexes = _indexes(table, cookies)
        namespaces = [_open(table, indexes[name], name, config, undo) for name in cookies]
        guards = _guards(table, pins.current, namespaces, undo) if config.mode is Mode.VESTIGIAL else []
        leaving = _leaving(table, pins.current, namespaces, undo) if config.mode is not Mode.VESTIGIAL else None
        table.set_lives(config.time_wait, config.fin_wait2)
        _enrol(table, namespaces, cookies, guarded=bool(guards))
        _sysctls(config, list(cookies), undo, lambda: following)
        table.mode = config.mode
        reaper = _reaper(table, namespaces, Reason.TRUNCATED)
        state = _state(config, table, namespaces, reaper)
        state.guard_devices = lambda: sum(len(guard.devices) for guard in guards)
        state.guard_reattached = lambda: sum(guard.reattached for guard in guards)
        reconciler = Reconciler(table, {namespace.index: namespace.diag for namespace in namespaces})
        limits = Limits(config.time_wait, _fin_wait2(config))

        def mended() -> None:
            if config.mode is Mode.TRUNCATE:
                reaper.take_up(reconciler.marks(), limits)

        with table.exclusive():
            _report(reconciler.round(end=False), "took over")
            mended()
        server = Server(config.listen, config.tls, _registry(table, state))
        undo.callback(server.close)
        log.info("%s", doing := f"{_DOING[config.mode]} with the {state.probe} probe, metrics on port {server.port}")
        comparing = _Reconciling(table, reconciler, state, config, mended)
        comparing.wait(leaving.seconds if leaving else 0.0)
        tasks: list[_Task] = [comparing]
        tasks += [_Guarding(guard) for guard in guards]
        tasks += [leaving] if leaving else []
        if config.mode is Mode.TRUNCATE:
            tasks.append(_Truncating(table, reaper, limits))
            tasks.append(_draining(table, namespaces, config, undo))
        tasks += [_Reporting(notifier)] if notifier.watchdog else []
        notifier.ready(doing)
        following = _loop(signals, [*map(_Following, namespaces), *guards], tasks, _rereading(reread, notifier, doing))
        if following is None:
            notifier.stopping("stopping")
    if following is None:
        log.info("stopped; the probes go on, 'twctl release' removes them")
    return following


def main() -> int:
    """Run in a process that `twctl run` became: without the command line's library, which is 8 MB of its own.

    The argument is JSON: the configuration file (or null) and the command line's options.
    """
    request = json.loads(sys.argv[1])
    notifier = Notifier(os.environ)
    logging.basicConfig(level=logging.INFO, format="twctl: %(message)s", stream=sys.stderr)
    file = Path(request["file"]) if request["file"] else None
    before: Config | None = None
    try:
        config: Config | None = load(file, request["options"]).config
        while config:
            following = run(config, lambda: _reread(file, request["options"]), notifier)
            before, config = config, following
    except TwctlError as error:
        if before:  # it left the sysctls to the one that failed
            _restore(journal_of(before.pins), lambda: None)
        notifier.status(str(error))
        log.error("%s", error)  # noqa: TRY400 - one line, no traceback
        return 1
    return 0


def _layout(config: Config) -> Layout:
    return Layout({family: getattr(config.capacity, family) for family in FAMILIES})


def _table(pins: Pins, config: Config) -> Table:
    """Take the pinned table over if it is what would be loaded, else load."""
    layout = _layout(config)
    replacing = (pins.current / "maps").is_dir()
    if replacing:
        with contextlib.suppress(TwctlError, OSError):
            table = Table(pins.current, writable=True)
            if table.identity == layout.identity(config.probe):
                log.info("took over the pinned table at %s: same layout", pins.current)
                return table
        log.info("replacing the pinned table at %s: other layout, capacity or probe", pins.current)
        _say_what_is_forgotten(pins.current)
    sizes = {family: {klass.label: layout.capacity[family][klass] for klass in Class} for family in FAMILIES}
    loaded = pins.load(loader.Request(str(pins.root / "next"), sizes, config.probe))
    if loaded.refused:
        log.info("fentry is not available: %s", loaded.refused)
    return Table(pins.current, writable=True)


def _say_what_is_forgotten(folder: Path) -> None:
    """Of the sessions in a table that is replaced the kernel tells those that have sockets; the guard's are lost."""
    with contextlib.suppress(TwctlError, OSError):
        table = Table(folder)
        if table.guard and (lost := sum(table.living(time.monotonic_ns()).values())):
            log.warning("%d sessions that only the guard knew are forgotten", lost)


def _indexes(table: Table, cookies: dict[str | None, int]) -> dict[str | None, int]:
    """Give each namespace the index it has, or one after the highest: vestiges of those that left keep theirs."""
    known = {cookie: index for index, (cookie, _) in table.enrolments().items()}
    after = max(known.values(), default=-1) + 1
    free = (index for index in (*range(after, NAMESPACES), *range(after)) if index not in known.values())
    return {name: known[cookie] if cookie in known else next(free) for name, cookie in cookies.items()}


def _open(table: Table, index: int, name: str | None, config: Config, undo: contextlib.ExitStack) -> Namespace:
    routes = undo.enter_context(RouteWatcher(config.classes, name))
    tries = ClassTries(table, index)
    tries.sync(routes.trie())
    diag, sockstat, fin_timeout, ports = SockDiag(name), Sockstat(name), FinTimeout(name), PortRange(name)
    for opened in (diag, sockstat, fin_timeout, ports):
        undo.callback(opened.close)
    return Namespace(index, name, routes, tries, diag, sockstat, fin_timeout, ports)


def _guards(table: Table, folder: Path, namespaces: list[Namespace], undo: contextlib.ExitStack) -> list[Guard]:
    """Put the guard on every device of every namespace, before the kernel is told to keep no TIME_WAIT sockets.

    It stays when the daemon stops: what it answers for lives on.

    :raises TwctlError: if a device cannot be guarded; then no guard is left that was not there before.
    """
    if table.guard != guard_identity():
        loader.load_guard(folder)
    guards = [Guard(namespace.name, namespace.index, folder) for namespace in namespaces]
    for guard in guards:
        undo.callback(guard.close)
    try:
        for guard in guards:
            guard.attach()
    except TwctlError:
        if table.mode != Mode.VESTIGIAL:
            for guard in guards:
                guard.remove()
        raise
    return guards


def _refuse_obstacles(namespaces: Iterable[str | None], *, force: bool) -> None:
    found = [line for namespace in namespaces for line in obstacles(namespace)]
    for line in found:
        log.warning("%s", line)
    if found and not force:
        raise TwctlError("the guard may not see here what the sockets see", "remove it, or give --force if you know")


def _leaving(table: Table, folder: Path, namespaces: list[Namespace], undo: contextlib.ExitStack) -> "_Leaving | None":
    """A guard that an earlier mode left goes on until the last vestige that only it knows of has expired."""
    if not table.guard:
        return None
    guards = [Guard(namespace.name, namespace.index, folder) for namespace in namespaces]
    for guard in guards:
        undo.callback(guard.close)
    return _Leaving(table, guards, max(table.lives) / 1e9 + TICK)


def _sysctls(
    config: Config, namespaces: list[str | None], undo: contextlib.ExitStack, following: Callable[[], Config | None]
) -> None:
    """Set what the configuration and the mode ask for, put back what an earlier one asked for."""
    journal = journal_of(config.pins)
    wanted = dict(config.sysctl) | ({MAX_TW_BUCKETS: 0} if config.mode is Mode.VESTIGIAL else {})
    for line in journal.apply(wanted, namespaces):
        log.warning("%s", line)
    undo.callback(_restore, journal, following)


def _enrol(table: Table, namespaces: list[Namespace], cookies: dict[str | None, int], *, guarded: bool) -> None:
    """From here on births are recorded: the classes are known."""
    wanted = {namespace.index for namespace in namespaces}
    for index, (cookie, _) in table.enrolments().items():
        if index not in wanted:
            table.withdraw(index, cookie)
    for namespace in namespaces:
        table.enrol(namespace.index, cookies[namespace.name], namespace.name or "", guarded=guarded)


def _reaper(table: Table, namespaces: list[Namespace], reason: Reason) -> Reaper:
    by_index = {namespace.index: namespace for namespace in namespaces}
    diags = {index: namespace.diag for index, namespace in by_index.items()}
    return Reaper(table, diags, reason, lambda index: by_index[index].fin_timeout.seconds())


def _restore(journal: Journal, following: Callable[[], Config | None]) -> None:
    """Put the sysctls back at the end; where another configuration follows, its start sees to them."""
    if following() is None:
        for line in journal.restore():
            log.warning("%s", line)


def _draining(table: Table, namespaces: list[Namespace], config: Config, undo: contextlib.ExitStack) -> "_Draining":
    pressure = Pressure(config.pressure.psi_stall, tcp_memory=config.pressure.tcp_memory)
    undo.callback(pressure.close)
    log.info("draining under pressure: %s", ", ".join(pressure.watching))
    return _Draining(table, _reaper(table, namespaces, Reason.DRAINED), pressure)


def _fin_wait2(config: Config) -> dict[Class, float]:
    """A time of 60 s and more means the kernel's own, whatever tcp_fin_timeout says."""
    return {klass: seconds if seconds < KERNEL_TIME_WAIT else math.inf for klass, seconds in config.fin_wait2.items()}


def _reread(file: Path | None, options: dict[str, object]) -> Config | None:
    """Read the configuration again; None, and one line, if it is bad."""
    try:
        return load(file, options).config
    except TwctlError as error:
        log.error("the configuration stays as it was: %s", error)  # noqa: TRY400 - one line, no traceback
        return None


def _rereading(reread: Callable[[], Config | None], notifier: Notifier, doing: str) -> Callable[[], Config | None]:
    """Tell that the configuration is read, and that all is as it was where it cannot be used."""

    def tell() -> Config | None:
        notifier.reloading()
        following = reread()
        if following is None:
            notifier.ready(f"{doing}; a later configuration was refused")
        return following

    return tell


def _state(config: Config, table: Table, namespaces: list[Namespace], reaper: Reaper) -> DaemonState:
    def prefixes() -> dict[tuple[Class, str], int]:
        counts = [namespace.tries.counts() for namespace in namespaces]
        return {key: sum(count[key] for count in counts) for key in counts[0]}

    return DaemonState(
        mode=config.mode,
        probe=loader.PROBES[table.probe],
        time_wait=dict.fromkeys(Class, KERNEL_TIME_WAIT) if config.mode is Mode.OBSERVE else dict(config.time_wait),
        prefixes=prefixes,
        kernel_sockets=lambda: sum(namespace.sockstat.time_wait() for namespace in namespaces),
        route_changes=lambda: sum(namespace.routes.changes for namespace in namespaces),
        route_resyncs=lambda: sum(namespace.routes.resyncs for namespace in namespaces),
        prefixes_refused=lambda: sum(namespace.tries.refused for namespace in namespaces),
        lateness=reaper.lateness,
        destroy_refused=lambda: reaper.errors,
        sysctls=journal_of(config.pins).kept,
        ephemeral_ports=lambda: sum(namespace.ports.ports() for namespace in namespaces),
        socket_bytes=lambda: socket_bytes().mini,
    )


def _registry(table: Table, state: DaemonState) -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(TwctlCollector(table, state))
    return registry


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """Turn SIGINT, SIGTERM and SIGHUP into bytes of a socket: their numbers."""
    read, write = socket.socketpair()
    write.setblocking(False)  # noqa: FBT003 - socket's own signature
    previous = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    wakeup = signal.set_wakeup_fd(write.fileno())
    try:
        yield read
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in previous.items():
            signal.signal(number, handler)
        read.close()
        write.close()


class _Source(Protocol):
    """Something that tells of changes: `drain` acts on what has come."""

    def fileno(self) -> int: ...

    def drain(self) -> None: ...


class _Task(Protocol):
    """Something that the loop does from time to time: `run` does it and says in how many seconds again."""

    def run(self) -> float: ...


class _Reconciling:
    """Compare with the kernel's list where the probe does not see ends; zero expired words everywhere.

    mended: called after each comparison, which may have put sessions into the table.
    """

    def __init__(
        self, table: Table, reconciler: Reconciler, state: DaemonState, config: Config, mended: Callable[[], None]
    ) -> None:
        self._table, self._reconciler, self._state, self._mended = table, reconciler, state, mended
        # Of what the guard keeps the kernel has no list.
        seen = state.probe == "fentry" or config.mode is Mode.VESTIGIAL
        self._comparing = config.reconcile_interval > 0 and not seen
        self._interval = config.reconcile_interval if self._comparing else SWEEP_SECONDS
        self._quiet = self._interval  # the start has just done it

    def wait(self, seconds: float) -> None:
        """Not before then: until a guard that is leaving is gone, the kernel does not have all sessions."""
        self._quiet = max(self._quiet, seconds)

    def run(self) -> float:
        if self._quiet:
            wait, self._quiet = self._quiet, 0.0
            return wait
        with self._table.exclusive():
            seconds = self._compare() if self._comparing else self._reconciler.sweep()
        return max(self._interval, seconds / RECONCILE_SHARE)

    def _compare(self) -> float:
        try:
            drift = self._reconciler.round()
        except OSError as error:
            self._state.reconcile_errors += 1
            log.warning("cannot compare the table with the kernel's list: %s", os.strerror(error.errno or 0))
            return 0.0
        self._mended()
        self._state.reconciliations += 1
        self._state.drift = {"missing": drift.missing, "stale": drift.stale}
        _report(drift, "reconciled")
        return drift.seconds


class _Guarding:
    """Look at all devices from time to time, besides following the notifications."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def run(self) -> float:
        self._guard.attach()
        return GUARD_SECONDS


class _Reporting:
    """Tell the service manager that the loop goes round: twice in the time after which it would end us."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def run(self) -> float:
        self._notifier.alive()
        return self._notifier.watchdog / 2


class _Leaving:
    """Take the guard away once what it answers for is over, in `seconds`."""

    def __init__(self, table: Table, guards: list[Guard], seconds: float) -> None:
        self._table, self._guards, self.seconds = table, guards, seconds
        self._end = time.monotonic() + seconds

    def run(self) -> float:
        if (wait := self._end - time.monotonic()) > 0:
            return wait
        for guard in self._guards:
            guard.remove()
        if self._table.guard:
            log.info("the guard of mode vestigial is gone: all its sessions are over")
            self._table.guard = 0
        return math.inf


class _Truncating:
    """Destroy what is due, nearest class first."""

    def __init__(self, table: Table, reaper: Reaper, limits: Limits) -> None:
        self._table, self._reaper, self._limits = table, reaper, limits

    def run(self) -> float:
        with self._table.exclusive():
            waits = [self._reaper.reap(klass, self._limits, TRUNCATE_BATCH)[1] for klass in Class]
        return max(TRUNCATE_SECONDS, min(waits))


class _Following:
    """Keep the classes of a namespace as its routes say."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def fileno(self) -> int:
        return self._namespace.routes.fileno()

    def drain(self) -> None:
        if self._namespace.routes.drain():
            self._namespace.tries.sync(self._namespace.routes.trie())


class _Draining:
    """While memory is short, destroy TIME_WAIT sockets: nearest class first, oldest first, a batch at a time.

    Here, in the daemon's thread, and never in interrupt context: it may take long, and sleep.
    """

    def __init__(self, table: Table, reaper: Reaper, pressure: Pressure) -> None:
        self._table, self._reaper, self._pressure = table, reaper, pressure
        self._limits = Limits(dict.fromkeys(Class, 0.0), dict.fromkeys(Class, math.inf))

    def run(self) -> float:
        if not self._pressure.now():
            return PRESSURE_SECONDS
        with self._table.exclusive():
            for klass in Class:
                if self._reaper.reap(klass, self._limits, DRAIN_BATCH)[0]:
                    return TRUNCATE_SECONDS
        return PRESSURE_SECONDS


def _loop(
    signals: socket.socket,
    sources: Sequence[_Source],
    tasks: Sequence[_Task],
    reread: Callable[[], Config | None],
) -> Config | None:
    """Follow the sources and do the tasks when they are due, until a signal ends it; returns what `run` returns."""
    due = [time.monotonic()] * len(tasks)
    with selectors.DefaultSelector() as selector:
        selector.register(signals, selectors.EVENT_READ)
        for source in sources:
            selector.register(source, selectors.EVENT_READ, source)
        while True:
            for key, _ in selector.select(max(0.0, min(due) - time.monotonic())):
                if key.data is None:
                    hangup = signals.recv(1)[0] == signal.SIGHUP
                    following = reread() if hangup else None
                    if following or not hangup:
                        return following
                else:
                    key.data.drain()
            for i, task in enumerate(tasks):
                if time.monotonic() >= due[i]:
                    due[i] = time.monotonic() + task.run()


def _report(drift: Drift, what: str) -> None:
    if drift.missing or drift.stale:
        log.info(
            "%s: %d sessions the table did not have, %d the kernel no longer has", what, drift.missing, drift.stale
        )


if __name__ == "__main__":
    sys.exit(main())
