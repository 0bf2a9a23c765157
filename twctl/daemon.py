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

from twctl import capabilities, check, loader, netns
from twctl.blame import busiest
from twctl.classes import Class
from twctl.config import KERNEL_TIME_WAIT, Config, Mode, load
from twctl.errors import TwctlError
from twctl.follow import Follower
from twctl.guard import remove as remove_guard
from twctl.headroom import Use, Watch, blocked_for, worst
from twctl.kernel import counts_births, socket_bytes
from twctl.layout import FAMILIES, Layout, guard_identity
from twctl.members import Member, Members, refuse_obstacles
from twctl.metrics import DaemonState, TwctlCollector
from twctl.missed import Missed
from twctl.notify import Notifier
from twctl.pins import Pins
from twctl.pressure import Pressure
from twctl.reconcile import Drift, Reconciler
from twctl.server import Server
from twctl.shrink import Rule, Shrinker
from twctl.sockdiag import Endpoint
from twctl.sysctl import Journal, journal_of
from twctl.table import TICK, Reason, Table
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
PORTS_SECONDS = 5.0  # between two looks at the ports that are left
# With pressure.port_headroom the busiest destinations are looked at this often, and so many of them.
SHRINK_SECONDS = 1.0
LOOKED = 5
PRESSURE_SECONDS = 0.5
# Notifications say when a filter is taken away; this often all devices are looked at all the same.
GUARD_SECONDS = 10.0
# The kernel's count is compared with the births this often.
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
        follower = _follower(table, pins.current, config, undo)
        members = follower.members
        reaper = _reaper(table, members, Reason.TRUNCATED)
        state = _state(config, table, follower, reaper)
        limits = Limits(config.time_wait, _fin_wait2(config))
        comparing = _Reconciling(table, Reconciler(table, members.diags), state, config)
        if config.mode is Mode.TRUNCATE:
            comparing.mended = lambda marks: reaper.take_up(marks, limits)
        comparing.take_over()
        comparing.wait(leaving.seconds if leaving else 0.0)
        follower.joined = comparing.take_over
        beating = _Beating()
        tasks: list[_Task] = [comparing, beating]
        tasks += [_Guarding(follower)] if config.mode is Mode.VESTIGIAL else []
        tasks += [_Counting(table, members, state)] if _has_count(config) else []
        tasks += [leaving] if leaving else []
        shrinker = _shrinker(table, members, state, config)
        tasks += [_Foreseeing(table, members, state, config, shrinker)] if config.blame.destinations else []
        if config.mode is Mode.TRUNCATE:
            tasks += [_Truncating(table, reaper, limits), _draining(table, members, config, undo)]
        tasks += [_Shrinking(table, members, shrinker, config)] if shrinker else []
        # Our own namespace alone neither comes nor goes.
        names = [follower] if config.netns or config.all_netns else []
        tasks += names
        tasks += [_Reporting(notifier)] if notifier.watchdog else []
        capabilities.lower(pins.current / "maps" / "meta")
        server = Server(config.listen, config.tls, _registry(table, state), beating.healthy)
        undo.callback(server.close)
        log.info("%s", doing := f"{_DOING[config.mode]} with the {state.probe} probe, metrics on port {server.port}")
        notifier.ready(doing)
        following = _loop(signals, [_Following(follower), *names], tasks, _rereading(reread, notifier, doing))
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


def _follower(table: Table, folder: Path, config: Config, undo: contextlib.ExitStack) -> Follower:
    """Have the namespaces join. The guard, where there is one, stays when the daemon stops: it answers for sessions."""
    if config.mode is Mode.VESTIGIAL and table.guard != guard_identity():
        loader.load_guard(folder)
    table.set_lives(config.time_wait, config.fin_wait2)
    members = Members(table, folder, config, journal_of(config.pins))
    undo.callback(members.close)
    follower = Follower(members, config)
    undo.callback(follower.close)
    follower.start()
    table.mode = config.mode
    return follower


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


def _reaper(table: Table, members: Members, reason: Reason) -> Reaper:
    return Reaper(table, members.diags, reason, lambda index: members[index].fin_timeout.seconds())


def _restore(journal: Journal, following: Callable[[], Config | None]) -> None:
    """Put the sysctls back at the end; where another configuration follows, its start sees to them."""
    if following() is None:
        for line in journal.restore():
            log.warning("%s", line)


def _draining(table: Table, members: Members, config: Config, undo: contextlib.ExitStack) -> "_Draining":
    pressure = Pressure(config.pressure.psi_stall, tcp_memory=config.pressure.tcp_memory)
    undo.callback(pressure.close)
    log.info("draining under pressure: %s", ", ".join(pressure.watching))
    return _Draining(table, _reaper(table, members, Reason.DRAINED), pressure)


def _shrinker(table: Table, members: Members, state: DaemonState, config: Config) -> Shrinker | None:
    if not config.pressure.port_headroom:
        return None
    if config.mode is not Mode.TRUNCATE:
        log.warning("pressure.port_headroom is ignored: only mode truncate shortens TIME_WAIT sockets")
        return None
    shrinker = Shrinker(table, members.diags)

    def shrunk() -> dict[tuple[str, ...], float]:
        names = {member.index: member.name or "" for member in members}
        return {
            (names[each.netns], str(each.local), str(each.remote), str(each.remote_port)): seconds
            for each, seconds in shrinker.seconds().items()
            if each.netns in names
        }

    state.shrunk = shrunk
    reaper_s = state.destroy_refused
    state.destroy_refused = lambda: reaper_s() + shrinker.refused
    return shrinker


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


def _state(config: Config, table: Table, follower: Follower, reaper: Reaper) -> DaemonState:
    members = follower.members
    return DaemonState(
        mode=config.mode,
        probe=loader.PROBES[table.probe],
        time_wait=dict.fromkeys(Class, KERNEL_TIME_WAIT) if config.mode is Mode.OBSERVE else dict(config.time_wait),
        prefixes=members.prefixes,
        kernel_sockets=lambda: members.total(lambda member: member.sockstat.time_wait()),
        route_changes=lambda: members.counts()["changes"],
        route_resyncs=lambda: members.counts()["resyncs"],
        prefixes_refused=lambda: members.counts()["refused"],
        lateness=reaper.lateness,
        destroy_refused=lambda: reaper.errors,
        namespaces=follower.states,
        guard_devices=lambda: members.total(lambda member: len(member.guard.devices) if member.guard else 0),
        guard_reattached=lambda: members.counts()["reattached"],
        sysctls=journal_of(config.pins).kept,
        ephemeral_ports=lambda: members.total(lambda member: member.ports.ports()),
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

    mended: called after each comparison, with the numbers of the births that were next before it put sessions into
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

    def take_over(self, new: Sequence[Member] | None = None) -> None:
        """Take what the kernel has already in namespaces that have joined; None: all."""
        with self._table.exclusive():
            if new is None:
                drift = self._reconciler.round(end=False)
            else:
                drift = self._reconciler.take_over([member.index for member in new])
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
        self._state.missed += 0 if self._counted else drift.missing
        _report(drift, "reconciled")
        return drift.seconds


class _Guarding:
    """Look at all devices from time to time, besides following the notifications; a namespace at a time."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._due: list[Member] = []

    def run(self) -> float:
        started = time.thread_time()
        members = list(self._follower.members)
        self._due = [member for member in self._due if member in members] or members
        if self._due:
            self._follower.attend(self._due.pop(), Member.look)
        return max(GUARD_SECONDS / max(1, len(members)), (time.thread_time() - started) / GUARD_SHARE)


def _has_count(config: Config) -> bool:
    """Whether the kernel counts all births, so that those which were missed are known."""
    return config.mode is Mode.VESTIGIAL or counts_births()


class _Counting:
    """Count what was born unseen, from the kernel's own count."""

    def __init__(self, table: Table, members: Members, state: DaemonState) -> None:
        self._state = state
        self._missed = Missed(members, lambda: sum(table.counters().values["entered"]))
        self._missed.look()

    def run(self) -> float:
        started = time.thread_time()
        with contextlib.suppress(OSError):
            if self._missed.look() > self._state.missed:
                log.warning("%d births were not seen by the probe", self._missed.total - self._state.missed)
                self._state.missed = self._missed.total
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
            waits = [self._reaper.reap(klass, self._limits, TRUNCATE_BATCH)[1] for klass in Class]
        return max(TRUNCATE_SECONDS, min(waits))


class _Following:
    """Keep classes and guard of each namespace as its routes and devices say."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def fileno(self) -> int:
        return self._follower.members.fileno()

    def drain(self) -> None:
        for member in self._follower.members.changed():
            self._follower.attend(member, Member.drain)


class _Foreseeing:
    """Look how many ports are left toward the destinations that are busiest now. It may take 5 % of a CPU at most."""

    def __init__(
        self, table: Table, members: Members, state: DaemonState, config: Config, shrinker: Shrinker | None
    ) -> None:
        self._table, self._members, self._state, self._config = table, members, state, config
        self._shrinker = shrinker
        self._watches: dict[Member, Watch] = {}
        self._before: Mapping[bytes, int] = {}
        self._worst: dict[int, list[Endpoint]] = {}

    def run(self) -> float:
        began = time.thread_time()
        busy, self._before = _busiest(self._table, self._config.blame.destinations, self._before)
        found = {member: self._look(member, busy.get(member.index, ())) for member in self._members}
        uses = worst(itertools.chain.from_iterable(found.values()), self._config.blame.destinations)
        self._worst = {
            member.index: [(use.remote, use.remote_port) for use in mine if use in uses]
            for member, mine in found.items()
        }
        self._watches = {member: watch for member, watch in self._watches.items() if member in found}
        self._state.uses, self._state.uses_at = uses, time.monotonic()
        return max(PORTS_SECONDS, 20 * (time.thread_time() - began))

    def _look(self, member: Member, busy: Iterable[Endpoint]) -> list[Use]:
        """At the busiest, and at those that were worst: once their ports are used up, they are busy no more."""
        remotes = {*busy, *self._worst.get(member.index, ())}
        watch = self._watches.setdefault(member, Watch(member.diag, member.ports, member.name or ""))
        with contextlib.suppress(OSError):
            return watch.look({remote: self._time_wait(member, remote) for remote in remotes})
        return []

    def _time_wait(self, member: Member, remote: Endpoint) -> float:
        if self._config.mode is not Mode.TRUNCATE:
            return KERNEL_TIME_WAIT
        seconds = self._config.time_wait[member.routes.explain(remote[0]).class_]
        return self._shrinker.toward(member.index, remote, seconds) if self._shrinker else seconds


class _Shrinking:
    """While too few ports are left toward a destination, its sessions go sooner than their class's time."""

    def __init__(self, table: Table, members: Members, shrinker: Shrinker, config: Config) -> None:
        self._table, self._members, self._shrinker, self._config = table, members, shrinker, config
        self._before: Mapping[bytes, int] = {}

    def run(self) -> float:
        if self._shrinker.condemned:
            with self._table.exclusive():
                self._shrinker.execute()
            return TRUNCATE_SECONDS
        began = time.thread_time()
        busy, self._before = _busiest(self._table, LOOKED, self._before)
        self._shrinker.keep({member.index for member in self._members})
        for member in self._members:
            if remotes := {*busy.get(member.index, ()), *self._shrinker.remotes(member.index)}:
                with contextlib.suppress(OSError):
                    found = member.diag.toward(list(remotes))
                    rules = {remote: self._rule(member, remote) for remote in remotes}
                    self._shrinker.look(member.index, found, member.ports.range(), rules)
        return (
            max(SHRINK_SECONDS, 20 * (time.thread_time() - began)) if not self._shrinker.condemned else TRUNCATE_SECONDS
        )

    def _rule(self, member: Member, remote: Endpoint) -> Rule:
        klass, settings = member.routes.explain(remote[0]).class_, self._config.pressure
        normal, floor = self._config.time_wait[klass], settings.floor[klass]
        blocked = blocked_for(*member.ports.reuse(), remote[0], normal)
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
