"""Sessions in TIME_WAIT that get raw segments: their replies, and what the segments did to them.

A duty is a namespace and what does the work of TIME_WAIT in it: the kernel's mini-sockets (`stock`), or the guard with
its vestiges (`vestigial`). A subject is one session there, in TIME_WAIT or in FIN_WAIT2 after close(), with the
scripted peer at the other end. Its numbers are relative: SEQ to the next byte it expects, ACK to the next byte it would
send, timestamps to the last one it took.
"""

import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address

from tests.load.daemon import Daemon, daemon
from tests.load.netns import Namespace, namespace
from tests.load.paths import IPV4, MAPPED
from tests.load.peer import Connection, TunPeer, tun_peer
from tests.load.scripts import SCRIPTS, Script
from tests.load.segments import ACK, RST, Seen, Segment, after, build
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sockdiag_messages import TIMER_TIME_WAIT, exact_request, read_answer

STOCK, VESTIGIAL = "stock", "vestigial"
# Why no vestigial duty can be tested; None: it can.
NO_VESTIGIAL: str | None = None
# The kernel's own time for every class, and room for all that the tests make in a minute: peers on the tun are local.
CONFIG = """
[time_wait]
loopback = 60
local = 60
remote = 60
[capacity.ipv4]
loopback = 257
local = 8191
remote = 257
[capacity.ipv6]
loopback = 257
local = 8191
remote = 257
"""

# States that a session is found in. GONE: there is neither a socket nor a vestige for the tuple.
TIME_WAIT, FIN_WAIT2, GONE = "TIME_WAIT", "FIN_WAIT2", "gone"
_SCRIPT = {TIME_WAIT: "fin_wait2", FIN_WAIT2: "orphan_fin_wait2"}

# TCP_LINGER2 (s). Where an application does not set it, mode vestigial leaves FIN_WAIT2 to the kernel's full socket.
LINGER2 = 60
AS_AGREED = "as agreed"
BATCH = 23
# Seconds. A restarted timer must differ clearly from one that was not restarted: the table counts in 67 ms, and to read
# it may take LOOK.
AGED, RESTARTED, LOOK, STALE = 0.4, 0.2, 0.05, 20.0


@dataclass(frozen=True)
class Sent:
    """A segment to a subject. seq: to R, the next byte it expects, and so many windows behind; ack: to S.

    ts: TSval less TSr, the last that the subject took; None: no timestamps option; AS_AGREED: TSr + 1 where the
    connection has timestamps. options: what stands in their place, bytes and timestamps (TSval less TSr), cut at 40.
    """

    flags: int
    seq: int = 0
    length: int = 0
    ack: int = 0
    ts: int | str | None = AS_AGREED
    windows: int = 0
    options: tuple[bytes | int, ...] | None = None


@dataclass(frozen=True)
class Reply:
    """What came back. seq: to S, or absolute in a RST|ACK; ack: to R, or absolute without ACK; tsecr: to TSr."""

    flags: int
    seq: int = 0
    ack: int = 0
    window: int = 0
    tsecr: int | None = None
    length: int = 0
    options: int = 0  # bytes
    ttl: int = 64
    dont_fragment: bool = True
    identification: int = 0
    intact: bool = True


@dataclass(frozen=True)
class After:
    """What became of a subject: where it is, and how far its TSr has moved (0 where there is none)."""

    state: str
    ts_moved: int = 0


@dataclass(frozen=True)
class Subject:
    """A session on duty. `listened`: a socket listens on its port, which answers only segments with ACK."""

    duty: "Duty"
    connection: Connection
    state: str
    seen: Seen
    made: float  # monotonic, s
    listened: bool = False

    @property
    def ts_recent(self) -> int:
        """TSr; 0 without timestamps."""
        return self.seen.ts_recent or 0

    @property
    def timestamps(self) -> bool:
        """The connection has agreed on timestamps."""
        return self.seen.ts_recent is not None

    @property
    def age(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self.made

    def segment(self, sent: Sent) -> Segment:
        """The segment as it goes on the wire."""
        ts = sent.ts
        if ts == AS_AGREED:
            ts = 1 if self.timestamps else None
        return Segment(
            *self.connection.tuple,
            seq=(self.seen.rcv_nxt + sent.windows * (self.seen.window << self.seen.scale) + sent.seq) % 2**32,
            ack=(self.seen.snd_nxt + sent.ack) % 2**32 if sent.flags & ACK else 0,
            flags=sent.flags,
            payload=b"x" * sent.length,
            tsval=None if ts is None else (self.ts_recent + int(ts)) % 2**32,
            tsecr=self.seen.last_tsval or 0,
            options=None if sent.options is None else self._options(sent.options),
        )

    def _options(self, parts: tuple[bytes | int, ...]) -> bytes:
        whole = b"".join(part if isinstance(part, bytes) else self._timestamps(part) for part in parts)[:40]
        return whole + bytes(-len(whole) % 4)

    def _timestamps(self, newer_by: int) -> bytes:
        return struct.pack("!BBII", 8, 10, (self.ts_recent + newer_by) % 2**32, 0)

    def packet(self, sent: Sent, **more: int) -> bytes:
        """The same as a packet. more: fields of the segment, as they are."""
        return build(replace(self.segment(sent), **more))  # type: ignore[arg-type]

    def send(self, sent: Sent) -> list[Reply]:
        """Send a segment; all that comes back."""
        return self.write(self.packet(sent))

    def write(self, *packets: bytes) -> list[Reply]:
        """Send packets, whatever they are; all TCP that comes back."""
        return [self._relative(one) for one in self.segments(*packets)]

    def segments(self, *packets: bytes) -> list[Segment]:
        """Send packets; what comes back, as it was on the wire."""
        for packet in packets:
            self.duty.peer.write(packet)
        return self.duty.peer.received(self.connection)

    def _relative(self, one: Segment) -> Reply:
        return Reply(
            flags=one.flags,
            seq=one.seq if one.has(RST | ACK) else _less(one.seq, self.seen.snd_nxt),
            ack=_less(one.ack, self.seen.rcv_nxt) if one.has(ACK) else one.ack,
            window=one.window,
            tsecr=None if one.tsval is None else _less(one.tsecr, self.ts_recent),
            length=len(one.payload),
            options=len(one.options or b""),
            ttl=one.ttl,
            dont_fragment=one.dont_fragment,
            identification=one.identification,
            intact=one.intact,
        )

    def acknowledgment(self, ack: int = 0, ts_moved: int = 0) -> Reply:
        """The ACK that the session sends. `ack`: 1 when the peer's FIN took it from FIN_WAIT2 to TIME_WAIT."""
        tsecr, options = (ts_moved, 12) if self.timestamps else (None, 0)
        return Reply(ACK, 0, ack, self.seen.window, tsecr, options=options)

    def reset(self, sent: Sent) -> Reply:
        """The RST that answers a segment: from what it acknowledges, or else to what it takes."""
        if sent.flags & ACK:
            return Reply(RST, seq=sent.ack)
        return Reply(RST | ACK, ack=_less(self.segment(sent).end, self.seen.rcv_nxt))

    def after(self) -> After:
        """Send an old byte, which any session acknowledges: its ACK shows R, hence the state, and its TSecr shows TSr.

        Without ACK (and without timestamps, hence without PAWS) the byte restarts no timer.
        """
        replies = self.send(Sent(ACK if self.listened else 0, seq=-1, length=1, ts=None))
        assert len(replies) == 1, replies
        if replies[0].flags & RST:
            return After(GONE)
        moved = replies[0].tsecr or 0
        states = {0: self.state, 1: TIME_WAIT}
        assert replies == [self.acknowledgment(replies[0].ack, moved)]
        return After(states[replies[0].ack], moved)

    def fires(self) -> float:
        """When its timer fires (monotonic, s)."""
        found = self.duty.fires(self)
        assert found is not None, "no session"
        return found

    def restarted(self, before: float) -> bool:
        """Its timer has been restarted since it was to fire at `before`."""
        return self.fires() > before + RESTARTED


def _less(a: int, b: int) -> int:
    """How far `a` is after `b` in sequence space; negative if it is before."""
    return -((b - a) % 2**32) if after(b, a) else (a - b) % 2**32


class Duty:
    """A namespace with the scripted peer. `watch`: the daemon that is on duty, None: the kernel is."""

    def __init__(self, ns: Namespace, peer: TunPeer, watch: Daemon | None) -> None:
        self.ns = ns
        self.peer = peer
        self.watch = watch
        self._made: dict[tuple[str, str, bool], deque[Subject]] = {}
        self._sockets = SockDiag(ns.name)

    def close(self) -> None:
        """Close the socket that asks the kernel."""
        self._sockets.close()

    def session(
        self,
        state: str = TIME_WAIT,
        family: str = IPV4,
        *,
        timestamps: bool = True,
        isn: int = 1_000_000,
        prepare: Script | None = None,
    ) -> Subject:
        """A new session of a client. `prepare`: what happens before it closes; `isn`: the peer's first SEQ."""
        sock, connection = self.peer.dial(family, timestamps=timestamps, isn=isn)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, LINGER2)
        if prepare:
            prepare(sock, connection)
        return self._closed(sock, connection, state)

    @contextmanager
    def served(self, family: str = IPV4, *, timestamps: bool = True) -> Iterator[tuple[Subject, socket.socket]]:
        """A new session of a server in TIME_WAIT, and the socket that goes on listening on its port."""
        address, _own = self.peer.addresses(family)
        with self.ns.socket(socket.AF_INET if family == IPV4 else socket.AF_INET6) as listener:
            listener.bind((f"::ffff:{address}" if family == MAPPED else address, 0))
            listener.listen()
            connection = self.peer.connect(address, listener.getsockname()[1], timestamps=timestamps)
            subject = self._closed(listener.accept()[0], connection, TIME_WAIT)
            yield replace(subject, listened=True), listener

    def _closed(self, sock: socket.socket, connection: Connection, state: str) -> Subject:
        with sock:
            SCRIPTS[_SCRIPT[state]][0](sock, connection)
        return Subject(self, connection, state, connection.seen(), time.monotonic())

    def aged(self, state: str = TIME_WAIT, family: str = IPV4, *, timestamps: bool = True) -> Subject:
        """A session old enough for a restart of its timer to be seen. While one batch is used, the next ages."""
        made = self._made.setdefault((state, family, timestamps), deque())
        while made and made[0].age > STALE:
            made.popleft()
        if len(made) <= BATCH:
            made.extend(self.session(state, family, timestamps=timestamps) for _ in range(BATCH))
        subject = made.popleft()
        time.sleep(max(AGED - subject.age, 0))
        return subject

    def ends(self, connection: Connection) -> tuple[str, int, str, int]:
        """The session as its application sees it."""
        return connection.tuple[2:] + connection.tuple[:2]

    def fires(self, subject: Subject) -> float | None:
        """When the timer of a session fires (monotonic, s); None: nobody is on duty for it.

        Read again until it is read at once: on a busy machine, nobody knows to which moment a slow answer belongs.
        """
        while True:
            asked = time.monotonic()
            left = self._left(subject)
            if left is None or time.monotonic() - asked < LOOK:
                return None if left is None else asked + left

    def _left(self, subject: Subject) -> float | None:
        local, local_port, remote, remote_port = self.ends(subject.connection)
        ends = (ip_address(local), local_port), (ip_address(remote), remote_port)
        if self.watch:
            own = (v for v in self.watch.table() if v.netns == self.ns.name)
            rows = {((v.local, v.local_port), (v.remote, v.remote_port)): v for v in own}
            return rows[ends].expires_in if ends in rows else None
        answer = read_answer(self._sockets.ask([exact_request(*ends)])[0])
        return answer.left if answer and answer.timer == TIMER_TIME_WAIT else None


@contextmanager
def on_duty(kind: str, *namespaces: Namespace, config: str = CONFIG) -> Iterator[Daemon | None]:
    """What does the work of TIME_WAIT in some namespaces during the block."""
    if kind == STOCK:
        yield None
        return
    with daemon(*namespaces, mode="vestigial", config=config) as watch:
        yield watch


@contextmanager
def duty(kind: str, sysctls: Mapping[str, object] | None = None) -> Iterator[Duty]:
    """A namespace of its own with the scripted peer, and the kernel or the guard on duty."""
    with ExitStack() as stack:
        ns = stack.enter_context(namespace(sysctls))
        peer = stack.enter_context(tun_peer(ns))
        made = Duty(ns, peer, stack.enter_context(on_duty(kind, ns)))
        stack.callback(made.close)
        yield made
