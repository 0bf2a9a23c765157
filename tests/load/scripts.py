"""Every way into TIME_WAIT, and past it, of one kernel socket against a scripted peer.

Both ends cannot be real where a step must be impossible rather than unlikely; here nothing depends on time. Each
session also tells what was seen on the wire, so a test can compare it with what the kernel, or a vestige, kept.
"""

import socket
from collections.abc import Callable, Sequence

from tests.load.counters import CLOSE, CLOSING, FIN_WAIT2, TIME_WAIT
from tests.load.paths import CLIENT, IPV4, MAPPED, End, Session, await_state, reset
from tests.load.peer import Connection, TunPeer
from tests.load.segments import ACK, FIN, PSH, RST

Script = Callable[[socket.socket, Connection], None]


def _fin_acknowledged(sock: socket.socket, peer: Connection) -> None:
    sock.shutdown(socket.SHUT_WR)
    peer.expect(FIN | ACK)
    peer.send(ACK)
    await_state(sock, FIN_WAIT2)


def _peer_fin(peer: Connection) -> None:
    peer.send(FIN | ACK)
    peer.expect(ACK)


def _fin_wait2(sock: socket.socket, peer: Connection) -> None:
    _fin_acknowledged(sock, peer)
    _peer_fin(peer)


def _orphan_fin_wait2(sock: socket.socket, peer: Connection) -> None:
    sock.close()
    peer.expect(FIN | ACK)
    peer.send(ACK)


def _close_in_fin_wait2(sock: socket.socket, peer: Connection) -> None:
    _fin_acknowledged(sock, peer)
    sock.close()


def _orphan_late_fin(sock: socket.socket, peer: Connection) -> None:
    _orphan_fin_wait2(sock, peer)
    _peer_fin(peer)


def _close_late_fin(sock: socket.socket, peer: Connection) -> None:
    _close_in_fin_wait2(sock, peer)
    _peer_fin(peer)


def _fin_with_ack(sock: socket.socket, peer: Connection) -> None:
    sock.shutdown(socket.SHUT_WR)
    peer.expect(FIN | ACK)
    _peer_fin(peer)


def _orphan_fin_with_ack(sock: socket.socket, peer: Connection) -> None:
    sock.close()
    peer.expect(FIN | ACK)
    _peer_fin(peer)


def _closing(sock: socket.socket, peer: Connection) -> None:
    sock.shutdown(socket.SHUT_WR)
    fin = peer.expect(FIN | ACK)
    peer.send(FIN | ACK, ack=fin.seq)
    peer.expect(ACK)
    await_state(sock, CLOSING)


def _simultaneous(sock: socket.socket, peer: Connection) -> None:
    _closing(sock, peer)
    peer.send(ACK)


def _reset_established(sock: socket.socket, peer: Connection) -> None:
    peer.send(RST | ACK)
    await_state(sock, CLOSE)


def _reset_fin_wait1(sock: socket.socket, peer: Connection) -> None:
    sock.shutdown(socket.SHUT_WR)
    fin = peer.expect(FIN | ACK)
    peer.send(RST | ACK, ack=fin.seq)
    await_state(sock, CLOSE)


def _reset_fin_wait2(sock: socket.socket, peer: Connection) -> None:
    _fin_acknowledged(sock, peer)
    peer.send(RST | ACK)
    await_state(sock, CLOSE)


def _reset_orphan(sock: socket.socket, peer: Connection) -> None:
    _orphan_fin_wait2(sock, peer)
    peer.send(RST | ACK)


def _reset_closing(sock: socket.socket, peer: Connection) -> None:
    _closing(sock, peer)
    peer.send(RST)
    await_state(sock, CLOSE)


def _linger0_closing(sock: socket.socket, peer: Connection) -> None:
    _closing(sock, peer)
    reset(sock)


def _linger0_fin_wait2(sock: socket.socket, peer: Connection) -> None:
    _fin_acknowledged(sock, peer)
    reset(sock)


def _data_with_ack(sock: socket.socket, peer: Connection) -> None:
    sock.close()
    peer.expect(FIN | ACK)
    peer.send(ACK | PSH, b"late")
    peer.expect(RST)


def _data_after_close(sock: socket.socket, peer: Connection) -> None:
    _orphan_fin_wait2(sock, peer)
    peer.send(ACK | PSH, b"late")
    peer.expect(RST)


def _passive(sock: socket.socket, peer: Connection) -> None:
    _peer_fin(peer)
    sock.close()
    fin = peer.expect(FIN | ACK)
    assert fin.ack == peer.snd_nxt
    peer.send(ACK)


# What the kernel's end does, and the mini-socket it comes to.
SCRIPTS: dict[str, tuple[Script, int | None]] = {
    "fin_wait2": (_fin_wait2, TIME_WAIT),
    "orphan_late_fin": (_orphan_late_fin, TIME_WAIT),
    "close_late_fin": (_close_late_fin, TIME_WAIT),
    "fin_with_ack": (_fin_with_ack, TIME_WAIT),
    "orphan_fin_with_ack": (_orphan_fin_with_ack, TIME_WAIT),
    "simultaneous": (_simultaneous, TIME_WAIT),
    "orphan_fin_wait2": (_orphan_fin_wait2, FIN_WAIT2),
    "close_in_fin_wait2": (_close_in_fin_wait2, FIN_WAIT2),
    "reset_established": (_reset_established, None),
    "reset_fin_wait1": (_reset_fin_wait1, None),
    "reset_fin_wait2": (_reset_fin_wait2, None),
    "reset_orphan": (_reset_orphan, None),
    "reset_closing": (_reset_closing, None),
    "linger0_fin_wait2": (_linger0_fin_wait2, None),
    "linger0_closing": (_linger0_closing, None),
    "data_with_ack": (_data_with_ack, None),
    "data_after_close": (_data_after_close, None),
    "passive": (_passive, None),
}


def scripted(  # noqa: PLR0913 (half of them have their usual value)
    peer: TunPeer, name: str, n: int, *, family: str = IPV4, kernel: str = CLIENT, timestamps: bool = True
) -> list[Session]:
    """`n` sessions of the kernel with the scripted peer. `kernel`: which side the kernel's socket is on."""
    address, _own = peer.addresses(family)
    sessions = []
    with peer.ns.socket(socket.AF_INET if family == IPV4 else socket.AF_INET6) as listener:
        listener.bind((f"::ffff:{address}" if family == MAPPED else address, 0))
        listener.listen(n)
        for _ in range(n):
            if kernel == CLIENT:
                sock, connection = peer.dial(family, timestamps=timestamps)
            else:
                connection = peer.connect(address, listener.getsockname()[1], timestamps=timestamps)
                sock, _address = listener.accept()
            with sock:
                SCRIPTS[name][0](sock, connection)
            sessions.append(_session(peer, connection, name, family, kernel))
    return sessions


def _session(peer: TunPeer, connection: Connection, name: str, family: str, kernel: str) -> Session:
    local, local_port, remote, remote_port = connection.tuple
    table = "tcp" if family == IPV4 else "tcp6"
    near = End(peer.ns, remote, remote_port, local, local_port, table, SCRIPTS[name][1])
    far = End(None, local, local_port, remote, remote_port, table, None)
    ends = (near, far) if kernel == CLIENT else (far, near)
    return Session(*ends, seen=connection.seen())


def assert_fins_acknowledged(peer: TunPeer, sessions: Sequence[Session]) -> None:
    """A FIN that comes again gets the ACK that TIME_WAIT owes it."""
    for session in sessions:
        assert session.seen
        connection = peer.connection(session.server.tuple)
        connection.send(FIN | ACK, seq=session.seen.rcv_nxt - 1, ack=session.seen.snd_nxt)
        answer = connection.expect(ACK)
        assert (session.seen.snd_nxt, session.seen.rcv_nxt) == (answer.seq, answer.ack)
