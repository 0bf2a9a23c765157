"""The metrics of the daemon's own work: namespaces, tasks, ports, and what the kernel itself counts."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import InfoMetricFamily

from twctl import __version__
from twctl.config.config import Config
from twctl.daemon.families import Metric, counter, gauge, histogram, single
from twctl.daemon.namespace import Namespace
from twctl.daemon.namespaces import Namespaces
from twctl.daemon.work import Work
from twctl.linux.procfs import MaxOrphans, Sockstat, socket_bytes
from twctl.modes.obstacles import KINDS
from twctl.modes.times import time_wait_in_force
from twctl.modes.truncate import Reaper
from twctl.table.maps import MODES, Table

# What became of a network namespace to work in; refused: something stands in the way.
STATES = ("enrolled", "refused", "beyond_capacity")
DESTINATION = ("netns", "local", "remote", "remote_port")


def namespace_metrics(namespaces: Namespaces, states: Mapping[str, int]) -> Iterator[Metric]:
    """Namespaces, and what stands in them: the guard, sysctls, prefixes, routes."""
    counts = namespaces.counts()
    yield gauge("twctl_guard_devices", "Devices that have the guard.", single(namespaces.guarded_devices()))
    text = "Devices on which it was put back at the last look, or since the one before; none where it is suspended."
    yield gauge("twctl_guard_missing_devices", text, single(namespaces.missing_devices()))
    text = "Filters of the guard that somebody took away and that were put back."
    yield counter("twctl_guard_reattached", text, single(counts["reattached"]))
    text = "Seconds from the appearance of a device to its guard."
    yield histogram("twctl_guard_delay_seconds", text, single(namespaces.guard_delays))
    text = "Devices that had carried a packet before they had the guard."
    yield counter("twctl_guard_late_devices", text, single(counts["late"]))
    text = "Whether a sysctl that twctl set still is as it was set, in all namespaces."
    sysctls = [((name,), int(kept)) for name, kept in namespaces.sysctls_kept().items()]
    yield gauge("twctl_sysctl_as_set", text, sysctls, "sysctl")
    text = "Prefixes that the probe asks for a peer's class."
    prefixes = [((k.label, f), count) for (k, f), count in namespaces.prefixes().items()]
    yield gauge("twctl_classifier_prefixes", text, prefixes, "class", "family")
    text = "Prefixes for which the probe's tries have no room."
    refused = sum(namespaces.ask(lambda each: each.tries.refused))
    yield gauge("twctl_classifier_refused_prefixes", text, single(refused))
    text = "Network namespaces to work in, by what became of them."
    yield gauge("twctl_network_namespaces", text, [((each,), states[each]) for each in STATES], "state")
    text = "Route, address and link notifications."
    yield counter("twctl_route_changes", text, single(counts["changes"]))
    text = "Full reads of the routes after a lost notification."
    yield counter("twctl_route_resyncs", text, single(counts["resyncs"]))


def task_metrics(work: Work) -> Iterator[Metric]:
    """Comparisons with the kernel's list, unseen entries, and what mode truncate destroys."""
    reconciling = work.reconciling
    text = "Comparisons of the table with the kernel's own list."
    yield counter("twctl_reconciliations", text, single(reconciling.rounds))
    yield counter("twctl_reconcile_errors", "Comparisons that failed.", single(reconciling.errors))
    text = "Entries that the probe did not see, by the kernel's count; before Linux 5.18 by its list."
    yield counter("twctl_time_wait_unseen", text, single(work.unseen_entries()))
    drift = [((which,), count) for which, count in reconciling.drift.items()]
    text = "Differences that the last comparison mended: sessions missing in the table, or in the kernel (stale)."
    yield gauge("twctl_table_drift_sessions", text, drift, "which")
    yield _lateness(work.reaper)
    text = "Sockets that were gone, or another's, when the kernel was told to destroy them."
    yield counter("twctl_destroy_refused", text, single(work.refused()))
    text = "Sessions that mode truncate left to the kernel, as too many others waited for another look."
    yield counter("twctl_truncate_passed_over", text, single(work.reaper.passed_over))


def _lateness(reaper: Reaper) -> Metric:
    text = "Seconds from the end of the class's time to the destruction of the socket, in mode truncate."
    rows = [((class_.label,), late) for class_, late in reaper.lateness.items()]
    return histogram("twctl_truncate_lateness_seconds", text, rows, "class")


def mode_metrics(config: Config, table: Table) -> Iterator[Metric]:
    """What is in force."""
    seconds = [((k.label,), seconds) for k, seconds in time_wait_in_force(config).items()]
    text = "Seconds that a session of the class stays in TIME_WAIT."
    yield gauge("twctl_time_wait_seconds", text, seconds, "class")
    modes = [((mode,), int(mode == config.mode)) for mode in MODES]
    yield gauge("twctl_mode", "1 for the mode that runs.", modes, "mode")
    info = InfoMetricFamily("twctl_build", "Version, and the probe that sees entries and ends.")
    info.add_metric([], {"version": __version__, "probe": table.probe})
    yield info


def kernel_metrics(namespaces: Namespaces) -> Iterator[Metric]:
    """What the kernel counts in the enrolled namespaces, and limits there."""
    sockets = _by_netns(namespaces, lambda each: each.sockstat.time_wait())
    text = "TIME_WAIT and FIN_WAIT2 mini-sockets that the kernel counts in the enrolled namespaces."
    yield gauge("twctl_kernel_time_wait_sockets", text, single(sum(count for _, count in sockets)))
    yield gauge("twctl_netns_time_wait_sockets", "The same of each enrolled namespace.", sockets, "netns")
    text = "Mini-sockets that the kernel keeps in a namespace at most (tcp_max_tw_buckets)."
    most = _by_netns(namespaces, lambda each: each.max_time_wait.count())
    yield gauge("twctl_netns_time_wait_limit_sockets", text, most, "netns")
    text = "Sessions that found no room there since the namespace was made (TCPTimeWaitOverflow)."
    overflow = _by_netns(namespaces, lambda each: each.entry_count.overflow())
    yield counter("twctl_netns_time_wait_overflow", text, overflow, "netns")
    text = "Ports that the kernel chooses local ones from, summed over the enrolled namespaces."
    yield gauge("twctl_kernel_ephemeral_ports", text, single(sum(namespaces.ask(lambda each: each.ports.ports()))))
    text = "Kernel memory of one TIME_WAIT mini-socket, without its port; 0 where the kernel does not tell."
    yield gauge("twctl_kernel_time_wait_socket_bytes", text, single(socket_bytes().mini))


def _by_netns(namespaces: Namespaces, number: Callable[[Namespace], int]) -> list[tuple[tuple[str, ...], int]]:
    return namespaces.ask(lambda each: ((each.name or "",), number(each)))


def orphan_metrics(work: Work) -> Iterator[Metric]:
    """Sockets without an application, and whether mode vestigial leaves those in FIN_WAIT2 to the kernel."""
    watching = work.orphans
    with contextlib.closing(Sockstat()) as sockets, contextlib.closing(MaxOrphans()) as most:
        orphans, limit = sockets.orphans(), most.count()
    text = "Sockets without an application, of all network namespaces."
    yield gauge("twctl_kernel_orphan_sockets", text, single(orphans))
    text = "Orphans that the kernel keeps at most (tcp_max_orphans); only the initial network namespace shows it."
    yield gauge("twctl_kernel_orphan_limit_sockets", text, single(limit) if math.isfinite(limit) else ())
    text = "Above so many orphans those in FIN_WAIT2 become vestiges."
    yield gauge("twctl_orphan_limit_sockets", text, single(watching.limit()) if watching else ())
    text = "1 while orphans in FIN_WAIT2 stay sockets of the kernel, 0 while they become vestiges."
    yield gauge("twctl_orphans_stay", text, single(int(watching.stay)) if watching else ())


def obstacle_metrics(work: Work) -> Iterator[Metric]:
    """What is between wire and sockets."""
    text = "Obstacles in network namespaces; as long as there is one, the guard is suspended there, or not there yet."
    found = work.suspending.found() if work.suspending else {}
    kinds = KINDS if work.suspending else ()
    yield gauge("twctl_guard_obstacles", text, [((kind,), found.get(kind, 0)) for kind in kinds], "kind")


def port_metrics(work: Work) -> Iterator[Metric]:
    """Ports toward the destinations that are nearest to their end, and where TIME_WAIT is shorter for it."""
    look = work.port_look
    uses = [
        ((use.netns, str(use.local), str(use.remote), str(use.remote_port)), use) for use in (look.uses if look else ())
    ]
    text = "Share of the ephemeral ports held toward a destination; the worst only, from 5 % on."
    yield gauge("twctl_ephemeral_ports_used_ratio", text, [(where, use.ratio) for where, use in uses], *DESTINATION)
    ago = time.monotonic() - (look.looked_at if look else 0.0)
    left = [(where, math.inf if use.seconds_left is None else max(0, use.seconds_left - ago)) for where, use in uses]
    text = "Seconds until connect() finds no port toward it, at the rate of the last 10 s; +Inf: never."
    yield gauge("twctl_ephemeral_ports_left_seconds", text, left, *DESTINATION)
    text = "Seconds that sessions stay in TIME_WAIT toward a destination while few ports are left (port_headroom)."
    shorter = work.relieving.seconds() if work.relieving else {}
    yield gauge("twctl_pressure_time_wait_seconds", text, shorter.items(), *DESTINATION)


def conntrack_metrics(work: Work) -> Iterator[Metric]:
    """How full conntrack is, what it has refused, and the ports that the host's own translation holds."""
    fills = work.conntrack.fills if work.conntrack else {}
    text = "Connections that conntrack remembers."
    yield gauge("twctl_conntrack_entries", text, [((name,), fill.entries) for name, fill in fills.items()], "netns")
    text = "Connections that conntrack remembers at most (nf_conntrack_max)."
    yield gauge("twctl_conntrack_limit_entries", text, [((name,), fill.most) for name, fill in fills.items()], "netns")
    refused = [
        ((name, reason), count) for name, fill in fills.items() for reason, count in (fill.refused or {}).items()
    ]
    text = "What conntrack could not take: insert_failed, drop; or forgot to make room: early_drop."
    yield counter("twctl_conntrack_refused", text, refused, "netns", "reason")
    found = work.conntrack.translations if work.conntrack else ()
    used = [((each.netns, each.source, each.remote, str(each.remote_port)), each.used) for each in found]
    text = "Share of the ports of an address that this host translates to that is held toward a destination."
    yield gauge("twctl_translated_ports_used_ratio", text, used, *DESTINATION)
