"""The daemon of `twctl run`: its `run` is the boot order, its loop is what happens afterwards."""

import contextlib
import dataclasses
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from twctl import loader, netns
from twctl.classes import Class
from twctl.config import KERNEL_TIME_WAIT, Config, Mode, load
from twctl.errors import TwctlError
from twctl.kernel import Sockstat
from twctl.layout import FAMILIES, NAMESPACES, Layout
from twctl.metrics import DaemonState, TwctlCollector
from twctl.pins import Pins
from twctl.reconcile import Drift, Reconciler
from twctl.routes import RouteWatcher
from twctl.server import Server
from twctl.sockdiag import SockDiag
from twctl.table import ClassTries, Table

log = logging.getLogger("twctl")

# Expired index words are zeroed this often where no reconciliation does it: they must not stay for 13 days (vestige.h).
SWEEP_SECONDS = 300.0
# A comparison with the kernel's list may take this share of one CPU: after a long one the next comes later.
RECONCILE_SHARE = 0.005


@dataclasses.dataclass
class Namespace:
    """One enrolled network namespace and what the daemon holds open in it."""

    index: int
    name: str | None
    routes: RouteWatcher
    tries: ClassTries
    diag: SockDiag
    sockstat: Sockstat


def run(config: Config) -> None:
    """Observe until SIGINT or SIGTERM.

    :raises TwctlError: if something that is needed cannot be had; then nothing new is left pinned.
    """
    if config.mode is not Mode.OBSERVE:
        raise TwctlError(f"mode {config.mode} is not available in this version", "use mode observe")
    with contextlib.ExitStack() as undo, _signals() as stopping:
        pins = Pins(config.pins)
        pins.open()
        cookies = {name: netns.cookie(name) for name in config.netns or (None,)}
        table = _table(pins, config)
        indexes = _indexes(table, cookies)
        namespaces = [_open(table, indexes[name], name, config, undo) for name in cookies]
        _enrol(table, namespaces, cookies)
        state = _state(config, table, namespaces)
        reconciler = Reconciler(table, {namespace.index: namespace.diag for namespace in namespaces})
        _report(reconciler.round(end=False), "took over")
        server = Server(config.listen, config.tls, _registry(table, state))
        undo.callback(server.close)
        log.info("observing with the %s probe, metrics on port %d", state.probe, server.port)
        _loop(stopping, namespaces, state, reconciler, config)
    log.info("stopped; the probes go on, 'twctl release' removes them")


def main() -> int:
    """Run in a process that `twctl run` became: without the command line's library, which is 8 MB of its own.

    The argument is JSON: the configuration file (or null) and the command line's options.
    """
    request = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="twctl: %(message)s", stream=sys.stderr)
    try:
        run(load(Path(request["file"]) if request["file"] else None, request["options"]).config)
    except TwctlError as error:
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
    sizes = {family: {klass.label: layout.capacity[family][klass] for klass in Class} for family in FAMILIES}
    loaded = pins.load(loader.Request(str(pins.root / "next"), sizes, config.probe))
    if loaded.refused:
        log.info("fentry is not available: %s", loaded.refused)
    return Table(pins.current, writable=True)


def _indexes(table: Table, cookies: dict[str | None, int]) -> dict[str | None, int]:
    """Give each namespace the index it has, or the lowest free one: others' vestiges keep theirs."""
    known = {cookie: index for index, (cookie, _) in table.enrolments().items()}
    free = iter(sorted(set(range(NAMESPACES)) - set(known.values())))
    return {name: known[cookie] if cookie in known else next(free) for name, cookie in cookies.items()}


def _open(table: Table, index: int, name: str | None, config: Config, undo: contextlib.ExitStack) -> Namespace:
    routes = undo.enter_context(RouteWatcher(config.classes, name))
    tries = ClassTries(table, index)
    tries.sync(routes.trie())
    diag, sockstat = SockDiag(name), Sockstat(name)
    undo.callback(diag.close)
    undo.callback(sockstat.close)
    return Namespace(index, name, routes, tries, diag, sockstat)


def _enrol(table: Table, namespaces: list[Namespace], cookies: dict[str | None, int]) -> None:
    """From here on births are recorded: the classes are known."""
    wanted = {namespace.index for namespace in namespaces}
    for index, (cookie, _) in table.enrolments().items():
        if index not in wanted:
            table.withdraw(index, cookie)
    for namespace in namespaces:
        table.enrol(namespace.index, cookies[namespace.name], namespace.name or "")


def _state(config: Config, table: Table, namespaces: list[Namespace]) -> DaemonState:
    def prefixes() -> dict[tuple[Class, str], int]:
        counts = [namespace.tries.counts() for namespace in namespaces]
        return {key: sum(count[key] for count in counts) for key in counts[0]}

    return DaemonState(
        mode=config.mode,
        probe=loader.PROBES[table.probe],
        time_wait=dict.fromkeys(Class, KERNEL_TIME_WAIT),
        prefixes=prefixes,
        kernel_sockets=lambda: sum(namespace.sockstat.time_wait() for namespace in namespaces),
        route_changes=lambda: sum(namespace.routes.changes for namespace in namespaces),
        route_resyncs=lambda: sum(namespace.routes.resyncs for namespace in namespaces),
        prefixes_refused=lambda: sum(namespace.tries.refused for namespace in namespaces),
    )


def _registry(table: Table, state: DaemonState) -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(TwctlCollector(table, state))
    return registry


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """Turn SIGINT and SIGTERM into a readable socket."""
    read, write = socket.socketpair()
    write.setblocking(False)  # noqa: FBT003 - socket's own signature
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(write.fileno())
    try:
        yield read
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in previous.items():
            signal.signal(number, handler)
        read.close()
        write.close()


def _loop(
    stopping: socket.socket, namespaces: list[Namespace], state: DaemonState, reconciler: Reconciler, config: Config
) -> None:
    reconciling = config.reconcile_interval > 0 and state.probe == "tracepoint"
    interval = config.reconcile_interval if reconciling else SWEEP_SECONDS
    due = time.monotonic() + interval
    with selectors.DefaultSelector() as selector:
        selector.register(stopping, selectors.EVENT_READ)
        for namespace in namespaces:
            selector.register(namespace.routes, selectors.EVENT_READ, namespace)
        while True:
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                if key.data is None:
                    return
                if key.data.routes.drain():
                    key.data.tries.sync(key.data.routes.trie())
            if time.monotonic() >= due:
                seconds = _reconcile(reconciler, state) if reconciling else reconciler.sweep()
                due = time.monotonic() + max(interval, seconds / RECONCILE_SHARE)


def _reconcile(reconciler: Reconciler, state: DaemonState) -> float:
    try:
        drift = reconciler.round()
    except OSError as error:
        state.reconcile_errors += 1
        log.warning("cannot compare the table with the kernel's list: %s", os.strerror(error.errno or 0))
        return 0.0
    state.reconciliations += 1
    state.drift = {"missing": drift.missing, "stale": drift.stale}
    _report(drift, "reconciled")
    return drift.seconds


def _report(drift: Drift, what: str) -> None:
    if drift.missing or drift.stale:
        log.info(
            "%s: %d sessions the table did not have, %d the kernel no longer has", what, drift.missing, drift.stale
        )


if __name__ == "__main__":
    sys.exit(main())
