"""Netlink sockets without a decoder: open them in any network namespace, ask, and walk the raw answers (netlink(7))."""

import importlib.util
import os
import socket
import struct
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from twctl.linux.netns import inside

_borrowed: dict[str, types.ModuleType] = {}


@contextmanager
def part_of(package: str) -> Iterator[None]:
    """Imports inside take single modules of a package without running the package's own __init__.

    pyroute2's loads all of pyroute2 (19 MB resident); the constants and setns need 2 MB. Afterwards sys.modules is as
    it was, so that a plain import still gets the whole package. Does nothing where that has happened already.
    """
    spec = importlib.util.find_spec(package) if package not in sys.modules else None
    if spec is None:
        yield
        return
    bare = types.ModuleType(package)
    bare.__path__ = spec.submodule_search_locations or []
    sys.modules.update({package: bare} | _borrowed)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            _borrowed[name] = sys.modules.pop(name)


with part_of("pyroute2"):
    from pyroute2.netlink import (
        NETLINK_ADD_MEMBERSHIP,
        NETLINK_GET_STRICT_CHK,
        NLM_F_ACK,
        NLM_F_DUMP,
        NLM_F_DUMP_INTR,
        NLM_F_REQUEST,
        NLMSG_DONE,
        NLMSG_ERROR,
        SOL_NETLINK,
    )

Decoded = TypeVar("Decoded")

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
# A dump fills at most 32 KiB a read (af_netlink.c, netlink_recvmsg); only links with many VFs send more in one message.
BUFFER_BYTES = 1 << 16
# Reads of a list that changes all the time before what was read is taken as it is; notifications tell the rest.
ATTEMPTS = 4
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; parisc and sparc differ and get the ordinary limit


class Message(NamedTuple):
    """A netlink message inside a buffer: its type, flags, and where its bytes start and end."""

    type: int
    flags: int
    start: int
    end: int

    @property
    def interrupted(self) -> bool:
        """Whether the kernel says that the dump it belongs to is inconsistent."""
        return bool(self.flags & NLM_F_DUMP_INTR)


Select = Callable[[bytearray, int], Iterator[Message]]


def messages(buffer: bytearray, size: int) -> Iterator[Message]:
    """Every message in the first size bytes of a buffer."""
    start = 0
    while start < size:
        length, type_, flags = HEADER.unpack_from(buffer, start)[:3]
        yield Message(type_, flags, start, start + length)
        start += length + 3 & ~3


def open_socket(
    netns: str | None, groups: Iterable[int] = (), receive_bytes: int = 0, protocol: int = socket.NETLINK_ROUTE
) -> socket.socket:
    """A netlink socket in a network namespace, member of multicast groups (RTNLGRP_).

    netns: name below /run/netns, None for the calling thread's own. receive_bytes: queue for messages that wait, 0 for
    the system's default. Raises OSError, and TwctlError where the namespace cannot be entered.
    """
    sock = inside(netns, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol))
    sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
    if receive_bytes:
        _set_receive_bytes(sock, receive_bytes)
    sock.bind((0, 0))
    for group in groups:
        sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    return sock


def _set_receive_bytes(sock: socket.socket, receive_bytes: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_bytes)
    except OSError:  # without CAP_NET_ADMIN as far as net.core.rmem_max allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)


def ask(
    sock: socket.socket,
    type_: int,
    body: bytes,
    select: Select,
    *,
    dump: bool = True,
) -> Iterator[tuple[bytearray, Message]]:
    """Send a request; yield what select lets through of the answer, to the end of the dump (or the one answer).

    The buffer is used again after each step. Raises OSError with the kernel's errno where it refuses.
    """
    flags = NLM_F_REQUEST | (NLM_F_DUMP if dump else 0)
    sock.send(HEADER.pack(HEADER.size + len(body), type_, flags, 0, 0) + body)
    buffer = bytearray(BUFFER_BYTES)
    while True:
        size = sock.recv_into(buffer)
        for message in select(buffer, size):
            if message.type == NLMSG_ERROR:
                code = -struct.unpack_from("=i", buffer, message.start + 16)[0]
                raise OSError(code, os.strerror(code))
            if message.type == NLMSG_DONE:
                return
            yield buffer, message
        if not dump:
            return


def change(sock: socket.socket, type_: int, flags: int, body: bytes) -> None:
    """Send one request that changes something and wait until it has. Raises OSError with the kernel's errno."""
    sock.send(HEADER.pack(HEADER.size + len(body), type_, NLM_F_REQUEST | NLM_F_ACK | flags, 0, 0) + body)
    buffer = bytearray(BUFFER_BYTES)
    for message in messages(buffer, sock.recv_into(buffer)):
        code = -struct.unpack_from("=i", buffer, message.start + 16)[0]
        if message.type == NLMSG_ERROR and code:
            raise OSError(code, os.strerror(code))


def dump(
    sock: socket.socket, type_: int, body: bytes, decode: Callable[[bytearray, Message], Decoded]
) -> list[Decoded]:
    """All answers to a request, decoded; asked again, at most ATTEMPTS times, where the list changed meanwhile.

    Raises OSError.
    """
    for _ in range(ATTEMPTS):
        found, interrupted = [], False
        for buffer, message in ask(sock, type_, body, messages):
            found.append(decode(buffer, message))
            interrupted |= message.interrupted
        if not interrupted:
            break
    return found
