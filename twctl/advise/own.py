"""Rules about twctl's own work: its daemon, its table and its guard. Each is a pure function of the snapshot."""

from twctl.advise.advice import BETTER, NOW, SOON, Advice, number, within
from twctl.advise.snapshot import Snapshot
from twctl.linux.tcp import KERNEL_TIME_WAIT
from twctl.table.looks import LOST_SHARE, TABLE_FULL


def no_daemon(snapshot: Snapshot) -> Advice | None:
    """The last daemon truncated or guarded, and none runs; who only observed may look at the table without it."""
    if snapshot.daemon or snapshot.mode == "observe":
        return None
    guards = snapshot.in_force == "vestigial"
    if guards:
        alone, all_ = len(snapshot.without_sockets), len(snapshot.namespaces)
        what = "no daemon runs, and the guard that the last one left does TIME_WAIT's duty alone"
        evidence = (
            f"tcp_max_tw_buckets is 0 in {number(alone)} of {number(all_)} network namespaces, new devices get no "
            "guard, and nobody sees to the sysctls"
        )
        gain = "a guard on each device, or TIME_WAIT sockets"
    else:
        what = f"no daemon runs: mode {snapshot.mode} is not in force"
        evidence = (
            f"{number(snapshot.freed['vestigial'].sessions)} sessions are in TIME_WAIT; each new one has a socket for "
            f"{KERNEL_TIME_WAIT:.0f} s"
        )
        gain = f"{number(snapshot.freed[snapshot.mode].sessions)} sockets, or nothing of twctl's in the kernel"
    return Advice(
        weight=NOW + 4 if guards else BETTER + 5,
        what=what,
        evidence=evidence,
        remedy="Start it (systemctl start twctl), or have everything given back: twctl release.",
        gain=gain,
        anchor="no-daemon-runs",
    )


def table_too_small(snapshot: Snapshot) -> Advice | None:
    """The table evicts sessions before their time, or soon will."""
    full = {name: share for name, share in snapshot.full.items() if share > TABLE_FULL or name in snapshot.evicted}
    if not full:
        return None
    worst = max(full, key=lambda name: (snapshot.evicted.get(name, 0.0), full[name]))
    evicted, guards = snapshot.evicted.get(worst, 0.0), snapshot.in_force == "vestigial"
    does = "evicts" if evicted else "is nearly full, and then evicts"
    lost = "late segments of theirs find no guard" if guards else "counts are too low, and mode truncate misses them"
    return Advice(
        weight=(NOW + 3 if guards else BETTER + 10) if evicted else (SOON + 5 if guards else BETTER + 2),
        what=f"the table {does} {worst} sessions: {lost}",
        evidence=f"{full[worst]:.0%} of the capacity of class {worst} is used; {number(evicted)} a second are evicted",
        remedy=(
            f"A greater {worst} in [capacity.ipv4] or [capacity.ipv6] of /etc/twctl.toml (entries a second times their "
            "time), and a restart; or a shorter [time_wait]."
        ),
        gain=f"{number(evicted)} sessions a second that stay" if evicted else "room for those that come",
        anchor="the-table-is-too-small",
    )


def entries_lost(snapshot: Snapshot) -> Advice | None:
    """The table could not take some entries, or not as they were."""
    lost = sum(snapshot.dropped.values())
    if lost <= LOST_SHARE * snapshot.entered:
        return None
    reasons = ", ".join(f"{number(rate)} {reason}" for reason, rate in snapshot.dropped.items())
    return Advice(
        weight=SOON + 2 if snapshot.in_force == "vestigial" else BETTER + 8,
        what="entries are lost, or kept imperfectly",
        evidence=f"a second: {reasons}; {number(snapshot.entered)} enter",
        remedy="docs/metrics.md (What is lost) has what each reason means.",
        gain=f"{number(lost)} entries a second that are kept as they are",
        anchor="entries-are-lost",
    )


def guard_suspended(snapshot: Snapshot) -> Advice | None:
    """Something came between wire and sockets, and so the kernel does TIME_WAIT's duty for the time being."""
    suspended = [each for each in snapshot.namespaces if each not in snapshot.without_sockets]
    if not snapshot.daemon or snapshot.mode != "vestigial" or not suspended:
        return None
    most = max(suspended, key=lambda each: each.limits.time_wait)
    why = "; ".join(most.obstacles) or "the daemon's log says why"
    cause = ": something is between wire and sockets" if most.obstacles else ""
    return Advice(
        weight=BETTER + 6,
        what=f"the guard is suspended{within(most)}{cause}",
        evidence=f"the kernel keeps {number(most.limits.time_wait)} TIME_WAIT sockets there; {why}",
        remedy="Remove it, or use mode truncate; force = true, if it does not concern TCP of this host.",
        gain="the guard in their place",
        anchor="the-guard-is-suspended",
    )
