"""What the daemon does in its mode: the tasks of one run, made once, and read by the metrics."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator

from twctl.config.config import Config
from twctl.config.keys import Mode
from twctl.daemon.conntrack import WatchingConntrack
from twctl.daemon.discovery import Discovery, FollowingNamespaces
from twctl.daemon.loop import Source, Task
from twctl.daemon.namespaces import Namespaces
from twctl.daemon.orphans import WatchingOrphans
from twctl.daemon.ports import PortLook, RelievingPorts
from twctl.daemon.reclaim import Draining, Truncating
from twctl.daemon.searches import MeasuringSearches, measuring_searches
from twctl.daemon.suspending import Suspending
from twctl.daemon.unseen import CountingUnseen, is_counted
from twctl.daemon.upkeep import Guarding, Leaving, Reconciling
from twctl.linux.pressure import Pressure
from twctl.modes.port_pressure import PortPressure
from twctl.modes.reconcile import Reconciler
from twctl.modes.times import limits_of
from twctl.modes.truncate import Reaper
from twctl.table.counters import Reason
from twctl.table.maps import Table

log = logging.getLogger("twctl")


@dataclasses.dataclass(frozen=True)
class Work:
    """The tasks of a mode; None: not in this mode, or not asked for.

    reaper: what destroys the sockets that are due; port_pressure: what makes their time shorter where ports are few.
    """

    reconciling: Reconciling
    discovery: Discovery
    reaper: Reaper
    unseen: CountingUnseen | None = None
    guarding: Guarding | None = None
    suspending: Suspending | None = None
    orphans: WatchingOrphans | None = None
    leaving: Leaving | None = None
    truncating: Truncating | None = None
    draining: Draining | None = None
    port_pressure: PortPressure | None = None
    relieving: RelievingPorts | None = None
    port_look: PortLook | None = None
    conntrack: WatchingConntrack | None = None
    searches: MeasuringSearches | None = None

    def tasks(self) -> Iterator[Task]:
        """All of them; our own namespace alone neither comes nor goes."""
        named = self.discovery if self.discovery.follows_names else None
        tasks: tuple[Task | None, ...] = (
            self.reconciling,
            self.guarding,
            self.suspending,
            self.orphans,
            self.unseen,
            self.leaving,
            self.port_look,
            self.conntrack,
            self.truncating,
            self.draining,
            self.relieving,
            self.searches,
            named,
        )
        return (task for task in tasks if task)

    def sources(self) -> Iterator[Source]:
        """What tells of changes."""
        yield FollowingNamespaces(self.discovery)
        if self.discovery.follows_names:
            yield self.discovery

    def unseen_entries(self) -> int:
        """Entries that no probe saw: by the kernel's count or, where it has none, by its list."""
        return self.unseen.total if self.unseen else self.reconciling.missing

    def refused(self) -> int:
        """Sockets that the kernel did not destroy, for they were gone or another's."""
        return self.reaper.errors + (self.port_pressure.refused if self.port_pressure else 0)


def start_work(
    table: Table, namespaces: Namespaces, config: Config, leaving: Leaving | None, undo: contextlib.ExitStack
) -> Work:
    """Have the namespaces join, take over what the kernel has, and make the tasks of the mode.

    leaving: takes away a guard that this mode does not want.

    :raises TwctlError: if a namespace that has to join cannot.
    """
    truncates, limits = config.mode is Mode.TRUNCATE, limits_of(config)
    reaper = Reaper(table, namespaces.diags, Reason.TRUNCATED)
    reconciling = Reconciling(
        table,
        Reconciler(table, namespaces.diags),
        config,
        ends_seen=table.probe == "fentry",
        taken_over=lambda marks: reaper.take_up(marks, limits) if truncates else None,
    )
    discovery = Discovery(namespaces, config, reconciling.take_over)
    undo.callback(discovery.close)
    discovery.start()
    table.mode = config.mode
    reconciling.take_over()
    reconciling.wait(leaving.seconds if leaving else 0.0)
    port_pressure = _port_pressure(table, namespaces, config)
    _warn_of_reuse_age(config)
    if searches := measuring_searches(table, config.port_search):
        undo.callback(searches.close)
    return Work(
        reconciling=reconciling,
        discovery=discovery,
        reaper=reaper,
        unseen=CountingUnseen(namespaces, lambda: table.counters().asked_for()) if is_counted(config.mode) else None,
        guarding=Guarding(discovery) if config.mode is Mode.VESTIGIAL else None,
        suspending=_suspending(discovery, config, undo),
        orphans=_orphans(namespaces, config, undo) if config.mode is Mode.VESTIGIAL else None,
        leaving=leaving,
        truncating=Truncating(reaper, limits) if truncates else None,
        draining=_draining(table, namespaces, config, undo) if truncates else None,
        port_pressure=port_pressure,
        relieving=RelievingPorts(table, namespaces, port_pressure) if port_pressure else None,
        port_look=PortLook(table, namespaces, config, port_pressure) if config.blame.destinations else None,
        conntrack=WatchingConntrack(namespaces, config.blame.destinations),
        searches=searches,
    )


def _port_pressure(table: Table, namespaces: Namespaces, config: Config) -> PortPressure | None:
    if not config.pressure.port_headroom:
        return None
    if config.mode is not Mode.TRUNCATE:
        log.warning("pressure.port_headroom is ignored: only mode truncate shortens TIME_WAIT sockets")
        return None
    return PortPressure(table, namespaces.diags, config)


def _warn_of_reuse_age(config: Config) -> None:
    if config.mode is not Mode.VESTIGIAL and any(config.reuse_age.values()):
        log.warning("reuse_age is ignored: only in mode vestigial the guard holds a SYN back")


def _suspending(discovery: Discovery, config: Config, undo: contextlib.ExitStack) -> Suspending | None:
    if config.mode is not Mode.VESTIGIAL or config.force:
        return None
    suspending = Suspending(discovery)
    undo.callback(suspending.close)
    return suspending


def _orphans(namespaces: Namespaces, config: Config, undo: contextlib.ExitStack) -> WatchingOrphans:
    watching = WatchingOrphans(namespaces, config.pressure.orphans)
    undo.callback(watching.close)
    return watching


def _draining(table: Table, namespaces: Namespaces, config: Config, undo: contextlib.ExitStack) -> Draining:
    pressure = Pressure(config.pressure.psi_stall, tcp_memory=config.pressure.tcp_memory)
    undo.callback(pressure.close)
    log.info("draining under pressure: %s", ", ".join(pressure.watching))
    return Draining(Reaper(table, namespaces.diags, Reason.DRAINED), pressure)
