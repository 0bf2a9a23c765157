"""The kernel's own list of TIME_WAIT sockets, over sock_diag netlink (sock_diag(7)), as raw messages."""

import errno
import functools
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from twctl.addresses import Address, Endpoint, is_ipv4, socket_family, unmapped
from twctl.linux.netns import inside
from twctl.linux.tcp import TCP_CLOSE, TCP_FIN_WAIT2, TCP_LISTEN, TCP_TIME_WAIT

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
MINI_STATES = 1 << TCP_FIN_WAIT2 | 1 << TCP_TIME_WAIT
ALL_STATES = 0xFFFFFFFF
TIMER_TIME_WAIT = 3  # idiag_timer of a mini-socket
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2, then struct inet_diag_sockid
SOCKID = struct.Struct("=2s2s16s16sIQ")
NO_COOKIE = 2**64 - 1
ANSWER_BYTES = 8192
DUMP_BYTES = 32768
# Of struct inet_diag_msg: family, timer, ports, addresses, interface, expires.
ENTRY = struct.Struct("=BxBx2s2s16s16sI8xI")
ANSWER_SECONDS = 5  # the kernel answers within the request's own system call


# linux/inet_diag.h: INET_DIAG_REQ_BYTECODE, INET_DIAG_BC_JMP and _D_COND; struct inet_diag_bc_op and _hostcond
REQUEST_BYTECODE, JUMP, DESTINATION_IS = 1, 1, 8
OPERATION, HOST = struct.Struct("=BBH"), struct.Struct("=BB2xi")
# All states but those without a remote endpoint.
CONNECTED_STATES = 0xFFF & ~(1 << TCP_CLOSE | 1 << TCP_LISTEN)


class Held(NamedTuple):
    """A pair of endpoints in use, as on the wire. left: s until TIME_WAIT lets it go; None: it is a live connection."""

    local: Address
    local_port: int
    remote: Endpoint
    left: float | None


def exact_request(local: Endpoint, remote: Endpoint, scope: int = 0) -> bytes:
    """Return the request for exactly this socket. scope: interface index of a link-local session, else 0."""
    ports = [port.to_bytes(2, "big") for _, port in (local, remote)]
    id_ = SOCKID.pack(*ports, local[0].packed, remote[0].packed, scope, NO_COOKIE)
    return _message(NLM_F_REQUEST, socket_family(local[0]), ALL_STATES, id_)


def _only_toward(remotes: Sequence[Endpoint]) -> bytes:
    """The attribute that restricts a dump: what meets a condition jumps to the end, the rest is left out."""
    code = b""
    for address, port in reversed(remotes):
        condition = HOST.pack(socket_family(address), address.max_prefixlen, port) + address.packed
        size = OPERATION.size + len(condition)
        # Where it is met, the next operation follows: the jump, of the last condition the end. Else that is left out.
        jump = OPERATION.pack(JUMP, OPERATION.size, OPERATION.size + len(code)) if code else b""
        code = OPERATION.pack(DESTINATION_IS, size, size + OPERATION.size) + condition + jump + code
    return struct.pack("=HH", 4 + len(code), REQUEST_BYTECODE) + code


def _message(flags: int, family: int, states: int, id_: bytes, attributes: bytes = b"") -> bytes:
    body = REQUEST.pack(family, socket.IPPROTO_TCP, 0, states) + id_ + attributes
    return HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, flags, 0, 0) + body


def _numbered(request: bytes, sequence: int) -> bytes:
    return request[:8] + struct.pack("=I", sequence) + request[12:]


class SockDiag:
    """A sock_diag socket in one network namespace (None: the calling thread's own)."""

    def __init__(self, netns: str | None = None) -> None:
        self._sock = inside(netns, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG))
        self._sock.bind((0, 0))
        # not settimeout(): with it Python waits for MSG_DONTWAIT, too
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", ANSWER_SECONDS, 0))
        self._sequence = 1

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def dump(self, family: int, buffer: memoryview) -> Iterator[int]:
        """Receive the kernel's list of one address family into `buffer`; yield the bytes received, until the end.

        Full sockets in FIN_WAIT2 are among them: their idiag_timer is not TIMER_TIME_WAIT.

        :raises OSError: if the kernel refuses.
        """
        yield from self._dump(_message(NLM_F_REQUEST | NLM_F_DUMP, family, MINI_STATES, bytes(SOCKID.size)), buffer)

    def toward(self, remotes: Sequence[Endpoint]) -> Iterator[Held]:
        """Yield every local endpoint that is in use toward remote ones, of dual-stack sockets, too.

        The kernel walks all its sockets each time, whatever is asked for: so all destinations at once.

        :raises OSError: if the kernel refuses.
        """
        buffer = memoryview(bytearray(DUMP_BYTES))
        ipv4 = [remote for remote in remotes if is_ipv4(remote[0])]
        for family, asked in ((socket.AF_INET, ipv4), (socket.AF_INET6, remotes)):
            if asked:
                request = _message(
                    NLM_F_REQUEST | NLM_F_DUMP, family, CONNECTED_STATES, bytes(SOCKID.size), _only_toward(asked)
                )
                for size in self._dump(request, buffer):
                    yield from _held(buffer[:size])

    def _dump(self, request: bytes, buffer: memoryview) -> Iterator[int]:
        self._sock.send(request)
        while True:
            size = self._sock.recv_into(buffer)
            kind = HEADER.unpack_from(buffer)[1]
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", buffer, HEADER.size)[0]
                raise OSError(code, os.strerror(code))
            if kind == NLMSG_DONE:
                return
            yield size
            if _ends_with_done(buffer, size):
                return

    def has_mini_socket(self, local: Endpoint, remote: Endpoint, scope: int) -> bool:
        """Ask for exactly this tuple: whether the kernel has a TIME_WAIT or FIN_WAIT2 mini-socket for it.

        local, remote: address and port. scope: interface index of a link-local session, else 0.

        :raises OSError: if the kernel refuses to answer.
        """
        answer = self.ask([exact_request(local, remote, scope)])[0]
        if HEADER.unpack_from(answer)[1] == NLMSG_ERROR:
            code = -struct.unpack_from("=i", answer, HEADER.size)[0]
            if code == errno.ENOENT:
                return False
            raise OSError(code, os.strerror(code))
        return answer[HEADER.size + 2] == TIMER_TIME_WAIT

    def ask(self, requests: Sequence[bytes]) -> list[bytes]:
        """Send exact-match requests in one system call; return the kernel's answers in the same order.

        An answer carries its request's sequence number: one to an earlier request, left over, is passed over.
        """
        first = self._sequence
        self._sequence = first + len(requests) & 0xFFFFFFFF
        numbered = [_numbered(request, first + i & 0xFFFFFFFF) for i, request in enumerate(requests)]
        self._sock.send(b"".join(numbered))
        answers = []
        for i in range(len(requests)):
            answer = self._sock.recv(ANSWER_BYTES)
            while HEADER.unpack_from(answer)[3] != first + i & 0xFFFFFFFF:
                answer = self._sock.recv(ANSWER_BYTES)
            answers.append(answer)
        return answers

    def destroy(self, requests: Sequence[bytes]) -> int:
        """Send SOCK_DESTROY requests in one system call; return how many the kernel refused.

        The kernel is done when the call returns, and answers only what it refuses (ENOENT, ESTALE: gone meanwhile).
        """
        if not requests:
            return 0
        self._sock.send(b"".join(requests))
        refused = 0
        while True:
            try:
                self._sock.recv(ANSWER_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return refused
            refused += 1


@functools.lru_cache
def _address(family: int, packed: bytes, interface: int) -> Address:
    """The address as on the wire. Many sockets have the same. interface: what tells link-local ones apart."""
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(packed[:4])
    address = ipaddress.IPv6Address(packed)
    if interface and address.is_link_local:
        return ipaddress.IPv6Address(f"{address}%{interface}")
    return unmapped(address)


def _held(messages: memoryview) -> Iterator[Held]:
    start = 0
    while start < len(messages):
        length, kind = HEADER.unpack_from(messages, start)[:2]
        if kind == SOCK_DIAG_BY_FAMILY:
            family, timer, port, remote_port, local, remote, interface, expires = ENTRY.unpack_from(
                messages, start + HEADER.size
            )
            yield Held(
                _address(family, local, 0),
                int.from_bytes(port, "big"),
                (_address(family, remote, interface), int.from_bytes(remote_port, "big")),
                expires / 1000 if timer == TIMER_TIME_WAIT else None,
            )
        start += length + 3 & ~3


def _ends_with_done(buffer: memoryview, size: int) -> bool:
    start = 0
    while start < size:
        length, kind = HEADER.unpack_from(buffer, start)[:2]
        if kind == NLMSG_DONE:
            return True
        start += length + 3 & ~3
    return False
