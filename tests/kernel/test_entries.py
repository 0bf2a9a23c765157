"""Mode observe on the real kernel: what real sockets of every class leave behind, against what passed on the wire."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.load import counters, paths, wait_until
from tests.load.daemon import Daemon, daemon
from tests.load.netns import Link, Namespace, add_addresses, link, namespace
from tests.load.paths import CLIENT, IPV4, IPV6, MAPPED, SERVER, Route, Session
from tests.load.peer import TunPeer, tun_peer
from tests.load.scripts import SCRIPTS, scripted
from tests.load.segments import capture
from twctl.table.records import Vestige

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
FAMILIES = (IPV4, IPV6, MAPPED)
CLASSES = ("loopback", "local", "remote")
QUIET = {"net.ipv4.tcp_rfc1337": 1}
FAR_IPV4, FAR_IPV6 = "10.99.0.1", "fd99::1"
ENTERED, PAST = "twctl_time_wait_entered_total", "twctl_closed_without_time_wait_total"
INTO_TIME_WAIT = (paths.fin_wait2, paths.fin_with_ack, paths.simultaneous)

Path = Callable[..., list[Session]]
Tuple = tuple[str, int, str, int]


class Host:
    """Client and server of one link, both watched; the server also has an address behind a router."""

    def __init__(self, stack: ExitStack, probe: str) -> None:
        self.link: Link = stack.enter_context(link(QUIET))
        add_addresses(self.link.server, "lo", FAR_IPV4, FAR_IPV6)
        self.link.client.ip("route", "add", f"{FAR_IPV4}/32", "via", self.link.server_ipv4)
        self.link.client.ip("route", "add", f"{FAR_IPV6}/128", "via", self.link.server_ipv6)
        self.peer: TunPeer = stack.enter_context(tun_peer(self.link.client))
        config = "capacity = 16384\nreconcile_interval = 0\n"
        self.daemon: Daemon = stack.enter_context(
            daemon(self.link.client, self.link.server, probe=probe, config=config)
        )

    def route(self, class_: str, family: str) -> Route:
        """The way from the client to a peer of this class."""
        if class_ == "loopback":
            return paths.over_lo(self.link.client, family)
        near = paths.over_link(self.link, family)
        if class_ == "local":
            return near
        far = FAR_IPV6 if family == IPV6 else FAR_IPV4
        return Route(near.client, near.server, near.client_address, far, family, near.device)

    def vestiges(self) -> dict[tuple[str, Tuple], Vestige]:
        """All of them, by namespace and tuple."""
        rows = self.daemon.table()
        found = {
            (each.netns, (str(each.local), each.local_port, str(each.remote), each.remote_port)): each for each in rows
        }
        assert len(rows) == len(found), "a session twice"
        return found

    def counts(self, *names: str) -> dict[str, float]:
        """Series of these names."""
        return {row: n for row, n in self.daemon.metrics().items() if row.split("{")[0] in names}


@pytest.fixture(scope="module")
def host(probe: str) -> Iterator[Host]:
    """One daemon for all tests of this module that can share it."""
    with ExitStack() as stack:
        yield Host(stack, probe)


def moved(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What moved, by how much."""
    return {row: after[row] - before[row] for row in after if after[row] != before[row]}


@pytest.mark.parametrize("closer", [CLIENT, SERVER])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("class_", CLASSES)
@pytest.mark.parametrize("path", INTO_TIME_WAIT)
def test_a_vestige_holds_what_passed_on_the_wire(host: Host, path: Path, class_: str, family: str, closer: str) -> None:
    """23 sessions, closed by either end: numbers, window and timestamps as captured, in the closer's namespace."""
    route = host.route(class_, family)
    with capture(route.client, route.device) as wire:
        sessions = path(route, N, closer)
        found = host.vestiges()
        # to the server its client is always on the link
        label = "local" if (class_, closer) == ("remote", SERVER) else class_
        for end in (session.end(closer) for session in sessions):
            assert end.ns
            vestige, seen = found[end.ns.name, end.tuple], wire.seen(*end.tuple)
            assert (label, "TIME_WAIT", seen.snd_nxt, seen.rcv_nxt, seen.window, seen.scale, seen.ts_recent) == (
                vestige.class_.label,
                vestige.substate,
                vestige.snd_nxt,
                vestige.rcv_nxt,
                vestige.window,
                vestige.window_scale,
                vestige.ts_recent,
            )
            assert seen.ts_offset is not None
            # The capture may be read late, which makes its own offset smaller.
            assert (vestige.ts_offset - seen.ts_offset + 50) % 2**32 <= 5000


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shutdown_first", [False, True])
def test_an_orphan_is_born_in_fin_wait2(host: Host, family: str, *, shutdown_first: bool) -> None:
    """The ACK of its FIN, or close() after it: 23 entries, of that class and family and nowhere else."""
    before = host.counts(ENTERED, PAST)
    route = host.route("remote", family)
    with paths.orphan_fin_wait2(route, N, CLIENT, shutdown_first=shutdown_first) as sessions:
        found = host.vestiges()
        assert ["FIN_WAIT2"] * N == [found[route.client.name, each.client.tuple].substate for each in sessions]
        wire = "ipv6" if family == IPV6 else "ipv4"
        row = f'{ENTERED}{{class="remote",family="{wire}"}}'
        assert {row: N} == moved(before, host.counts(ENTERED, PAST))


ENDINGS: dict[str, tuple[str, Path]] = {
    "reset in FIN_WAIT1": ("reset", partial(paths.reset_by_peer, state=counters.FIN_WAIT1)),
    "timeout in FIN_WAIT1": ("timeout", partial(paths.user_timeout, state=counters.FIN_WAIT1)),
    "keepalive in ESTABLISHED": ("timeout", paths.keepalive_timeout),
    "keepalive in FIN_WAIT2": ("timeout", partial(paths.keepalive_timeout, state=counters.FIN_WAIT2)),
    "LINGER2 below 0 in FIN_WAIT2": ("abort", partial(paths.linger2_negative, shutdown_first=True)),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_real_sockets_that_go_past_time_wait_are_counted(host: Host, name: str) -> None:
    """23 of each: none is born, and the active end counts as what it is."""
    how, path = ENDINGS[name]
    before = host.counts(ENTERED, PAST)
    path(host.route("local", IPV4), N, CLIENT)
    row = f'{PAST}{{how="{how}"}}'

    def counted() -> bool:
        return moved(before, host.counts(ENTERED, PAST)).get(row, 0) >= N

    wait_until(counted, what=how)
    assert not [each for each in moved(before, host.counts(ENTERED, PAST)) if each.startswith(ENTERED)]


SCRIPTED = {
    "reset_established": "reset",
    "reset_fin_wait1": "reset",
    "reset_fin_wait2": "reset",
    "reset_closing": "reset",
    "linger0_fin_wait2": "abort",
    "linger0_closing": "abort",
    "passive": "passive",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SCRIPTED)
def test_a_scripted_end_is_counted_as_what_it_is(host: Host, name: str, family: str) -> None:
    """23 of each, of one socket against a script: that counter moves by 23 and nothing else does."""
    before = host.counts(ENTERED, PAST)
    scripted(host.peer, name, N, family=family)
    row = f'{PAST}{{how="{SCRIPTED[name]}"}}'
    wait_until(lambda: moved(before, host.counts(ENTERED, PAST)) == {row: N}, what=name)


def test_every_script_is_accounted_for() -> None:
    """A script that comes to no mini-socket has its row here, but for two whose mini-socket lives for an instant."""
    past = {name for name, (_, state) in SCRIPTS.items() if state is None}
    assert {"reset_orphan", "data_after_close", "data_with_ack"} == past - SCRIPTED.keys()


def test_without_timestamps_there_is_no_ts_recent(probe: str) -> None:
    """net.ipv4.tcp_timestamps=0; the sequence numbers are there."""
    with (
        namespace({**QUIET, "net.ipv4.tcp_timestamps": 0}) as ns,
        daemon(ns, probe=probe, config="capacity = 1021\n") as one,
        capture(ns) as wire,
    ):
        sessions = [each for family in FAMILIES for each in paths.fin_wait2(paths.over_lo(ns, family), N, CLIENT)]
        seen = {session.client.tuple: wire.seen(*session.client.tuple) for session in sessions}
        assert {tuple_: (each.snd_nxt, each.rcv_nxt, None) for tuple_, each in seen.items()} == {
            (str(each.local), each.local_port, str(each.remote), each.remote_port): (
                each.snd_nxt,
                each.rcv_nxt,
                each.ts_recent,
            )
            for each in one.table()
        }


def test_link_local_sessions_keep_their_interface_apart(probe: str) -> None:
    """The same link-local tuple on two interfaces is two sessions, local ones, also to a comparison with the kernel."""
    with ExitStack() as stack:
        both = stack.enter_context(link(QUIET))
        both.client.ip("link", "add", "veth1", "type", "veth", "peer", "name", "veth1", "netns", both.server.name)
        for device in ("veth0", "veth1"):
            for ns, address in ((both.client, "fe80::aa"), (both.server, "fe80::bb")):
                ns.ip("address", "add", f"{address}/64", "dev", device, "nodad")
                ns.ip("link", "set", device, "up")
        config = "capacity = 1021\nreconcile_interval = 0.2\n"
        one = stack.enter_context(daemon(both.client, probe=probe, config=config))
        wait_until(lambda: _link_local_works(both), what="link-local addresses", timeout=10)
        for device in ("veth0", "veth1"):
            _close_over(both, device)
        assert [("local", "fe80::aa", 40000)] * 2 == [
            (each.class_.label, str(each.local), each.local_port) for each in one.table() if each.remote_port == 9001
        ]
        if probe == "tracepoint":
            rounds = one.metric("twctl_reconciliations_total") + 3
            wait_until(lambda: one.metric("twctl_reconciliations_total") >= rounds, what="comparisons", timeout=20)
        assert (0, 0) == (one.metric("twctl_time_wait_ended_total"), one.metric("twctl_time_wait_adopted_total"))


def _link_local_works(both: Link) -> bool:
    for ns, address in ((both.client, "fe80::aa"), (both.server, "fe80::bb")):
        for device in ("veth0", "veth1"):
            with ns.socket(socket.AF_INET6) as sock:
                try:
                    sock.bind((address, 0, 0, _index(ns, device)))
                except OSError:
                    return False
    return True


def _index(ns: Namespace, device: str) -> int:
    with ns.entered():
        return socket.if_nametoindex(device)


def _close_over(both: Link, device: str) -> None:
    with both.server.socket(socket.AF_INET6) as listener, both.client.socket(socket.AF_INET6) as client:
        for sock in (listener, client):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("fe80::bb", 9001, 0, _index(both.server, device)))
        listener.listen(1)
        client.bind(("fe80::aa", 40000, 0, _index(both.client, device)))
        client.connect(("fe80::bb", 9001, 0, _index(both.client, device)))
        server, _ = listener.accept()
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.close()
        assert client.recv(1) == b""
        paths.await_state(client, counters.CLOSE)
