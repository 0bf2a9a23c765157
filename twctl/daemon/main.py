"""The daemon of `twctl run`: its `run` is the boot order, its loop is what happens afterwards."""

import contextlib
import itertools
import json
import logging
import math
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from twctl.addresses import FAMILIES, Endpoint
from twctl.classes import Class
from twctl.commands import check
from twctl.config.config import Config, Mode, load
from twctl.daemon.discovery import Discovery
from twctl.daemon.metrics import DaemonState, TwctlCollector
from twctl.daemon.namespaces import Namespace, Namespaces, refuse_obstacles
from twctl.daemon.server import Server
from twctl.daemon.unseen import Unseen
from twctl.errors import TwctlError
from twctl.linux import capabilities, netns
from twctl.linux.pressure import Pressure
from twctl.linux.procfs import counts_entries, socket_bytes
from twctl.linux.sysctl import Journal, journal_of
from twctl.linux.systemd import Notifier
from twctl.linux.tcp import KERNEL_TIME_WAIT
from twctl.modes.guard import remove as remove_guard
from twctl.modes.headroom import Use, Watch, blocked_for, worst
from twctl.modes.port_pressure import PortPressure, Rule
from twctl.modes.reconcile import Drift, Reconciler
from twctl.modes.truncate import DRAIN_BATCH, Limits, Reaper
from twctl.table import loader
from twctl.table.layout import Layout, guard_identity
from twctl.table.maps import TICK, Reason, Table
from twctl.table.pins import Pins
from twctl.table.tallies import busiest

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
PORTS_SECONDS = 5.0  # between two looks at the ports that are left
# With pressure.port_headroom the busiest destinations are looked at this often, and so many of them.
SHRINK_SECONDS = 1.0
LOOKED = 5
PRESSURE_SECONDS = 0.5
# Notifications say when a filter is taken away; this often all devices are looked at all the same.
GUARD_SECONDS = 10.0
# The kernel's count is compared with the entries this often.
COUNT_SECONDS = 1.0
# Where there are hundreds of namespaces either takes this share of one CPU, and more time.
GUARD_SHARE = 0.005
# The loop shows that it goes round this often, and hangs if it has not for so long: as the unit's watchdog has it.
BEAT_SECONDS, HANGING_SECONDS = 15.0, 60.0
_DOING = {Mode.OBSERVE: "observing", Mode.TRUNCATE: "truncating", Mode.VESTIGIAL: "guarding"}


def run(config: Config, reread: Callable[[], Config | None], notifier: Notifier) -> Config | None:
    """Do what the mode says until SIGINT or SIGTERM (returns None), or until SIGHUP brings another configuration.

    reread: reads the configuration again; None where it cannot be used, and what was goes on. notifier: hears of it
    when all is in force, and not before.

    :raises TwctlError: if something that is needed cannot be had; then nothing new is left pinned.
    """
    following: Config | None = None
    with contextlib.ExitStack() as undo, _signals() as signals:
        capabilities.restore()
        pins = Pins(config.pins)
        pins.open()
        undo.callback(pins.unlock)
        _refuse(config)
        table = _table(pins, config)
        undo.callback(_restore, journal_of(config.pins), lambda: following)
        leaving = _Leaving(table, pins.current) if table.guard and config.mode is not Mode.VESTIGIAL else None
        discovery = _discovery(table, pins.current, config, undo)
        namespaces = discovery.namespaces
        reaper = _reaper(table, namespaces, Reason.TRUNCATED)
        state = _state(config, table, discovery, reaper)
        limits = Limits(config.time_wait, _fin_wait2(config))
        comparing = _Reconciling(table, Reconciler(table, namespaces.diags), state, config)
        if config.mode is Mode.TRUNCATE:
            comparing.mended = lambda marks: reaper.take_up(marks, limits)
        comparing.take_over()
        comparing.wait(leaving.seconds if leaving else 0.0)
        discovery.joined = comparing.take_over
        beating = _Beating()
        tasks: list[_Task] = [comparing, beating]
        tasks += [_Guarding(discovery)] if config.mode is Mode.VESTIGIAL else []
        tasks += [_Counting(table, namespaces, state)] if _has_count(config) else []
        tasks += [leaving] if leaving else []
        port_pressure = _port_pressure(table, namespaces, state, config)
        tasks += [_Foreseeing(table, namespaces, state, config, port_pressure)] if config.blame.destinations else []
        if config.mode is Mode.TRUNCATE:
            tasks += [_Truncating(table, reaper, limits), _draining(table, namespaces, config, undo)]
        tasks += [_Shrinking(table, namespaces, port_pressure, config)] if port_pressure else []
        # Our own namespace alone neither comes nor goes.
        names = [discovery] if config.netns or config.all_netns else []
        tasks += names
        tasks += [_Reporting(notifier)] if notifier.watchdog else []
        capabilities.lower(pins.current / "maps" / "meta")
        server = Server(config.listen, config.tls, _registry(table, state), beating.healthy)
        undo.callback(server.close)
        log.info("%s", doing := f"{_DOING[config.mode]} with the {state.probe} probe, metrics on port {server.port}")
        notifier.ready(doing)
        following = _loop(signals, [_Following(discovery), *names], tasks, _rereading(reread, notifier, doing))
        if following is None:
            notifier.stopping("stopping")
    if following is None:
        log.info("stopped; the probes go on, 'twctl release' removes them")
    return following


def main() -> int:
    """Run in a process that `twctl run` became: without the command line's library, which is 8 MB of its own.

    The argument is JSON: the configuration file (or null), the command line's options, whether to release at the end.
    """
    request = json.loads(sys.argv[1])
    notifier = Notifier(os.environ)
    logging.basicConfig(level=logging.INFO, format="twctl: %(message)s", stream=sys.stderr)
    file = Path(request["file"]) if request["file"] else None
    before: Config | None = None
    # Up to 16 descriptors for each network namespace; nothing here calls select(2), for which the usual limit is low.
    with contextlib.suppress(OSError, ValueError):  # a sandbox may not let us; then fewer fit, and say so
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
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
    if request.get("release") and before:
        options = ["--pins", str(before.pins)] + (["--config", str(file)] if file else [])
        os.execv(sys.executable, [sys.executable, "-m", "twctl", "release", *options])  # noqa: S606 - our own interpreter
    return 0


def _refuse(config: Config) -> None:
    """What cannot work is refused before anything is made. Raises TwctlError."""
    if config.mode is Mode.TRUNCATE:
        check.can_destroy()
    for name in config.netns:
        netns.cookie(name)
    if not config.all_netns:
        for namespace in config.netns or (None,):
            refuse_obstacles(namespace, config)


def _discovery(table: Table, folder: Path, config: Config, undo: contextlib.ExitStack) -> Discovery:
    """Have the namespaces join. The guard, where there is one, stays when the daemon stops: it answers for sessions."""
    if config.mode is Mode.VESTIGIAL and table.guard != guard_identity():
        loader.load_guard(folder)
    table.set_lives(config.time_wait, config.fin_wait2)
    namespaces = Namespaces(table, folder, config, journal_of(config.pins))
    undo.callback(namespaces.close)
    discovery = Discovery(namespaces, config)
    undo.callback(discovery.close)
    discovery.start()
    table.mode = config.mode
    return discovery


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
    sizes = {family: {class_.label: layout.capacity[family][class_] for class_ in Class} for family in FAMILIES}
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


def _reaper(table: Table, namespaces: Namespaces, reason: Reason) -> Reaper:
    return Reaper(table, namespaces.diags, reason, lambda index: namespaces[index].fin_timeout.seconds())


def _restore(journal: Journal, following: Callable[[], Config | None]) -> None:
    """Put the sysctls back at the end; where another configuration follows, its start sees to them."""
    if following() is None:
        for line in journal.restore():
            log.warning("%s", line)


def _draining(table: Table, namespaces: Namespaces, config: Config, undo: contextlib.ExitStack) -> "_Draining":
    pressure = Pressure(config.pressure.psi_stall, tcp_memory=config.pressure.tcp_memory)
    undo.callback(pressure.close)
    log.info("draining under pressure: %s", ", ".join(pressure.watching))
    return _Draining(table, _reaper(table, namespaces, Reason.DRAINED), pressure)


def _port_pressure(table: Table, namespaces: Namespaces, state: DaemonState, config: Config) -> PortPressure | None:
    if not config.pressure.port_headroom:
        return None
    if config.mode is not Mode.TRUNCATE:
        log.warning("pressure.port_headroom is ignored: only mode truncate shortens TIME_WAIT sockets")
        return None
    port_pressure = PortPressure(table, namespaces.diags)

    def shrunk() -> dict[tuple[str, ...], float]:
        names = {namespace.index: namespace.name or "" for namespace in namespaces}
        return {
            (names[each.netns], str(each.local), str(each.remote), str(each.remote_port)): seconds
            for each, seconds in port_pressure.seconds().items()
            if each.netns in names
        }

    state.shrunk = shrunk
    reaper_s = state.destroy_refused
    state.destroy_refused = lambda: reaper_s() + port_pressure.refused
    return port_pressure


def _fin_wait2(config: Config) -> dict[Class, float]:
    """A time of 60 s and more means the kernel's own, whatever tcp_fin_timeout says."""
    return {class_: seconds if seconds < KERNEL_TIME_WAIT else math.inf for class_, seconds in config.fin_wait2.items()}


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


def _state(config: Config, table: Table, discovery: Discovery, reaper: Reaper) -> DaemonState:
    namespaces = discovery.namespaces
    return DaemonState(
        mode=config.mode,
        probe=loader.PROBES[table.probe],
        time_wait=dict.fromkeys(Class, KERNEL_TIME_WAIT) if config.mode is Mode.OBSERVE else dict(config.time_wait),
        prefixes=namespaces.prefixes,
        kernel_sockets=lambda: namespaces.total(lambda namespace: namespace.sockstat.time_wait()),
        route_changes=lambda: namespaces.counts()["changes"],
        route_resyncs=lambda: namespaces.counts()["resyncs"],
        prefixes_refused=lambda: namespaces.counts()["refused"],
        lateness=reaper.lateness,
        destroy_refused=lambda: reaper.errors,
        namespaces=discovery.states,
        guard_devices=lambda: namespaces.total(
            lambda namespace: len(namespace.guard.devices) if namespace.guard else 0
        ),
        guard_reattached=lambda: namespaces.counts()["reattached"],
        sysctls=journal_of(config.pins).kept,
        ephemeral_ports=lambda: namespaces.total(lambda namespace: namespace.ports.ports()),
        socket_bytes=lambda: socket_bytes().mini,
        blamed=config.blame.metrics,
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

    mended: called after each comparison, with the numbers of the entries that were next before it put sessions into
    the table.
    """

    def __init__(self, table: Table, reconciler: Reconciler, state: DaemonState, config: Config) -> None:
        self._table, self._reconciler, self._state = table, reconciler, state
        self.mended: Callable[[Mapping[tuple[Class, str], int]], None] = lambda _: None
        # Of what the guard keeps the kernel has no list.
        seen = state.probe == "fentry" or config.mode is Mode.VESTIGIAL
        self._comparing = config.reconcile_interval > 0 and not seen
        self._counted = _has_count(config)
        self._interval = config.reconcile_interval if self._comparing else SWEEP_SECONDS
        self._quiet = self._interval  # the start has just done it

    def take_over(self, new: Sequence[Namespace] | None = None) -> None:
        """Take what the kernel has already in namespaces that have joined; None: all."""
        with self._table.exclusive():
            if new is None:
                drift = self._reconciler.round(end=False)
            else:
                drift = self._reconciler.take_over([namespace.index for namespace in new])
            _report(drift, "took over")
            self.mended(self._reconciler.marks())

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
        self.mended(self._reconciler.marks())
        self._state.reconciliations += 1
        self._state.drift = {"missing": drift.missing, "stale": drift.stale}
        self._state.unseen += 0 if self._counted else drift.missing
        _report(drift, "reconciled")
        return drift.seconds


class _Guarding:
    """Look at all devices from time to time, besides following the notifications; a namespace at a time."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._due: list[Namespace] = []

    def run(self) -> float:
        started = time.thread_time()
        namespaces = list(self._discovery.namespaces)
        self._due = [namespace for namespace in self._due if namespace in namespaces] or namespaces
        if self._due:
            self._discovery.attend(self._due.pop(), Namespace.look)
        return max(GUARD_SECONDS / max(1, len(namespaces)), (time.thread_time() - started) / GUARD_SHARE)


def _has_count(config: Config) -> bool:
    """Whether the kernel counts all entries, so that those which were missed are known."""
    return config.mode is Mode.VESTIGIAL or counts_entries()


class _Counting:
    """Count what was born unseen, from the kernel's own count."""

    def __init__(self, table: Table, namespaces: Namespaces, state: DaemonState) -> None:
        self._state = state
        self._unseen = Unseen(namespaces, lambda: sum(table.counters().values["entered"]))
        self._unseen.look()

    def run(self) -> float:
        started = time.thread_time()
        with contextlib.suppress(OSError):
            if self._unseen.look() > self._state.unseen:
                log.warning("%d entries were not seen by the probe", self._unseen.total - self._state.unseen)
                self._state.unseen = self._unseen.total
        return max(COUNT_SECONDS, (time.thread_time() - started) / GUARD_SHARE)


class _Beating:
    """Tells whether the loop goes round: what serves has a thread of its own, and would go on."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def run(self) -> float:
        self._last = time.monotonic()
        return BEAT_SECONDS

    def healthy(self) -> bool:
        """Asked in the server's thread."""
        return time.monotonic() - self._last < HANGING_SECONDS


class _Reporting:
    """Tell the service manager that the loop goes round: twice in the time after which it would end us."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def run(self) -> float:
        self._notifier.alive()
        return self._notifier.watchdog / 2


class _Leaving:
    """Take a guard that an earlier mode left away once the last vestige that only it knows of has expired."""

    def __init__(self, table: Table, folder: Path) -> None:
        self._table, self._folder = table, folder
        self.seconds: float = max(table.lives) / 1e9 + TICK
        self._end: float = time.monotonic() + self.seconds

    def run(self) -> float:
        if (wait := self._end - time.monotonic()) > 0:
            return wait
        for line in remove_guard(self._table.enrolments(), self._folder):
            log.warning("%s", line)
        log.info("the guard of mode vestigial is gone: all its sessions are over")
        self._table.guard = 0
        return math.inf


class _Truncating:
    """Destroy what is due, nearest class first."""

    def __init__(self, table: Table, reaper: Reaper, limits: Limits) -> None:
        self._table, self._reaper, self._limits = table, reaper, limits

    def run(self) -> float:
        with self._table.exclusive():
            waits = [self._reaper.reap(class_, self._limits, TRUNCATE_BATCH)[1] for class_ in Class]
        return max(TRUNCATE_SECONDS, min(waits))


class _Following:
    """Keep classes and guard of each namespace as its routes and devices say."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery

    def fileno(self) -> int:
        return self._discovery.namespaces.fileno()

    def drain(self) -> None:
        for namespace in self._discovery.namespaces.changed():
            self._discovery.attend(namespace, Namespace.drain)


class _Foreseeing:
    """Look how many ports are left toward the destinations that are busiest now. It may take 5 % of a CPU at most."""

    def __init__(
        self,
        table: Table,
        namespaces: Namespaces,
        state: DaemonState,
        config: Config,
        port_pressure: PortPressure | None,
    ) -> None:
        self._table, self._namespaces, self._state, self._config = table, namespaces, state, config
        self._port_pressure = port_pressure
        self._watches: dict[Namespace, Watch] = {}
        self._before: Mapping[bytes, int] = {}
        self._worst: dict[int, list[Endpoint]] = {}

    def run(self) -> float:
        began = time.thread_time()
        busy, self._before = _busiest(self._table, self._config.blame.destinations, self._before)
        found = {namespace: self._look(namespace, busy.get(namespace.index, ())) for namespace in self._namespaces}
        uses = worst(itertools.chain.from_iterable(found.values()), self._config.blame.destinations)
        self._worst = {
            namespace.index: [(use.remote, use.remote_port) for use in mine if use in uses]
            for namespace, mine in found.items()
        }
        self._watches = {namespace: watch for namespace, watch in self._watches.items() if namespace in found}
        self._state.uses, self._state.uses_at = uses, time.monotonic()
        return max(PORTS_SECONDS, 20 * (time.thread_time() - began))

    def _look(self, namespace: Namespace, busy: Iterable[Endpoint]) -> list[Use]:
        """At the busiest, and at those that were worst: once their ports are used up, they are busy no more."""
        remotes = {*busy, *self._worst.get(namespace.index, ())}
        watch = self._watches.setdefault(namespace, Watch(namespace.diag, namespace.ports, namespace.name or ""))
        with contextlib.suppress(OSError):
            return watch.look({remote: self._time_wait(namespace, remote) for remote in remotes})
        return []

    def _time_wait(self, namespace: Namespace, remote: Endpoint) -> float:
        if self._config.mode is not Mode.TRUNCATE:
            return KERNEL_TIME_WAIT
        seconds = self._config.time_wait[namespace.routes.explain(remote[0]).class_]
        return self._port_pressure.toward(namespace.index, remote, seconds) if self._port_pressure else seconds


class _Shrinking:
    """While too few ports are left toward a destination, its sessions go sooner than their class's time."""

    def __init__(self, table: Table, namespaces: Namespaces, port_pressure: PortPressure, config: Config) -> None:
        self._table, self._namespaces, self._port_pressure, self._config = table, namespaces, port_pressure, config
        self._before: Mapping[bytes, int] = {}

    def run(self) -> float:
        if self._port_pressure.condemned:
            with self._table.exclusive():
                self._port_pressure.execute()
            return TRUNCATE_SECONDS
        began = time.thread_time()
        busy, self._before = _busiest(self._table, LOOKED, self._before)
        self._port_pressure.keep({namespace.index for namespace in self._namespaces})
        for namespace in self._namespaces:
            if remotes := {*busy.get(namespace.index, ()), *self._port_pressure.remotes(namespace.index)}:
                with contextlib.suppress(OSError):
                    found = namespace.diag.toward(list(remotes))
                    rules = {remote: self._rule(namespace, remote) for remote in remotes}
                    self._port_pressure.look(namespace.index, found, namespace.ports.range(), rules)
        return (
            max(SHRINK_SECONDS, 20 * (time.thread_time() - began))
            if not self._port_pressure.condemned
            else TRUNCATE_SECONDS
        )

    def _rule(self, namespace: Namespace, remote: Endpoint) -> Rule:
        class_, settings = namespace.routes.explain(remote[0]).class_, self._config.pressure
        normal, floor = self._config.time_wait[class_], settings.floor[class_]
        blocked = blocked_for(*namespace.ports.reuse(), remote[0], normal)
        # Where connect() takes sessions over before they could go, there is nothing to gain.
        return Rule(settings.port_headroom, normal, normal if blocked <= floor else floor, blocked)


def _busiest(
    table: Table, count: int, before: Mapping[bytes, int]
) -> tuple[dict[int, list[Endpoint]], dict[bytes, int]]:
    """By index of the namespace."""
    busy, after = busiest(table, count, before)
    found: dict[int, list[Endpoint]] = {}
    for remote in busy:
        found.setdefault(remote.netns, []).append((remote.address, remote.port))
    return found, after


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
            for class_ in Class:
                if self._reaper.reap(class_, self._limits, DRAIN_BATCH)[0]:
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
