"""TCP segments: parsed, built, captured from an interface, and what they say about an end of a connection."""

import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from tests.load.netns import Namespace

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4
SOL_PACKET, PACKET_STATISTICS, PACKET_AUXDATA = 263, 6, 8
TP_STATUS_CSUMNOTREADY = 8
SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35
# About 80,000 small segments: the kernel charges each some 800 bytes.
CAPTURE_BYTES = 64 << 20


def after(a: int, b: int) -> bool:
    """`a` is later than `b` in sequence space (RFC 9293, 3.4: modulo 2^32)."""
    return a != b and (a - b) & 0xFFFFFFFF < 0x80000000


@dataclass(frozen=True)
class Segment:
    """One TCP segment and what its IP header says.

    `tsval` is None without a timestamps option; `scale` is the window scale option of a SYN. `options` are the TCP
    options as they stood in a packet; where they are set, build() takes them, and not the fields that they mean.
    """

    source: str
    source_port: int
    destination: str
    destination_port: int
    seq: int
    ack: int
    flags: int
    window: int = 65535
    payload: bytes = b""
    tsval: int | None = None
    tsecr: int = 0
    scale: int | None = None
    mss: int | None = None
    options: bytes | None = None
    intact: bool = True  # the TCP checksum is right, or will be once the device has completed it
    ttl: int = 64  # or hop limit
    tos: int = 0  # or traffic class
    dont_fragment: bool = True  # IPv4
    identification: int = 0  # IPv4
    flow_label: int = 0  # IPv6
    monotonic_ns: int = 0  # CLOCK_MONOTONIC when it passed

    @property
    def tuple(self) -> tuple[str, int, str, int]:
        """From where to where."""
        return self.source, self.source_port, self.destination, self.destination_port

    @property
    def end(self) -> int:
        """The sequence number behind it: data, SYN and FIN count."""
        taken = len(self.payload) + bool(self.flags & SYN) + bool(self.flags & FIN)
        return (self.seq + taken) & 0xFFFFFFFF

    def has(self, flags: int) -> bool:
        """All of these flags are set."""
        return self.flags & flags == flags


def parse(packet: bytes, monotonic_ns: int = 0, *, partial: bool = False) -> Segment | None:
    """A packet from its IP header on; None without a whole TCP segment. IPv6 extension headers are not looked behind.

    `partial`: what should be the checksum is the sum of the pseudo-header, to be completed by a device (or never).
    """
    if len(packet) < (20 if packet[0] >> 4 == 4 else 40):
        return None
    if packet[0] >> 4 == 4:
        if packet[9] != socket.IPPROTO_TCP:
            return None
        header = (packet[0] & 15) * 4
        total = int.from_bytes(packet[2:4], "big")
        family, source, destination = socket.AF_INET, packet[12:16], packet[16:20]
        identification, fragment = struct.unpack_from("!HH", packet, 4)
        ttl, tos, label = packet[8], packet[1], 0
    else:
        if packet[6] != socket.IPPROTO_TCP:
            return None
        header, total = 40, 40 + int.from_bytes(packet[4:6], "big")
        family, source, destination = socket.AF_INET6, packet[8:24], packet[24:40]
        identification, fragment = 0, 0x4000
        first = int.from_bytes(packet[:4], "big")
        ttl, tos, label = packet[7], first >> 20 & 0xFF, first & 0xFFFFF
    part = packet[header:total]
    if len(part) < 20 or len(packet) < total:
        return None
    source_port, destination_port, seq, ack, offset, flags, window, stated = struct.unpack_from("!HHIIBBHH", part)
    options = part[20 : (offset >> 4) * 4]
    pseudo = pseudo_header(source, destination, len(part))
    plain = Segment(
        source=socket.inet_ntop(family, source),
        source_port=source_port,
        destination=socket.inet_ntop(family, destination),
        destination_port=destination_port,
        seq=seq,
        ack=ack,
        flags=flags,
        window=window,
        payload=part[(offset >> 4) * 4 :],
        options=options,
        intact=checksum(pseudo + part) == 0 or (partial and stated == checksum(pseudo) ^ 0xFFFF),
        ttl=ttl,
        tos=tos,
        dont_fragment=bool(fragment & 0x4000),
        identification=identification,
        flow_label=label,
        monotonic_ns=monotonic_ns,
    )
    return _with_options(plain, options)


_OPTION_BYTES = {2: 4, 3: 3, 8: 10}  # maximum segment size, window scale, timestamps


def _with_options(segment: Segment, options: bytes) -> Segment:
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        kind, length = options[at], options[at + 1] if at + 1 < len(options) else 0
        value = options[at + 2 : at + length]
        if len(value) != length - 2 or length != _OPTION_BYTES.get(kind, length):  # malformed: the rest means nothing
            break
        if kind == 2:
            segment = replace(segment, mss=int.from_bytes(value, "big"))
        elif kind == 3:
            segment = replace(segment, scale=value[0])
        elif kind == 8:
            tsval, tsecr = struct.unpack("!II", value)
            segment = replace(segment, tsval=tsval, tsecr=tsecr)
        at += length
    return segment


def build(segment: Segment) -> bytes:
    """The packet, from its IP header on, with the checksums of headers and payload."""
    family = socket.AF_INET6 if ":" in segment.source else socket.AF_INET
    source, destination = (socket.inet_pton(family, a) for a in (segment.source, segment.destination))
    options = _options(segment) if segment.options is None else segment.options
    part = struct.pack(
        "!HHIIBBHHH",
        segment.source_port,
        segment.destination_port,
        segment.seq & 0xFFFFFFFF,
        segment.ack & 0xFFFFFFFF,
        (20 + len(options)) // 4 << 4,
        segment.flags,
        segment.window,
        0,
        0,
    )
    part += options + segment.payload
    right = checksum(pseudo_header(source, destination, len(part)) + part)
    part = part[:16] + (right if segment.intact else right ^ 0x0100).to_bytes(2, "big") + part[18:]
    if family == socket.AF_INET6:
        first = 6 << 28 | segment.tos << 20 | segment.flow_label
        return struct.pack("!IHBB", first, len(part), socket.IPPROTO_TCP, segment.ttl) + source + destination + part
    fragment = 0x4000 if segment.dont_fragment else 0
    header = struct.pack("!BBHHH", 0x45, segment.tos, 20 + len(part), segment.identification, fragment)
    header += struct.pack("!BBH", segment.ttl, socket.IPPROTO_TCP, 0)
    return with_header_checksum(header + source + destination) + part


def with_header_checksum(header: bytes) -> bytes:
    """The IPv4 header with its checksum."""
    header = header[:10] + b"\0\0" + header[12:]
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:]


def pseudo_header(source: bytes, destination: bytes, length: int) -> bytes:
    """What the TCP checksum covers besides the segment; its sum is the same in either family's layout."""
    return source + destination + struct.pack("!II", length, socket.IPPROTO_TCP)


def _options(segment: Segment) -> bytes:
    options = b""
    if segment.mss is not None:
        options += struct.pack("!BBH", 2, 4, segment.mss)
    if segment.scale is not None:
        options += struct.pack("!BBBB", 1, 3, 3, segment.scale)
    if segment.tsval is not None:
        options += struct.pack("!BBBBII", 1, 1, 8, 10, segment.tsval & 0xFFFFFFFF, segment.tsecr & 0xFFFFFFFF)
    return options


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# ---- what an end of a connection knows when it enters TIME_WAIT ----


@dataclass(frozen=True)
class Seen:
    """One end of a connection, as its segments on the wire tell: what its TIME_WAIT must hold."""

    snd_nxt: int
    rcv_nxt: int
    window: int  # as on the wire, not scaled
    scale: int  # this end's window scale
    ts_recent: int | None  # None: no timestamps
    last_tsval: int | None  # the last TSval that this end sent
    last_ns: int  # CLOCK_MONOTONIC at that moment

    @property
    def ts_offset(self) -> int | None:
        """What the kernel adds to its millisecond clock. Uncertain by 1: clock and segment are not read at once."""
        if self.last_tsval is None:
            return None
        return (self.last_tsval - self.last_ns // 1_000_000) & 0xFFFFFFFF


class _Replay:
    """One end, segment by segment."""

    def __init__(self) -> None:
        self.now = Seen(0, 0, 0, 0, None, None, 0)
        self.acked = 0  # the last acknowledgment this end sent: the kernel's rcv_wup
        self.own_scale: int | None = None
        self.peer_scale: int | None = None

    def sent(self, one: Segment) -> None:
        if one.has(SYN):
            self.own_scale = one.scale
        newer = one.has(SYN) or after(one.end, self.now.snd_nxt)
        self.now = replace(self.now, snd_nxt=one.end if newer else self.now.snd_nxt, window=one.window)
        if one.tsval is not None:
            self.now = replace(self.now, last_tsval=one.tsval, last_ns=one.monotonic_ns)
        if one.has(ACK):
            self.acked = one.ack

    def got(self, one: Segment) -> None:
        if one.has(SYN):
            self.peer_scale = one.scale
            self.now, self.acked = replace(self.now, rcv_nxt=one.end, ts_recent=None), one.seq
        elif not after(one.seq, self.now.rcv_nxt) and after(one.end, self.now.rcv_nxt):
            self.now = replace(self.now, rcv_nxt=one.end)
        # RFC 7323, 4.3 (2): only a segment that holds the last acknowledged byte moves TS.Recent
        if one.tsval is None or after(one.seq, self.acked):
            return
        if self.now.ts_recent is None or not after(self.now.ts_recent, one.tsval):
            self.now = replace(self.now, ts_recent=one.tsval)

    def result(self) -> Seen:
        # RFC 7323, 2.2: the windows are scaled only if both SYNs carried the option
        scaled = self.own_scale is not None and self.peer_scale is not None
        return replace(self.now, scale=(self.own_scale or 0) if scaled else 0)


def seen(segments: Iterable[Segment], local: str, local_port: int, remote: str, remote_port: int) -> Seen:
    """Replay what one end sent and got. All segments must have arrived, in order: true on lo, veth and tun.

    Segments of an earlier connection with the same tuple do not count: a SYN begins anew. RSTs do not count either.
    """
    replay = _Replay()
    for one in segments:
        if one.has(RST):
            continue
        if one.tuple == (local, local_port, remote, remote_port):
            replay.sent(one)
        elif one.tuple == (remote, remote_port, local, local_port):
            replay.got(one)
    return replay.result()


# ---- capture ----


class Capture:
    """TCP segments that passed an interface. Nothing runs: they wait in the socket's buffer until asked for."""

    def __init__(self, sock: socket.socket, device: str) -> None:
        self._sock = sock
        self._device = device
        self._segments: list[Segment] = []

    def segments(self) -> list[Segment]:
        """All segments until now, in the order they passed. AssertionError if the buffer overflowed."""
        # SO_TIMESTAMPNS is wall time
        wall_to_monotonic = time.monotonic_ns() - time.time_ns()
        while True:
            try:
                packet, ancillary, _, source = self._sock.recvmsg(1 << 17, 128)
            except BlockingIOError:
                break
            # on lo every packet passes twice, out and in again
            if self._device == "lo" and source[2] != PACKET_OUTGOING:
                continue
            if source[1] not in (0x0800, 0x86DD):
                continue
            said = {(level, kind): value for level, kind, value in ancillary}
            seconds, nanoseconds = struct.unpack("@qq", said[socket.SOL_SOCKET, SO_TIMESTAMPNS])
            partial = struct.unpack_from("@I", said[SOL_PACKET, PACKET_AUXDATA])[0] & TP_STATUS_CSUMNOTREADY != 0
            at = seconds * 1_000_000_000 + nanoseconds + wall_to_monotonic
            segment = parse(packet, at, partial=partial)
            if segment:
                self._segments.append(segment)
        _, dropped = struct.unpack("@II", self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        assert dropped == 0, f"the capture lost {dropped} packets"
        return list(self._segments)

    def seen(self, local: str, local_port: int, remote: str, remote_port: int) -> Seen:
        """What an end knows, by all that passed until now."""
        return seen(self.segments(), local, local_port, remote, remote_port)


@contextmanager
def capture(ns: Namespace, device: str = "lo") -> Iterator[Capture]:
    """Everything TCP on a device of a namespace, from here to the end of the block."""
    # SOCK_DGRAM: no link header, so lo, veth and tun look alike. Protocol 0 first: nothing is caught before bind()
    sock = ns.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(0)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, CAPTURE_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        with ns.entered():  # the device's name is looked up in the thread's namespace
            sock.bind((device, ETH_P_ALL))
        yield Capture(sock, device)


def inject(ns: Namespace, segment: Segment) -> None:
    """Send a segment as if the end it names had sent it: it takes the route of its destination."""
    if ":" in segment.source:
        sock = ns.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
    else:
        sock = ns.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sock:
        # the port of a raw socket's destination must be 0 for IPv6 (rawv6_sendmsg), and means nothing for IPv4
        sock.sendto(build(segment), (segment.destination, 0))
