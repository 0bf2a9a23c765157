"""Every way into TIME_WAIT, and the ways past it, each forced exactly and as often as asked.

A path is named after what the *active* end goes through. Its functions take a Route, how many sessions, and which end
closes first; they return when every end is in the state that its Session says (or is about to be: the kernel's last
step may be some microseconds away, so compare with `wait_until`).

Real sockets at both ends, over lo or a veth pair:

    into TIME_WAIT   fin_wait2  orphan_late_fin  fin_with_ack  simultaneous
    into FIN_WAIT2   orphan_fin_wait2 (a mini-socket for as long as the block lasts, or until its time is up)
    past both        abort_linger0  abort_unread  reset_by_peer  user_timeout  keepalive_timeout  linger2_negative
    the other side   passive

Paths of one kernel socket against a scripted peer, which need no timing at all, are in scripts.py.
"""

import array
import ctypes
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from tests.load import wait_until
from tests.load.counters import (
    CLOSE,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT1,
    FIN_WAIT2,
    TIME_WAIT,
    mini_sockets,
    plain,
    sockets,
)
from tests.load.netns import Link, Namespace
from tests.load.segments import ACK, FIN, Capture, Seen, Segment, capture, inject

IPV4, IPV6, MAPPED = "ipv4", "ipv6", "mapped"
CLIENT, SERVER = "client", "server"

SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_MEMINFO = 26, 27, 55  # not in the socket module
SK_MEMINFO_DROPS = 8  # place in what SO_MEMINFO gives
FILTER_DROP = (0x06, 0, 0, 0)  # classic BPF: BPF_RET | BPF_K, 0 bytes


@dataclass(frozen=True)
class Route:
    """Where the two ends are. `mapped`: both are AF_INET6 sockets that speak IPv4.

    dialled: what the client connects to, where that is translated (port 0: the server's); port: the server's (0: any);
    bound: the device that both ends' sockets are bound to.
    """

    client: Namespace
    server: Namespace
    client_address: str  # as on the wire
    server_address: str
    family: str = IPV4
    device: str = "lo"  # of the client, where every segment of both ends passes
    dialled: tuple[str, int] | None = None
    port: int = 0
    bound: str = ""

    @property
    def domain(self) -> int:
        """The family of the sockets."""
        return socket.AF_INET if self.family == IPV4 else socket.AF_INET6

    def socket(self, ns: Namespace) -> socket.socket:
        """A socket of an end."""
        made = ns.socket(self.domain)
        if self.bound:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.bound.encode())
        return made

    def spoken(self, address: str) -> str:
        """The address as the socket calls want it."""
        return f"::ffff:{address}" if self.family == MAPPED else address


def over_lo(ns: Namespace, family: str = IPV4) -> Route:
    """Both ends in one namespace."""
    address = "::1" if family == IPV6 else "127.0.0.1"
    return Route(ns, ns, address, address, family)


def over_link(link: Link, family: str = IPV4) -> Route:
    """The ends in two namespaces, joined by a veth pair."""
    if family == IPV6:
        return Route(link.client, link.server, link.client_ipv6, link.server_ipv6, family, link.device)
    return Route(link.client, link.server, link.client_ipv4, link.server_ipv4, family, link.device)


@dataclass(frozen=True)
class End:
    """One end of a session, as its own kernel names it, and the mini-socket that must be there: 6, 5 or None."""

    ns: Namespace | None  # None: a scripted peer
    local: str
    local_port: int
    remote: str
    remote_port: int
    table: str  # of /proc/net: tcp, or tcp6 for AF_INET6 sockets, the mapped ones too
    state: int | None

    @property
    def tuple(self) -> tuple[str, int, str, int]:
        """What identifies it on the wire."""
        return self.local, self.local_port, self.remote, self.remote_port


@dataclass(frozen=True)
class Session:
    """One connection that a path made. `seen`: the kernel's end at the moment of entry (scripted peer only)."""

    client: End
    server: End
    seen: Seen | None = None

    def end(self, side: str) -> End:
        """The end of that side."""
        return self.client if side == CLIENT else self.server


# ---- connections between two real sockets ----


@dataclass(frozen=True)
class Pair:
    """An open connection. `active` will close first."""

    route: Route
    closer: str
    active: socket.socket
    passive: socket.socket

    def session(self, active: int | None, passive: int | None = None) -> Session:
        """The session with the states its ends must come to. To be called while both sockets are open."""
        near, far = self._end(self.active, active), self._end(self.passive, passive)
        if self.closer == CLIENT:
            return Session(replace(near, ns=self.route.client), replace(far, ns=self.route.server))
        return Session(replace(far, ns=self.route.client), replace(near, ns=self.route.server))

    def _end(self, sock: socket.socket, state: int | None) -> End:
        (local, local_port, *_), (remote, remote_port, *_) = sock.getsockname(), sock.getpeername()
        table = "tcp" if sock.family == socket.AF_INET else "tcp6"
        return End(None, plain(local), local_port, plain(remote), remote_port, table, state)


@contextmanager
def connected(route: Route, n: int, closer: str, payload: bytes = b"twctl") -> Iterator[list[Pair]]:
    """`n` open connections, over which `payload` went both ways. What is still open at the end is closed."""
    pairs: list[Pair] = []
    with route.socket(route.server) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((route.spoken(route.server_address), route.port))
        listener.listen(n)
        address = listener.getsockname()
        if route.dialled:
            address = route.spoken(route.dialled[0]), route.dialled[1] or address[1]
        try:
            for _ in range(n):
                client = route.socket(route.client)
                client.bind((route.spoken(route.client_address), 0))
                client.connect(address)
                server, _peer = listener.accept()
                ends = (client, server) if closer == CLIENT else (server, client)
                pairs.append(Pair(route, closer, *ends))
                _exchange(client, server, payload)
            yield pairs
        finally:
            for pair in pairs:
                pair.active.close()
                pair.passive.close()


def _exchange(client: socket.socket, server: socket.socket, payload: bytes) -> None:
    for sender, receiver in ((client, server), (server, client)):
        sender.sendall(payload)
        missing = len(payload)
        while missing:
            missing -= len(receiver.recv(missing))


def state_of(sock: socket.socket) -> int:
    """The socket's TCP state; a socket whose mini-socket took over says CLOSE."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def await_state(sock: socket.socket, state: int) -> None:
    """Return when the socket is in that state."""
    wait_until(lambda: state_of(sock) == state, what=f"TCP state {state}, now {state_of(sock)}")


def reset(sock: socket.socket) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def deafen(sock: socket.socket) -> None:
    """From here on the socket drops every segment it gets, unread, as if it had been lost on the way."""
    code = ctypes.create_string_buffer(struct.pack("HBBI", *FILTER_DROP))
    program = struct.pack("HL", 1, ctypes.addressof(code))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def undeafen(sock: socket.socket) -> None:
    """The socket hears again."""
    sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


def drops(sock: socket.socket) -> int:
    """Segments the socket dropped, which is how a deaf one tells that a segment came."""
    return array.array("I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 64))[SK_MEMINFO_DROPS]


# ---- into TIME_WAIT ----


def fin_wait2(route: Route, n: int, closer: str = CLIENT) -> list[Session]:
    """shutdown(SHUT_WR), its ACK, and later the peer's FIN: TIME_WAIT while the application still has the socket."""
    with connected(route, n, closer) as pairs:
        sessions = [pair.session(TIME_WAIT) for pair in pairs]
        for pair in pairs:
            _to_fin_wait2(pair)
            pair.passive.close()
            assert pair.active.recv(1) == b""
            await_state(pair.active, CLOSE)
    return sessions


def passive(route: Route, n: int, closer: str = CLIENT) -> list[Session]:
    """`closer` closes *second*, through LAST_ACK: the other end is the one in TIME_WAIT."""
    return fin_wait2(route, n, SERVER if closer == CLIENT else CLIENT)


def fin_with_ack(route: Route, n: int, closer: str = CLIENT) -> list[Session]:
    """The peer's FIN also acknowledges ours: FIN_WAIT1 and FIN_WAIT2 in one softirq, then TIME_WAIT.

    A FIN that finds the socket ESTABLISHED is acknowledged after 40 ms (tcp_fin() enters pingpong mode), and the peer
    closes within that time. Where a busy machine does not allow it, this fails rather than take the other path.
    """
    with connected(route, n, closer) as pairs:
        sessions = [pair.session(TIME_WAIT) for pair in pairs]
        for pair in pairs:
            pair.passive.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            pair.active.shutdown(socket.SHUT_WR)
            assert pair.passive.recv(1) == b""
            assert state_of(pair.active) == FIN_WAIT1, "the ACK of the FIN was already sent"
            pair.passive.close()
            await_state(pair.active, CLOSE)
    return sessions


def simultaneous(route: Route, n: int, closer: str = CLIENT) -> list[Session]:
    """The FINs cross: FIN_WAIT1, CLOSING, TIME_WAIT, at both ends.

    Both sockets are deaf when the FINs are sent; the FINs, as captured, are then sent once more, each to an end that
    hears again. All of it happens before the first retransmission (2 s since 6.11, 200 ms before), or fails.
    """
    with (
        _patient(route),
        connected(route, n, closer) as pairs,
        capture(route.client, route.device) as wire,
    ):
        sessions = [pair.session(TIME_WAIT, TIME_WAIT) for pair in pairs]
        for pair, session in zip(pairs, sessions, strict=True):
            _cross(pair, session, wire)
    return sessions


@contextmanager
def _patient(route: Route) -> Iterator[None]:
    """Sockets made within retransmit after 2 s at the soonest, where the kernel lets one say so (6.11)."""
    name = "net.ipv4.tcp_rto_min_us"
    with ExitStack() as stack:
        for ns in {route.client, route.server}:
            with suppress(FileNotFoundError):
                stack.callback(ns.sysctl, name, ns.sysctl(name))
                ns.sysctl(name, 2_000_000)
        yield


def _cross(pair: Pair, session: Session, wire: Capture) -> None:
    near = session.end(pair.closer)
    far = session.end(SERVER if pair.closer == CLIENT else CLIENT)
    assert near.ns
    assert far.ns
    for end in (pair.active, pair.passive):
        # the ACK of the payload may be still to come: a FIN must not be what carries it
        wait_until(partial(_all_acknowledged, end), what="payload acknowledged")
        deafen(end)
    before = drops(pair.active), drops(pair.passive)
    pair.active.shutdown(socket.SHUT_WR)
    pair.passive.shutdown(socket.SHUT_WR)
    wait_until(lambda: drops(pair.passive) > before[1] and drops(pair.active) > before[0], what="FINs dropped")
    undeafen(pair.passive)
    inject(near.ns, _last(wire, near, FIN))
    await_state(pair.passive, CLOSING)
    wait_until(lambda: drops(pair.active) > before[0] + 1, what="ACK dropped")
    acknowledgment = _last(wire, far, ACK)
    undeafen(pair.active)
    inject(far.ns, _last(wire, far, FIN))
    await_state(pair.active, CLOSING)
    await_state(pair.passive, CLOSE)
    inject(far.ns, acknowledgment)
    await_state(pair.active, CLOSE)


def _all_acknowledged(sock: socket.socket) -> bool:
    # tcpi_unacked: 8 bytes and 4 words into struct tcp_info
    return struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 24) == (0,)


def _last(wire: Capture, end: End, flags: int) -> Segment:
    """The last segment with these flags that an end sent."""
    sent = [s for s in wire.segments() if s.tuple == end.tuple]
    return next(s for s in reversed(sent) if s.has(flags))


def _acknowledge_fin(sock: socket.socket) -> None:
    """The ACK of the other end's FIN goes out at once, and not after 40 ms."""
    assert sock.recv(1) == b""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _to_fin_wait2(pair: Pair) -> None:
    pair.active.shutdown(socket.SHUT_WR)
    _acknowledge_fin(pair.passive)
    await_state(pair.active, FIN_WAIT2)


# ---- orphaned FIN_WAIT2 ----


@contextmanager
def orphan_fin_wait2(
    route: Route, n: int, closer: str = CLIENT, *, shutdown_first: bool = False, fin_timeout: int | None = None
) -> Iterator[list[Session]]:
    """close(), acknowledged, and no FIN from the peer while the block lasts: FIN_WAIT2 mini-sockets.

    Their entry has three callers in the kernel:
      plainly               the ACK of the FIN finds an orphan in FIN_WAIT1
      shutdown_first        close() finds the socket in FIN_WAIT2 already
      fin_timeout > 60      the full socket lives `fin_timeout` - 60 s, then its keepalive timer makes the mini-socket,
                            for `fin_timeout` - 60 s more (this function returns before that)
    `fin_timeout` (TCP_LINGER2, seconds) is net.ipv4.tcp_fin_timeout where it is None. At the end of the block the
    peers close: those whose FIN still meets a mini-socket make it TIME_WAIT, the others are answered with RST.
    """
    with connected(route, n, closer) as pairs:
        sessions = [pair.session(FIN_WAIT2) for pair in pairs]
        for pair in pairs:
            if fin_timeout is not None:
                pair.active.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, fin_timeout)
            if shutdown_first:
                _to_fin_wait2(pair)
            pair.active.close()
            _acknowledge_fin(pair.passive)
        yield sessions


def orphan_late_fin(route: Route, n: int, closer: str = CLIENT, *, shutdown_first: bool = False) -> list[Session]:
    """The ordinary close(): FIN_WAIT2 mini-socket, and TIME_WAIT when the peer's FIN comes later, without an event."""
    with orphan_fin_wait2(route, n, closer, shutdown_first=shutdown_first) as sessions:
        for session in sessions:
            end = session.end(closer)
            assert end.ns
            _await_mini(end.ns, end.tuple)
    return [with_state(session, closer, TIME_WAIT) for session in sessions]


def _await_mini(ns: Namespace, tuple_: tuple[str, int, str, int]) -> None:
    wait_until(lambda: tuple_ in {s.tuple for s in mini_sockets(ns)}, what=f"mini-socket {tuple_}")


def with_state(session: Session, side: str, state: int | None) -> Session:
    """The session with another state at one end."""
    if side == CLIENT:
        return replace(session, client=replace(session.client, state=state))
    return replace(session, server=replace(session.server, state=state))


# ---- past TIME_WAIT ----


def abort_linger0(route: Route, n: int, closer: str = CLIENT) -> list[Session]:
    """close() with SO_LINGER of 0 seconds: a RST instead of the FIN."""
    with connected(route, n, closer) as pairs:
        sessions = [pair.session(None) for pair in pairs]
        for pair in pairs:
            reset(pair.active)
            await_state(pair.passive, CLOSE)
    return sessions


def abort_unread(route: Route, n: int, closer: str = CLIENT) -> list[Session]:
    """close() with data that nobody read: a RST (RFC 1122, 4.2.2.13)."""
    with connected(route, n, closer) as pairs:
        sessions = [pair.session(None) for pair in pairs]
        for pair in pairs:
            pair.passive.sendall(b"unread")
            pair.active.recv(1, socket.MSG_PEEK)
            pair.active.close()
            await_state(pair.passive, CLOSE)
    return sessions


def reset_by_peer(
    route: Route, n: int, closer: str = CLIENT, *, state: int = ESTABLISHED, orphan: bool = False
) -> list[Session]:
    """A RST reaches the active end in ESTABLISHED, FIN_WAIT1 or FIN_WAIT2; `orphan`: in its FIN_WAIT2 mini-socket."""
    with connected(route, n, closer) as pairs:
        sessions = [pair.session(None) for pair in pairs]
        for pair, session in zip(pairs, sessions, strict=True):
            if state == FIN_WAIT1:
                deafen(pair.passive)
                pair.active.shutdown(socket.SHUT_WR)
            elif state == FIN_WAIT2:
                _to_fin_wait2(pair)
            assert state_of(pair.active) == state
            if orphan:
                assert state == FIN_WAIT2
                end = session.end(closer)
                pair.active.close()
                assert end.ns
                _await_mini(end.ns, end.tuple)
            reset(pair.passive)
            if not orphan:
                await_state(pair.active, CLOSE)
    return sessions


def user_timeout(route: Route, n: int, closer: str = CLIENT, *, state: int = ESTABLISHED) -> list[Session]:
    """The peer is gone, and TCP_USER_TIMEOUT ends the connection in ESTABLISHED or FIN_WAIT1 (about 0.6 s)."""
    with connected(route, n, closer) as pairs:
        sessions = [pair.session(None) for pair in pairs]
        for pair in pairs:
            deafen(pair.passive)
            pair.active.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
            if state == ESTABLISHED:
                pair.active.sendall(b"lost")
            else:
                pair.active.shutdown(socket.SHUT_WR)
        _await_death(pairs)
    return sessions


def keepalive_timeout(route: Route, n: int, closer: str = CLIENT, *, state: int = ESTABLISHED) -> list[Session]:
    """The peer is gone, and keepalive probes find out in ESTABLISHED or FIN_WAIT2 (about 2 s: one probe)."""
    with connected(route, n, closer) as pairs:
        sessions = [pair.session(None) for pair in pairs]
        for pair in pairs:
            if state == FIN_WAIT2:
                _to_fin_wait2(pair)
            deafen(pair.passive)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
                pair.active.setsockopt(socket.IPPROTO_TCP, option, 1)
            pair.active.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        _await_death(pairs)
    return sessions


def _await_death(pairs: list[Pair]) -> None:
    """Every active end gave up; the deaf peers go with a RST, which finds nobody."""
    for pair in pairs:
        await_state(pair.active, CLOSE)
        with suppress(OSError):
            reset(pair.passive)


def linger2_negative(route: Route, n: int, closer: str = CLIENT, *, shutdown_first: bool = False) -> list[Session]:
    """TCP_LINGER2 below 0: the kernel will not wait in FIN_WAIT2 for an orphan, and ends it there."""
    with connected(route, n, closer) as pairs:
        sessions = [pair.session(None) for pair in pairs]
        for pair in pairs:
            pair.active.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, -1)
            if shutdown_first:
                _to_fin_wait2(pair)
            pair.active.close()
        for pair, session in zip(pairs, sessions, strict=True):
            end = session.end(closer)
            assert end.ns
            _await_gone(end.ns, end.tuple)
            with suppress(ConnectionResetError):
                pair.passive.recv(1)
    return sessions


def _await_gone(ns: Namespace, tuple_: tuple[str, int, str, int]) -> None:
    wait_until(lambda: tuple_ not in {s.tuple for s in sockets(ns)}, what=f"no socket {tuple_}")
