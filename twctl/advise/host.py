"""Rules about the host as a whole: its limits, who closes first, and which mode fits. Each is a pure function."""

from twctl.addresses import host_port
from twctl.advise.advice import FORGOTTEN, NOW, SCARCE, SOON, USED_UP, Advice, called, endpoint, number, scarce, within
from twctl.advise.snapshot import Namespace, Snapshot, Unclosed
from twctl.modes.translation import PORTS

# Of a limit: from these shares on it is nearly reached, and reached for some that come.
NEARLY, FULL = 0.9, 0.98
# What a remedy would set conntrack's time for closed connections to (s).
CONNTRACK_SECONDS = 30
# So many sessions are worth a mode for their memory alone, so many of one service a word.
MANY, SOME = 10_000, 1000
# A side closes first where it does so nine times as often as the other one, and once a second at least.
MOSTLY = 9.0
MODES = ("observe", "truncate", "vestigial")


def conntrack_full(snapshot: Snapshot) -> Advice | None:
    """Conntrack has room for few more connections; packets of what finds none are dropped."""
    worst = max(snapshot.namespaces, key=_tracked, default=None)
    if worst is None or _tracked(worst) < NEARLY:
        return None
    limits, closed = worst.limits, snapshot.entered + snapshot.passive
    seconds = limits.conntrack_time_wait or 0
    less, full = closed * max(0, seconds - CONNTRACK_SECONDS), _tracked(worst) >= FULL
    return Advice(
        weight=97 if full else NOW - 5,
        what=f"conntrack is {'' if full else 'nearly '}full{within(worst)}: then it drops packets of new connections",
        evidence=(
            f"it remembers {number(limits.conntrack or 0)} of at most {number(limits.conntrack_max or 0)} connections, "
            f"closed ones for {seconds} s, and {number(closed)} a second are closed here"
        ),
        remedy=(
            f"nf_conntrack_tcp_timeout_time_wait = {min(seconds, CONNTRACK_SECONDS)} or less in [sysctl] of "
            "/etc/twctl.toml, a greater net.netfilter.nf_conntrack_max, or notrack for this traffic."
        ),
        gain=f"{number(less)} fewer that it remembers"
        if less
        else "more room; a shorter time alone brings nothing here",
        anchor="conntrack-is-nearly-full",
    )


def translation_used_up(snapshot: Snapshot) -> Advice | None:
    """The host gives connections of others its own address, and has few ports of that left toward a destination."""
    found = [(each, where) for where in snapshot.namespaces for each in where.translations]
    worst, where = max(found, key=lambda pair: pair[0].taken, default=(None, None))
    if worst is None or where is None or worst.used < SCARCE:
        return None
    seconds, full = where.limits.conntrack_time_wait or 0, worst.used >= USED_UP
    gain = worst.closed * (1 - CONNTRACK_SECONDS / seconds) if seconds > CONNTRACK_SECONDS else 0.0
    remote = host_port(worst.remote, worst.remote_port)
    return Advice(
        weight=96 if full else SOON + 15,
        what=(
            f"the ports of {worst.source} that this host translates to get {'used up' if full else 'scarce'} toward "
            f"{remote}{within(where)}: without one a connection's SYN is dropped"
        ),
        evidence=(
            f"conntrack holds {number(worst.taken)} of {number(PORTS)} toward it, {number(worst.closed)} of them for "
            f"connections that were closed in the last {seconds} s"
        ),
        remedy=(
            f"nf_conntrack_tcp_timeout_time_wait = {min(seconds, CONNTRACK_SECONDS)} or less in [sysctl] of "
            "/etc/twctl.toml, connections that are kept alive, or more addresses to translate to."
        ),
        gain=f"{number(gain)} ports" if gain else "ports, with other connections; a shorter time alone brings none",
        anchor="the-ports-of-a-translation-are-used-up",
    )


def _tracked(each: Namespace) -> float:
    """Share of conntrack's room that is in use."""
    return (each.limits.conntrack or 0) / each.limits.conntrack_max if each.limits.conntrack_max else 0.0


def buckets_overflow(snapshot: Snapshot) -> Advice | None:
    """The kernel keeps no TIME_WAIT for some sessions, as tcp_max_tw_buckets is reached."""
    if snapshot.in_force == "vestigial":
        return None  # which sets it to 0, and does without
    worst = max(snapshot.namespaces, key=lambda each: each.overflowed, default=None)
    if worst is None or not worst.overflowed:
        return None
    limits = worst.limits
    return Advice(
        weight=SOON + 10,
        what=(
            f"tcp_max_tw_buckets is reached{within(worst)}: sessions end without TIME_WAIT, and their peers may get "
            "RSTs"
        ),
        evidence=(
            f"{number(limits.time_wait)} sockets of at most {number(limits.max_tw_buckets)}; "
            f"{number(worst.overflowed)} a second find no place, {number(limits.overflow)} since boot"
        ),
        remedy="A greater net.ipv4.tcp_max_tw_buckets; or mode truncate, so that each stays for a shorter time.",
        gain=f"TIME_WAIT for {number(worst.overflowed)} sessions a second more",
        anchor="tcp_max_tw_buckets-is-reached",
    )


def orphans_overflow(snapshot: Snapshot) -> Advice | None:
    """The kernel resets connections that no application has any more, as there are too many."""
    worst = max(snapshot.namespaces, key=_orphaned, default=None)
    if worst is None or _orphaned(worst) < NEARLY:
        return None
    return Advice(
        weight=SOON + 12,
        what="there are too many orphans (sockets that were closed and wait for their peers): the kernel resets them",
        evidence=(
            f"{number(worst.limits.orphans)} of at most {number(worst.limits.max_orphans or 0)}"
            f"{_most_orphans(snapshot)}"
        ),
        remedy=(
            "Find the peers that do not close (twctl table shows FIN_WAIT2); a shorter net.ipv4.tcp_fin_timeout, or a "
            "greater net.ipv4.tcp_max_orphans. In mode vestigial fewer [pressure] orphans."
        ),
        gain="no connection is reset",
        anchor="there-are-too-many-orphans",
    )


def _most_orphans(snapshot: Snapshot) -> str:
    """Who has left most of them, and which peer they wait for."""
    owners = [each for where in snapshot.namespaces for each in where.unclosed]
    remotes = [each for where in snapshot.namespaces for each in where.orphaned]
    owner = max(owners, key=lambda each: each.orphans, default=None)
    remote = max(remotes, key=lambda each: each.orphans, default=None)
    if not owner or not remote:
        return ""
    toward = host_port(remote.remote, remote.remote_port)
    return f"; most are of {owner.owner} ({number(owner.orphans)}), and wait for {toward} ({number(remote.orphans)})"


def peers_have_closed(snapshot: Snapshot) -> Advice | None:
    """A program keeps connections that its peers have closed; `connections_leak` tells of those to a destination."""
    found = [(_untold(each, where, snapshot), each, where) for where in snapshot.namespaces for each in where.unclosed]
    count, worst, where = max(found, key=lambda each: each[0], default=(0, None, None))
    if worst is None or where is None or count < FORGOTTEN:
        return None
    owner = called(worst.owner, "a program")
    return Advice(
        weight=SOON - 12,
        what=f"{owner} does not close connections that its peers have closed{within(where)}",
        evidence=f"{number(count)} sockets of it are in CLOSE_WAIT",
        remedy=(
            f"Find where {owner} forgets to close, or does not come to it: ss -tnp state close-wait shows them. "
            "At once: restart it. TIME_WAIT is not the cause, and no mode helps."
        ),
        gain=f"{number(count)} sockets and file descriptors",
        anchor="connections-stay-in-close_wait",
    )


def _untold(each: Unclosed, where: Namespace, snapshot: Snapshot) -> int:
    mine = [one for one in snapshot.destinations if (one.netns, one.owner) == (where.name, each.owner)]
    return each.close_wait - sum(one.close_wait for one in mine)


def _orphaned(each: Namespace) -> float:
    return each.limits.orphans / each.limits.max_orphans if each.limits.max_orphans else 0.0


def mode_fits(snapshot: Snapshot) -> Advice | None:
    """A mode that does more than the one in force would free sessions and ports, by the dry run."""
    short = scarce(snapshot)
    all_, truncate = snapshot.freed["vestigial"], snapshot.freed["truncate"]
    if not short and all_.sessions < MANY:
        return None
    obstacles = [text for each in snapshot.namespaces for text in each.obstacles]
    mode = "truncate" if 2 * truncate.sessions >= all_.sessions or obstacles else "vestigial"
    if MODES.index(mode) <= MODES.index(snapshot.in_force):
        return None
    found = snapshot.freed[mode]
    if not found.sessions and not short:
        return None
    headroom = " and [pressure] port_headroom = 0.2" if mode == "truncate" and short else ""
    why = f" (not vestigial: {obstacles[0]})" if obstacles else ""
    ports = f", and more toward {endpoint(short)} as its ports get fewer" if headroom and short else ""
    return Advice(
        weight=30 if short else 14,
        what=f"mode {mode} fits, if the programs cannot be changed{why}",
        evidence=(
            f"of {number(all_.sessions)} sessions truncate would have freed {number(truncate.sessions)} by now, "
            f"vestigial {number(all_.sessions)} ({snapshot.in_force} is in force)"
        ),
        remedy=f'mode = "{mode}"{headroom} in /etc/twctl.toml; twctl check says whether this host allows it.',
        gain=f"{number(found.sessions)} sockets, {number(found.ports)} ports, {found.bytes / 2**20:.1f} MiB{ports}",
        anchor="which-mode-fits",
    )


def server_closes_first(snapshot: Snapshot) -> Advice | None:
    """Sessions of a port on which this host accepts hold no port of connect(); tcp_tw_reuse is not for them."""
    most = max(snapshot.services, key=lambda each: each.sessions, default=None)
    if most is None or most.sessions < SOME:
        return None
    return Advice(
        weight=12,
        what=f"port {most.port} of this host closes first: that costs memory, and no port of connect()",
        evidence=f"{number(most.sessions)} sessions in TIME_WAIT on port {most.port}, of {most.owner}",
        remedy=(
            "Nothing has to be done. tcp_tw_reuse does not help: it is for the side that connects. There are fewer "
            "with keep-alive, or where clients close first."
        ),
        gain=f"{number(most.sessions)} sessions at most",
        anchor="a-server-here-closes-first",
    )


def peer_closes_first(snapshot: Snapshot) -> Advice | None:
    """The far side has TIME_WAIT, and this host has none."""
    if snapshot.passive < 1 or snapshot.passive < MOSTLY * snapshot.entered:
        return None
    return Advice(
        weight=10,
        what="the far side closes first: TIME_WAIT is there, and there is nothing to do here",
        evidence=(
            f"{number(snapshot.passive)} connections a second were closed by their peer first, "
            f"{number(snapshot.entered)} by this host"
        ),
        remedy="Nothing here. If ports run out, they do at the far side: run twctl there.",
        gain="nothing, as nothing is held",
        anchor="the-far-side-closes-first",
    )


def all_is_well(snapshot: Snapshot) -> Advice:
    """What is said where no rule has found anything."""
    most = max(snapshot.destinations, key=lambda each: each.used, default=None)
    used = f"; most ports are used toward {endpoint(most)}, {most.used:.0%}" if most else ""
    return Advice(
        weight=0,
        what="all is well",
        evidence=(
            f"sessions in TIME_WAIT: {number(snapshot.freed['vestigial'].sessions)}, {number(snapshot.entered)} a "
            f"second enter{used}; no connect() fails now"
        ),
        remedy="Nothing has to be done.",
        gain="nothing",
        anchor="all-is-well",
    )
