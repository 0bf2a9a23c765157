"""The messages of sock_diag(7) for TCP: requests, the kernel's answers, and the filter that restricts a dump.

Layouts: linux/netlink.h (struct nlmsghdr) and linux/inet_diag.h (struct inet_diag_sockid, inet_diag_req_v2,
inet_diag_msg, inet_diag_bc_op, inet_diag_hostcond). Ports and addresses stand in network byte order, an IPv4 address in
the first four bytes of its field.
"""

import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from twctl.addresses import Address, Endpoint, socket_family, unmapped
from twctl.linux.tcp import TCP_CLOSE, TCP_FIN_WAIT2, TCP_LISTEN, TCP_TIME_WAIT

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 20, 21  # linux/sock_diag.h
NLM_F_REQUEST, NLM_F_DUMP = 1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
TIMER_TIME_WAIT = 3  # idiag_timer of a mini-socket (TIME_WAIT or FIN_WAIT2)
CGROUP_ID = 21  # INET_DIAG_CGROUP_ID
NO_COOKIE = b"\xff" * 8  # INET_DIAG_NOCOOKIE, twice
MINI_STATES = 1 << TCP_FIN_WAIT2 | 1 << TCP_TIME_WAIT
ALL_STATES = 0xFFFFFFFF
# All states but those without a remote endpoint.
CONNECTED_STATES = 0xFFF & ~(1 << TCP_CLOSE | 1 << TCP_LISTEN)

HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
NUMBERED = struct.Struct("=8sI")  # length, type and flags together, and the sequence number
ERROR = struct.Struct("=i")  # struct nlmsgerr: a negative errno, then the request's header
SOCKID = struct.Struct("=2s2s16s16sI8s")  # struct inet_diag_sockid
REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2, before its sockid
MESSAGE = struct.Struct("=BBBx2s2s16s16sI8sI16x")  # struct inet_diag_msg
# Of a message of a dump: length, type; family, timer, local port, the rest of its sockid before the cookie; expires.
HOLDER = struct.Struct("=IH10xBxBx2s38s8xI")
# The same, with state, cookie and inode in place of local port and expires.
LISTED = struct.Struct("=IH10xBBBx2x38s8s16xI")
ENDS = struct.Struct("=2s16s16sI")  # remote port, addresses, interface
REQUEST_BYTES = HEADER.size + REQUEST.size + SOCKID.size
MESSAGE_BYTES = HEADER.size + MESSAGE.size  # attributes may follow

# The filter of a dump (INET_DIAG_REQ_BYTECODE), inet_diag_bc_op.code of its operations.
REQUEST_BYTECODE = 1
JUMP, LOCAL_PORT_AT_LEAST, LOCAL_PORT_AT_MOST, DESTINATION_IS = 1, 2, 3, 8
ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
OPERATION = struct.Struct("=BBH")  # struct inet_diag_bc_op: code, bytes to the next operation if it is so, and if not
HOST = struct.Struct("=BB2xi")  # struct inet_diag_hostcond, before its address
PORT = struct.Struct("=2xH")  # a second inet_diag_bc_op, which holds the port to compare with


class Header(NamedTuple):
    """struct nlmsghdr. length: of the whole message, in bytes."""

    length: int
    type: int
    flags: int
    sequence: int
    port_id: int


class Message(NamedTuple):
    """struct inet_diag_msg, without queues, uid and inode. expires: ms until the timer fires."""

    family: int
    state: int
    timer: int
    local_port: bytes
    remote_port: bytes
    local: bytes
    remote: bytes
    interface: int
    cookie: bytes
    expires: int


class Answer(NamedTuple):
    """What the kernel says of a socket: state and timer (idiag_*), seconds left of the timer, cookie (8 bytes)."""

    state: int
    timer: int
    left: float
    cookie: bytes


class Holder(NamedTuple):
    """A socket that holds a local port toward a remote endpoint.

    ends: the rest of its struct inet_diag_sockid, which many sockets share (`endpoints` reads it). left: seconds until
    its TIME_WAIT ends; None: it is a live connection.
    """

    family: int
    ends: bytes
    local_port: int
    left: float | None


class Listed(NamedTuple):
    """A full socket.

    ends: as a Holder's; cookie: what it is known by; owned: whether an application has it; cgroup: where it was made,
    if known.
    """

    state: int
    family: int
    ends: bytes
    cookie: bytes
    owned: bool
    cgroup: int | None


def exact_request(local: Endpoint, remote: Endpoint, scope: int = 0) -> bytes:
    """Return the request for exactly this socket. scope: interface index of a link-local session, else 0."""
    ports = [port.to_bytes(2, "big") for _, port in (local, remote)]
    id_ = SOCKID.pack(*ports, local[0].packed, remote[0].packed, scope, NO_COOKIE)
    return _request(NLM_F_REQUEST, socket_family(local[0]), ALL_STATES, id_)


def dump_request(family: int, states: int, filter_: bytes = b"") -> bytes:
    """Return the request for all sockets of an address family in some states (a bit each) that pass a filter."""
    return _request(NLM_F_REQUEST | NLM_F_DUMP, family, states, bytes(SOCKID.size) + filter_)


def _request(flags: int, family: int, states: int, rest: bytes) -> bytes:
    body = REQUEST.pack(family, socket.IPPROTO_TCP, 0, states) + rest
    return HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, flags, 0, 0) + body


def destroy_request(request: bytes, cookie: bytes) -> bytes:
    """Turn the exact request for a socket into the one that destroys it, if it still has this cookie."""
    header = Header._make(HEADER.unpack_from(request))
    body = request[HEADER.size : REQUEST_BYTES - len(cookie)]
    return HEADER.pack(header.length, SOCK_DESTROY, header.flags, header.sequence, header.port_id) + body + cookie


def numbered(request: bytes, sequence: int) -> bytes:
    """Give a request a sequence number, which the kernel's answer to it will have, too."""
    return NUMBERED.pack(NUMBERED.unpack_from(request)[0], sequence) + request[NUMBERED.size :]


def sequence_of(message: bytes) -> int:
    """Return the sequence number of the request that this message answers."""
    return int(NUMBERED.unpack_from(message)[1])


def read_answer(raw: bytes) -> Answer | None:
    """Read the kernel's answer to an exact request; None if it has no such socket, or refused (`error_of`)."""
    if HEADER.unpack_from(raw)[1] != SOCK_DIAG_BY_FAMILY:
        return None
    message = Message._make(MESSAGE.unpack_from(raw, HEADER.size))
    return Answer(message.state, message.timer, message.expires / 1000, message.cookie)


def read_cgroup(raw: bytes | memoryview) -> int | None:
    """Read from the same answer which cgroup made the socket, by its number; None: the kernel does not say."""
    if HEADER.unpack_from(raw)[1] != SOCK_DIAG_BY_FAMILY:
        return None
    start, end = MESSAGE_BYTES, HEADER.unpack_from(raw)[0]
    while start + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(raw, start)
        if kind == CGROUP_ID:
            return int.from_bytes(raw[start + ATTRIBUTE.size : start + length], sys.byteorder)
        start += max(ATTRIBUTE.size, length + 3 & ~3)
    return None


def error_of(raw: bytes | memoryview) -> OSError | None:
    """Return what an NLMSG_ERROR says; None for any other message."""
    if HEADER.unpack_from(raw)[1] != NLMSG_ERROR:
        return None
    code = -ERROR.unpack_from(raw, HEADER.size)[0]
    return OSError(code, os.strerror(code))


def offsets(messages: bytes | memoryview, size: int) -> Iterator[tuple[int, int]]:
    """Yield where each message of a received buffer begins, and its type."""
    start = 0
    while start + HEADER.size <= size:
        length, kind, *_ = HEADER.unpack_from(messages, start)
        yield start, kind
        start += max(HEADER.size, length + 3 & ~3)


def read_holders(buffer: memoryview, size: int) -> tuple[list[Holder], bool]:
    """Read the sockets that a buffer of a dump lists, and whether the dump ends with it.

    The buffer has MESSAGE_BYTES more than `size`. One message takes 0.8 us.
    """
    found: list[Holder] = []
    start = 0
    while start < size:
        length, kind, family, timer, port, ends, expires = HOLDER.unpack_from(buffer, start)
        if kind == NLMSG_DONE:
            return found, True
        left = expires / 1000 if timer == TIMER_TIME_WAIT else None
        found.append(Holder(family, ends, int.from_bytes(port, "big"), left))
        start += length + 3 & ~3
    return found, False


def read_listed(buffer: memoryview, size: int) -> tuple[list[Listed], bool]:
    """The same of full sockets, with who owns them."""
    found: list[Listed] = []
    start = 0
    while start < size:
        length, kind, family, state, timer, ends, cookie, inode = LISTED.unpack_from(buffer, start)
        if kind == NLMSG_DONE:
            return found, True
        if timer != TIMER_TIME_WAIT:
            cgroup = read_cgroup(buffer[start : start + length])
            found.append(Listed(state, family, ends, cookie, inode != 0, cgroup))
        start += length + 3 & ~3
    return found, False


def endpoints(family: int, ends: bytes) -> tuple[Address, Endpoint]:
    """Return a holder's local address and remote endpoint, as on the wire."""
    port, local, remote, interface = ENDS.unpack(ends)
    if family == socket.AF_INET:
        return ipaddress.IPv4Address(local[:4]), (ipaddress.IPv4Address(remote[:4]), int.from_bytes(port, "big"))
    address = ipaddress.IPv6Address(remote)
    if interface and address.is_link_local:
        address = ipaddress.IPv6Address(f"{address}%{interface}")
    return unmapped(ipaddress.IPv6Address(local)), (unmapped(address), int.from_bytes(port, "big"))


def toward_filter(remotes: Sequence[Endpoint], local_ports: Sequence[range]) -> bytes:
    """Return the attribute that lets a dump list only what goes from some local ports to some remote endpoints.

    local_ports: not empty, in order, apart from each other. The kernel's checker (inet_diag_bc_audit()) takes jumps
    forward only; one that leads four bytes past the end leaves the socket out.
    """
    code = _any_of(remotes)
    code = _in_one_of(local_ports, len(code)) + code
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(code), REQUEST_BYTECODE) + code


def _any_of(remotes: Sequence[Endpoint]) -> bytes:
    """A condition for each; where one is met, a jump to the end follows, else the next condition."""
    code = b""
    for address, port in reversed(remotes):
        condition = HOST.pack(socket_family(address), address.max_prefixlen, port) + address.packed
        size = OPERATION.size + len(condition)
        jump = _jump_over(code) if code else b""
        code = OPERATION.pack(DESTINATION_IS, size, size + OPERATION.size) + condition + jump + code
    return code


def _in_one_of(ranges: Sequence[range], rest: int) -> bytes:
    """Bisect the ranges, so that the kernel makes eight comparisons for 64 of them. rest: bytes of code that follow."""
    if len(ranges) == 1:
        [ports] = ranges
        too_high = _compare(LOCAL_PORT_AT_MOST, ports.stop - 1, rest + OPERATION.size)
        return _compare(LOCAL_PORT_AT_LEAST, ports.start, len(too_high) + rest + OPERATION.size) + too_high
    middle = len(ranges) // 2
    low = _in_one_of(ranges[:middle], rest)
    high = _in_one_of(ranges[middle:], OPERATION.size + len(low) + rest) + _jump_over(low)
    return _compare(LOCAL_PORT_AT_LEAST, ranges[middle].start, len(high)) + high + low


def _compare(code: int, port: int, skip: int) -> bytes:
    """Compare the local port: if it is so the next operation follows, else the one after so many bytes more."""
    size = OPERATION.size + PORT.size
    return OPERATION.pack(code, size, size + skip) + PORT.pack(port)


def _jump_over(code: bytes) -> bytes:
    return OPERATION.pack(JUMP, OPERATION.size, OPERATION.size + len(code))
