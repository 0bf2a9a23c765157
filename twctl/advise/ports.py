"""Rules about the local ports that connect() needs: each is a pure function of the snapshot."""

from twctl.advise.advice import (
    FORGOTTEN,
    NOW,
    SCARCE,
    SOON,
    USED_UP,
    Advice,
    endpoint,
    ends_soon,
    failures,
    held,
    is_loopback,
    number,
    prefix,
    scarce,
    unit,
)
from twctl.advise.snapshot import Destination, Namespace, Snapshot
from twctl.linux.tcp import KERNEL_TIME_WAIT

# Fewer a second toward one destination are not worth a change of a program.
MANY_A_SECOND = 10.0
# From this share of the ports on sockets that only have them are what connect() lacks.
BOUND = 0.2
# What becomes more is a leak from this share of the ports on: before it may be a pool that warms up.
LEAKING = 0.2
# A search is long from 100 us on, fifty times what it takes while ports are free, and matters from 1 % of a CPU on.
LONG_SEARCH, SEARCH_LOAD = 1e-4, 0.01
REUSE_ALWAYS, REUSE_LOOPBACK = 1, 2  # tcp_tw_reuse


def ports_used_up(snapshot: Snapshot) -> Advice | None:
    """The host closes first, and its sessions hold all ports toward a destination, or will soon."""
    worst = scarce(snapshot)
    if worst is None or not (worst.used >= USED_UP or ends_soon(worst)):
        return None
    when = "are used up" if worst.used >= USED_UP else f"will be used up in {number(worst.seconds_left or 0)} s"
    fact = f"the ports toward {endpoint(worst)} {when}"
    if worst.fails and worst.used >= USED_UP:
        fact = f"connect() to {endpoint(worst)} fails"
    at_once = "" if snapshot.in_force == "vestigial" else f" At once: twctl drain --remote {prefix(worst)}."
    return Advice(
        weight=_weight(worst),
        what=f"{fact}: this host closes first, and each session holds a port for {KERNEL_TIME_WAIT:.0f} s",
        evidence=f"{held(worst)}; {number(worst.rate)} a second of late{failures(worst)}",
        remedy=f"Have {unit(worst)} keep its connections open, or pool them.{at_once}",
        gain=f"{number(worst.time_wait)} ports free at once, {number(worst.per_second)} fewer taken a second",
        anchor="ports-are-used-up-by-sessions-in-time_wait",
    )


def _weight(each: Destination) -> int:
    """Of ports that are used up, or will be."""
    if each.used >= USED_UP:
        return 100 if each.fails else 98
    return NOW if ends_soon(each) and (each.seconds_left or 0) <= KERNEL_TIME_WAIT else SOON + 20


def connections_leak(snapshot: Snapshot) -> Advice | None:
    """Connections toward a destination are opened, and not closed again."""
    found = [each for each in snapshot.destinations if each.live > each.time_wait and _leaks(each)]
    if not found:
        return None
    worst = max(found, key=lambda each: (each.fails, each.used, each.close_wait))
    growth = f", {number(worst.rate)} more a second" if worst.rate else ""
    end = f", all of them in {number(worst.seconds_left)} s" if worst.seconds_left and ends_soon(worst) else ""
    closed = f"; its end has closed {number(worst.close_wait)} of them (CLOSE_WAIT)" if worst.close_wait else ""
    return Advice(
        weight=_weight(worst) if worst.used >= USED_UP or ends_soon(worst) else SOON - 10,
        what=f"{unit(worst)} opens connections to {endpoint(worst)} and does not close them",
        evidence=f"{held(worst)}{growth}{end}{closed}{failures(worst)}",
        remedy=(
            f"Find where {unit(worst)} forgets to close, or bound its pool: ss -tnp dst {worst.remote} shows them. "
            "At once: restart it. TIME_WAIT is not the cause, and no mode helps."
        ),
        gain=f"{number(worst.live)} ports toward it",
        anchor="connections-are-not-closed",
    )


def _leaks(each: Destination) -> bool:
    grows = each.used >= LEAKING and each.rate > 0 and ends_soon(each)
    return each.close_wait >= FORGOTTEN or each.used >= SCARCE or grows


def ports_bound(snapshot: Snapshot) -> Advice | None:
    """connect() fails where ports toward the destination are free: bind() has them, or the caller has a range."""
    for each in sorted(snapshot.destinations, key=lambda each: -each.no_port):
        here = snapshot.namespace(each.netns)
        if here and each.used < SCARCE and _is_bound(each, here):
            return Advice(
                weight=99,
                what=f"connect() to {endpoint(each)} fails though ports toward it are free: bind() holds them",
                evidence=(
                    f"{held(each)}; of the {number(here.ports)} ports {number(here.bound)} are bound by sockets that "
                    f"have no connection, {number(here.listening)} by listeners{failures(each)}"
                ),
                remedy=(
                    "Set IP_BIND_ADDRESS_NO_PORT before bind() to an address, close what is bound and unused (ss -tanp "
                    "state bound-inactive), and let servers listen outside of ip_local_port_range."
                ),
                gain=f"{number(here.bound + here.listening)} ports, toward every destination",
                anchor="ports-are-held-by-bind",
            )
    return None


def _is_bound(each: Destination, here: Namespace) -> bool:
    return each.no_port > 0 or (each.fails and here.bound + here.listening >= BOUND * here.ports)


def keep_alive(snapshot: Snapshot) -> Advice | None:
    """A connection for each request: whoever kept them would have neither sessions nor the handshakes."""
    found = [each for each in snapshot.destinations if not is_loopback(each) and each.per_second >= MANY_A_SECOND]
    if not found:
        return None
    most = max(found, key=lambda each: each.per_second)
    return Advice(
        weight=40,
        what=f"{unit(most)} opens a connection to {endpoint(most)} each time, and closes it first",
        evidence=f"{number(most.per_second)} a second enter TIME_WAIT toward it, {number(most.sessions)} are there",
        remedy=f"Keep-alive or a pool in {unit(most)} (nginx: keepalive in upstream; HTTP clients: one session).",
        gain=f"{number(most.per_second)} entries a second, and as many handshakes; {number(most.sessions)} sessions",
        anchor="a-connection-for-each-request",
    )


def reuse_helps(snapshot: Snapshot) -> Advice | None:
    """tcp_tw_reuse would hand out ports again after its delay: this host connects, and has timestamps."""
    worst = scarce(snapshot)
    here = snapshot.namespace(worst.netns) if worst else None
    if not worst or not here or _reuses(worst, here) or not _has_timestamps(worst, here):
        return None
    young = min(worst.time_wait, worst.rate * here.limits.tw_reuse_delay)
    return Advice(
        weight=38,
        what=f"tcp_tw_reuse would help toward {endpoint(worst)}",
        evidence=(
            f"tcp_tw_reuse is {here.limits.tw_reuse}; {number(worst.stamped)} of {number(worst.sessions)} sessions "
            "toward it are known to have timestamps, and this host is the one that connects"
        ),
        remedy="tcp_tw_reuse = 1 in [sysctl] of /etc/twctl.toml; on Linux 6.14 or later tcp_tw_reuse_delay = 1, too.",
        gain=f"{number(worst.time_wait - young)} of the {number(worst.time_wait)} ports that TIME_WAIT holds toward it",
        anchor="tcp_tw_reuse-helps-or-does-not",
    )


def _reuses(each: Destination, here: Namespace) -> bool:
    """Whether tcp_tw_reuse is for this destination already."""
    reuse = here.limits.tw_reuse
    return reuse == REUSE_ALWAYS or (reuse == REUSE_LOOPBACK and is_loopback(each))


def _has_timestamps(each: Destination, here: Namespace) -> bool:
    return bool(here.limits.timestamps) and each.stamped >= each.plain


def reuse_needs_timestamps(snapshot: Snapshot) -> Advice | None:
    """tcp_tw_reuse does nothing for sessions without timestamps."""
    worst = scarce(snapshot)
    here = snapshot.namespace(worst.netns) if worst else None
    if not worst or not here or _has_timestamps(worst, here):
        return None
    on = here.limits.timestamps
    return Advice(
        weight=37,
        what=f"tcp_tw_reuse does not help toward {endpoint(worst)}: its sessions have no timestamps",
        evidence=(
            f"net.ipv4.tcp_timestamps is {on} here; {number(worst.plain)} of {number(worst.sessions)} sessions toward "
            "it are known to have none"
        ),
        remedy=f"net.ipv4.tcp_timestamps = 1 {'at the other end' if on else 'here, and at the other end'}.",
        gain=f"connect() could have most of {number(worst.time_wait)} ports again after a second",
        anchor="tcp_tw_reuse-helps-or-does-not",
    )


def loopback(snapshot: Snapshot) -> Advice | None:
    """With tcp_tw_reuse=2, the kernel's default, a load over lo has its ports back after a second."""
    found = [
        each for each in snapshot.destinations if is_loopback(each) and each.sessions and _comes_back(each, snapshot)
    ]
    if not found:
        return None
    most = max(found, key=lambda each: each.sessions)
    here = snapshot.namespace(most.netns)
    delay = here.limits.tw_reuse_delay if here else 1.0
    return Advice(
        weight=11,
        what=f"the load toward {endpoint(most)} stays on this host and needs nothing",
        evidence=(
            f"{number(most.sessions)} sessions, {number(most.per_second)} a second; connect() takes their ports again "
            f"after {delay:g} s, so {number(most.held)} of {number(most.ports)} are held"
        ),
        remedy=f"Nothing. A pool in {unit(most)} would save the work of connecting.",
        gain=f"a pool: {number(most.per_second)} connections a second; ports: nothing, they are free",
        anchor="a-load-on-loopback",
    )


def _comes_back(each: Destination, snapshot: Snapshot) -> bool:
    """Whether tcp_tw_reuse lets go of its ports: else it is a load like others."""
    here = snapshot.namespace(each.netns)
    return here is not None and _reuses(each, here) and _has_timestamps(each, here) and each.used < SCARCE


def search_is_long(snapshot: Snapshot) -> Advice | None:
    """connect() tries port after port before one is free: that is time of its caller, and of a CPU."""
    search = snapshot.search
    if search is None or search.mean < LONG_SEARCH or search.calls * search.mean < SEARCH_LOAD:
        return None
    took, load = f"{number(1e6 * search.mean)} us", f"{search.calls * search.mean:.0%}"
    worst = max(snapshot.destinations, key=lambda each: each.used, default=None)
    where = f"; most are held toward {endpoint(worst)}: {held(worst)}" if worst else ""
    steps = [each.limits.port_step for each in snapshot.namespaces]
    step = " net.ipv4.ip_local_port_step_width = 128 has it pass runs of them." if 0 in steps else ""
    return Advice(
        weight=SOON - 5,
        what=f"connect() takes {took} longer than it must: it looks that long for a free local port",
        evidence=f"{number(search.calls)} calls a second look for a port, {load} of a CPU at most{where}",
        remedy=(
            "Have fewer ports held: keep connections open or pool them; mode truncate with [pressure] port_headroom = "
            f"0.5; a wider net.ipv4.ip_local_port_range; more addresses.{step}"
        ),
        gain=f"{took} of each connect(), {load} of a CPU at most",
        anchor="connect-looks-long-for-a-port",
    )
