"""The sysctls that a mode sets in its namespaces, in the order in which they are set.

In mode vestigial an orphan in FIN_WAIT2 stays the kernel's: with tcp_fin_timeout above 60 s its full socket waits for
all but 60 s of it (tcp_close, tcp_rcv_state_process, tcp_keepalive_timer). Only then does the kernel ask for a
mini-socket, which tcp_max_tw_buckets=0 refuses. So it is set to 60 s more than it was: FIN_WAIT2 lasts as long as
before, its port stays taken, and the peer's FIN finds the socket.

The guard asks the kernel for routes (bpf_fib_lookup), which answers only for a device that forwards. So lo does, by
which nothing ever comes in that could be forwarded.

Where packets over lo are translated, an answer of the guard has to come in by lo anew, for conntrack to translate it.
It has a source of this host then, which the kernel takes from lo only if it is told so: by accept_local, and for
127.0.0.0/8 by route_localnet.
"""

from twctl.config.config import Config
from twctl.config.keys import Mode
from twctl.linux.sysctl import NAMES, Raised, Wanted
from twctl.linux.tcp import KERNEL_TIME_WAIT

FIN_TIMEOUT, MAX_TW_BUCKETS = NAMES["tcp_fin_timeout"], NAMES["tcp_max_tw_buckets"]
LO_FORWARDING, LO_ACCEPT_LOCAL = "net.ipv4.conf.lo.forwarding", "net.ipv4.conf.lo.accept_local"
GUARD_NEEDS: Wanted = {
    LO_FORWARDING: 1,
    LO_ACCEPT_LOCAL: 1,
    "net.ipv4.conf.lo.route_localnet": 1,
}


def sysctls_of(config: Config, *, orphans_stay: bool) -> Wanted:
    """Full names, and what each is to be.

    orphans_stay: in mode vestigial, whether orphans in FIN_WAIT2 stay sockets of the kernel; else they become vestiges.
    """
    if config.mode is not Mode.VESTIGIAL:
        return config.sysctl
    # TIME_WAIT sockets go last, and are the first to come back: meanwhile orphans have a longer time, and lose nothing.
    fin_timeout = fin_timeout_of(config, orphans_stay=orphans_stay)
    return {**config.sysctl, **GUARD_NEEDS, FIN_TIMEOUT: fin_timeout, MAX_TW_BUCKETS: 0}


def fin_timeout_of(config: Config, *, orphans_stay: bool) -> int | Raised:
    """tcp_fin_timeout in mode vestigial. Where orphans do not stay it is 60 s at most: of more they would stay, too."""
    kernel, said = int(KERNEL_TIME_WAIT), config.sysctl.get(FIN_TIMEOUT)
    fin_timeout = Raised(kernel) if orphans_stay else Raised(0, most=kernel)
    return fin_timeout if said is None else fin_timeout.of(said)
