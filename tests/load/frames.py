"""Ethernet frames as any neighbour can send them, and where those that come back were sent to."""

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tests.load.netns import Namespace
from tests.load.segments import ETH_P_ALL, Segment, parse

ETHERTYPE = {4: 0x0800, 6: 0x86DD}
HEADER_BYTES = 14


def hardware_address(ns: Namespace, device: str) -> bytes:
    """Of a device."""
    with packet_socket(ns, device, protocol=0) as sock:
        raw: bytes = sock.getsockname()[4]
        return raw


@contextmanager
def packet_socket(ns: Namespace, device: str, protocol: int = ETH_P_ALL) -> Iterator[socket.socket]:
    """What sends frames on a device as they are, and gets those that pass it. protocol 0: it gets none."""
    with ns.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        with ns.entered():  # the device's name is looked up in the thread's namespace
            sock.bind((device, protocol))
        yield sock


def framed(destination: bytes, source: bytes, packet: bytes) -> bytes:
    """A packet with its Ethernet header."""
    return destination + source + ETHERTYPE[packet[0] >> 4].to_bytes(2, "big") + packet


def send_frames(ns: Namespace, device: str, frames: Iterable[bytes]) -> None:
    """Send them on a device."""
    with packet_socket(ns, device, protocol=0) as sock:
        for frame in frames:
            sock.send(frame)


class Addressed:
    """Segments that pass a device, each with the hardware address that it is sent to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._found: list[tuple[bytes, Segment]] = []

    def found(self) -> list[tuple[bytes, Segment]]:
        """All until now."""
        while True:
            try:
                frame = self._sock.recv(1 << 16)
            except BlockingIOError:
                return list(self._found)
            packet = frame[HEADER_BYTES:]
            kind = int.from_bytes(frame[HEADER_BYTES - 2 : HEADER_BYTES], "big")
            if packet and ETHERTYPE.get(packet[0] >> 4) == kind and (segment := parse(packet, partial=True)):
                self._found.append((frame[:6], segment))


@contextmanager
def addressed(ns: Namespace, device: str) -> Iterator[Addressed]:
    """Everything TCP on an Ethernet device, from here to the end of the block."""
    with packet_socket(ns, device) as sock:
        sock.settimeout(0)
        yield Addressed(sock)
