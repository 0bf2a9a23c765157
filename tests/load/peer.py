"""A scripted TCP peer behind a tun device: it sends exactly the segments it is told to, so any path can be forced.

The kernel's end is an ordinary socket of the namespace; the peer's end is no socket at all, so nothing but the script
answers. Segments that the script does not read are dropped, as by a peer that is gone.
"""

import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.load.netns import Namespace, add_addresses, await_address
from tests.load.segments import ACK, SYN, Seen, Segment, build, parse, seen

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000

KERNEL_IPV4, PEER_IPV4 = "10.78.0.1", "10.78.0.2"
KERNEL_IPV6, PEER_IPV6 = "fd78::1", "fd78::2"

CLOSED_PORT = 9  # "discard"; ephemeral ports begin far above

Tuple = tuple[str, int, str, int]


class Connection:
    """The peer's end of one connection. `snd_nxt` and `rcv_nxt` are the peer's; the kernel's are in `seen()`."""

    def __init__(self, peer: "TunPeer", tuple_: Tuple, *, timestamps: bool, isn: int) -> None:
        self.tuple = tuple_
        self.local, self.local_port, self.remote, self.remote_port = tuple_
        self.peer = peer
        self.timestamps = timestamps
        self.snd_nxt = isn
        self.rcv_nxt = 0
        self.peer_tsval = 0  # the kernel's last, which the next segment echoes
        self.segments: list[Segment] = []  # both ways, in order

    def send(  # noqa: PLR0913 (each is a field of the segment)
        self,
        flags: int,
        payload: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        tsval: int | None = None,
        scale: int | None = None,
        mss: int | None = None,
    ) -> Segment:
        """Send one segment. What is not said follows from the connection; `seq` said leaves snd_nxt as it is."""
        segment = Segment(
            source=self.local,
            source_port=self.local_port,
            destination=self.remote,
            destination_port=self.remote_port,
            seq=self.snd_nxt if seq is None else seq,
            ack=(self.rcv_nxt if ack is None else ack) if flags & ACK else 0,
            flags=flags,
            payload=payload,
            tsval=(self.peer.clock() if tsval is None else tsval) if self.timestamps else None,
            tsecr=self.peer_tsval if flags & ACK else 0,
            scale=scale,
            mss=mss,
            monotonic_ns=time.monotonic_ns(),
        )
        if seq is None:
            self.snd_nxt = segment.end
        self.segments.append(segment)
        self.peer.write(build(segment))
        return segment

    def expect(self, flags: int, timeout: float = 3.0) -> Segment:
        """The next segment from the kernel must have exactly these flags, PSH aside. It is counted as received."""
        segment = self.peer.receive(self, timeout)
        assert segment is not None, f"no segment in {timeout} s; wanted flags {flags:#x}"
        assert segment.flags & ~0x08 == flags, f"wanted flags {flags:#x}: {segment}"
        self.rcv_nxt = segment.end
        return segment

    def silent(self, seconds: float) -> bool:
        """Nothing comes from the kernel for so long."""
        return self.peer.receive(self, seconds) is None

    def seen(self) -> Seen:
        """The kernel's end, as told by the segments until now."""
        return seen(self.segments, self.remote, self.remote_port, self.local, self.local_port)


class TunPeer:
    """The far side of the tun device: any number of connections, each of which reads only its own segments."""

    def __init__(self, fd: int, ns: Namespace, device: str) -> None:
        self.fd = fd
        self.ns = ns
        self.device = device
        self._queues: dict[Tuple, list[Segment]] = {}
        self._connections: dict[Tuple, Connection] = {}
        self._ports = 40000
        self._dialled = 0

    @staticmethod
    def clock() -> int:
        """The peer's timestamp clock: milliseconds, with an offset so that it is not mistaken for the kernel's."""
        return (time.monotonic_ns() // 1_000_000 + 0x5EED0000) & 0xFFFFFFFF

    def connection(self, tuple_: Tuple) -> Connection:
        """The connection that the peer's end names so, also after its script is over."""
        return self._connections[tuple_]

    @staticmethod
    def addresses(family: str) -> tuple[str, str]:
        """Kernel's and peer's address on the wire."""
        return (KERNEL_IPV6, PEER_IPV6) if family == "ipv6" else (KERNEL_IPV4, PEER_IPV4)

    def write(self, packet: bytes) -> None:
        """Let a packet come in on the device."""
        os.write(self.fd, packet)

    def _pump(self, timeout: float) -> bool:
        if not select.select([self.fd], [], [], max(timeout, 0))[0]:
            return False
        segment = parse(os.read(self.fd, 1 << 16), time.monotonic_ns())
        if segment:
            tuple_ = (segment.destination, segment.destination_port, segment.source, segment.source_port)
            self._queues.setdefault(tuple_, []).append(segment)
            if connection := self._connections.get(tuple_):
                self._note(connection, segment)
        return True

    @staticmethod
    def _note(connection: Connection, segment: Segment) -> None:
        connection.segments.append(segment)
        if segment.tsval is not None:
            connection.peer_tsval = segment.tsval

    def received(self, connection: Connection) -> list[Segment]:
        """What the kernel sent on a connection until now, and nobody took yet.

        All packets that were written are done with when this returns: one more is written, to a port where nobody
        listens, and its RST comes behind what they caused.
        """
        kernel, own = self.addresses("ipv6" if ":" in connection.local else "ipv4")
        self._ports += 1
        fence = Connection(self, (own, self._ports, kernel, CLOSED_PORT), timestamps=False, isn=0)
        fence.send(ACK)
        assert self.receive(fence, 3.0), "no RST from a closed port"
        return self._queues.pop(connection.tuple, [])

    def strays(self) -> list[Segment]:
        """What came until now and belongs to no connection: of a tuple that the peer does not know."""
        found = [tuple_ for tuple_ in self._queues if tuple_ not in self._connections]
        return [one for tuple_ in found for one in self._queues.pop(tuple_)]

    def receive(self, connection: Connection, timeout: float) -> Segment | None:
        """The next segment of a connection; None if none comes in `timeout` seconds."""
        tuple_ = connection.tuple
        end = time.monotonic() + timeout
        while not self._queues.get(tuple_):
            if not self._pump(end - time.monotonic()) and time.monotonic() >= end:
                return None
        return self._queues[tuple_].pop(0)

    def connect(
        self, address: str, port: int, *, timestamps: bool = True, isn: int = 1_000_000, own_port: int = 0
    ) -> Connection:
        """Open a connection to a listening socket of the kernel. own_port: the peer's, 0: a new one."""
        self._ports += 1
        own = PEER_IPV6 if ":" in address else PEER_IPV4
        tuple_ = (own, own_port or self._ports, address, port)
        connection = self._connections[tuple_] = Connection(self, tuple_, timestamps=timestamps, isn=isn)
        connection.send(SYN, scale=7, mss=1400)
        connection.expect(SYN | ACK)
        connection.send(ACK)
        return connection

    def caller(self, timeout: float = 3.0) -> Tuple:
        """Who dials, and was not answered yet: where packets are translated, no socket tells."""
        end = time.monotonic() + timeout
        while True:
            for tuple_, queue in self._queues.items():
                if queue and queue[0].flags == SYN:
                    return tuple_
            assert self._pump(end - time.monotonic()), f"no SYN in {timeout} s"

    def answer(self, tuple_: Tuple, *, timestamps: bool = True, isn: int = 1_000_000) -> Connection:
        """Be the server of a connection that a socket of the kernel opens: (peer, port, kernel, port)."""
        connection = self._connections[tuple_] = Connection(self, tuple_, timestamps=timestamps, isn=isn)
        for early in self._queues.get(tuple_, []):  # the SYN may have been read while another was waited for
            self._note(connection, early)
        connection.expect(SYN)
        connection.send(SYN | ACK, scale=7, mss=1400)
        connection.expect(ACK)
        return connection

    def dial(self, family: str, *, timestamps: bool = True, isn: int = 1_000_000) -> tuple[socket.socket, Connection]:
        """A client socket of the kernel, connected to the peer. `family`: ipv4, ipv6 or mapped.

        Each has a port of the peer's for itself: where no TIME_WAIT socket holds it, the kernel may use its own again.
        """
        self._dialled += 1
        port = 1024 + self._dialled % 60000
        kernel, own = self.addresses(family)
        sock = self.ns.socket(socket.AF_INET if family == "ipv4" else socket.AF_INET6)
        sock.settimeout(0)
        prefix = "::ffff:" if family == "mapped" else ""
        assert sock.connect_ex((prefix + own, port)) == errno.EINPROGRESS
        connection = self.answer((own, port, kernel, sock.getsockname()[1]), timestamps=timestamps, isn=isn)
        sock.settimeout(None)
        return sock, connection


def open_tun(ns: Namespace, device: str) -> int:
    """A new tun device of a namespace: its far side."""
    with ns.entered():  # the device is made in the namespace of the thread that opens the file
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH14x", device.encode(), IFF_TUN | IFF_NO_PI))
    return fd


@contextmanager
def tun_peer(ns: Namespace, device: str = "tun0") -> Iterator[TunPeer]:
    """A tun device in the namespace (10.78.0.1/24, fd78::1/64) with the peer (.2, ::2) behind it."""
    fd = open_tun(ns, device)
    try:
        add_addresses(ns, device, KERNEL_IPV4, KERNEL_IPV6)
        await_address(ns, KERNEL_IPV6)
        yield TunPeer(fd, ns, device)
    finally:
        os.close(fd)  # and with it the device
