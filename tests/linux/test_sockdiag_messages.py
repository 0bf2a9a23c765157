"""The messages of sock_diag, byte for byte; and what a real kernel answers to them."""

import errno
import ipaddress
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twctl.addresses import Endpoint
from twctl.linux.ports import parse_ports
from twctl.linux.sockdiag_messages import (
    ALL_STATES,
    DESTINATION_IS,
    HEADER,
    JUMP,
    LOCAL_PORT_AT_LEAST,
    LOCAL_PORT_AT_MOST,
    MESSAGE,
    MESSAGE_BYTES,
    NLMSG_DONE,
    NLMSG_ERROR,
    REQUEST_BYTES,
    SOCK_DESTROY,
    SOCK_DIAG_BY_FAMILY,
    TIMER_TIME_WAIT,
    Answer,
    Header,
    destroy_request,
    endpoints,
    error_of,
    exact_request,
    numbered,
    offsets,
    read_answer,
    read_holders,
    sequence_of,
    toward_filter,
)
from twctl.linux.tcp import TCP_TIME_WAIT

COOKIE = b"\x01\x02\x03\x04\x05\x06\x07\x08"
NEAR, FAR = (ipaddress.ip_address("192.0.2.1"), 40001), (ipaddress.ip_address("192.0.2.7"), 443)


def message(local: Endpoint, remote: Endpoint, timer: int = TIMER_TIME_WAIT, interface: int = 0) -> bytes:
    """Struct nlmsghdr and inet_diag_msg of a socket whose timer has 23 s left, and one attribute after them."""
    family = socket.AF_INET if len(local[0].packed) == 4 else socket.AF_INET6
    ports = [port.to_bytes(2, "big") for _, port in (local, remote)]
    body = MESSAGE.pack(
        family, TCP_TIME_WAIT, timer, *ports, local[0].packed, remote[0].packed, interface, COOKIE, 23_000
    )
    return HEADER.pack(MESSAGE_BYTES + 8, SOCK_DIAG_BY_FAMILY, 2, 7, 4711) + body + bytes(8)


def done() -> bytes:
    """What ends a dump."""
    return HEADER.pack(20, NLMSG_DONE, 2, 7, 4711) + bytes(4)


def refusal(code: int) -> bytes:
    """Struct nlmsgerr."""
    return HEADER.pack(36, NLMSG_ERROR, 0, 7, 4711) + struct.pack("=i", -code) + bytes(16)


def test_sizes_are_those_of_the_kernels_structs() -> None:
    """linux/inet_diag.h: 16 + 8 + 48 bytes of a request, 16 + 72 of a message."""
    assert (72, 88) == (REQUEST_BYTES, MESSAGE_BYTES)


def test_a_request_asks_for_one_socket_in_any_state() -> None:
    """Struct inet_diag_req_v2 with the whole tuple, and a cookie that means any."""
    request = exact_request(NEAR, FAR)
    expected = struct.pack("=IHHII", 72, SOCK_DIAG_BY_FAMILY, 1, 0, 0)
    expected += struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, ALL_STATES)
    expected += struct.pack("!HH", 40001, 443) + NEAR[0].packed + bytes(12) + FAR[0].packed + bytes(12)
    assert expected + bytes(4) + b"\xff" * 8 == request


def test_a_request_to_destroy_differs_in_type_and_cookie_alone() -> None:
    """The cookie is that of the answer; the sequence number stays."""
    request = numbered(exact_request(NEAR, FAR), 1009)
    assert 1009 == sequence_of(request)
    order = destroy_request(request, COOKIE)
    header = Header._make(HEADER.unpack_from(order))
    assert Header(72, SOCK_DESTROY, 1, 1009, 0) == header
    assert request[16:64] + COOKIE == order[16:]


def test_an_answer_tells_state_timer_and_cookie() -> None:
    """Seconds, of the kernel's milliseconds; a refusal is no answer, and says why."""
    raw = message(NEAR, FAR)
    assert Answer(TCP_TIME_WAIT, TIMER_TIME_WAIT, 23.0, COOKIE) == read_answer(raw)
    assert error_of(raw) is None
    assert read_answer(refusal(errno.ENOENT)) is None
    error = error_of(refusal(errno.ENOENT))
    assert error
    assert errno.ENOENT == error.errno


def test_a_buffer_is_read_to_its_end() -> None:
    """Messages with attributes stand one after the other; the last may say that the dump is over."""
    buffer = memoryview(message(NEAR, FAR) + message(NEAR, FAR, timer=0) + done() + bytes(MESSAGE_BYTES))
    size = len(buffer) - MESSAGE_BYTES
    assert [(0, 20), (96, 20), (192, NLMSG_DONE)] == list(offsets(buffer, size))
    found, ended = read_holders(buffer, size)
    assert ended
    assert [(40001, 23.0), (40001, None)] == [(each.local_port, each.left) for each in found]
    assert {(NEAR[0], FAR)} == {endpoints(each.family, each.ends) for each in found}
    assert ([], False) == read_holders(buffer, 0)


@pytest.mark.parametrize(
    ("local", "remote", "interface", "seen"),
    [
        ("2001:db8::1", "2001:db8::7", 3, ("2001:db8::1", "2001:db8::7")),
        ("fe80::1", "fe80::7", 3, ("fe80::1", "fe80::7%3")),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.7", 0, ("192.0.2.1", "192.0.2.7")),
    ],
)
def test_endpoints_are_those_on_the_wire(local: str, remote: str, interface: int, seen: tuple[str, str]) -> None:
    """A link-local peer has its device, and a mapped address is IPv4."""
    raw = message((ipaddress.ip_address(local), 1), (ipaddress.ip_address(remote), 443), interface=interface)
    [holder] = read_holders(memoryview(raw + bytes(MESSAGE_BYTES)), len(raw))[0]
    near, (far, port) = endpoints(holder.family, holder.ends)
    assert (*seen, 443) == (str(near), str(far), port)


def passes(code: bytes, local_port: int, remote: Endpoint) -> bool:
    """Run a filter as inet_diag_bc_run() does, and check its jumps as inet_diag_bc_audit() does."""
    at = 0
    while at < len(code):
        operation, yes, no = struct.unpack_from("=BBH", code, at)
        assert yes % 4 == no % 4 == 0
        assert 4 <= yes <= len(code) - at
        assert 4 <= no <= len(code) - at + 4
        if operation == JUMP:
            met = False
        elif operation == DESTINATION_IS:
            family, bits, port = struct.unpack_from("=BB2xi", code, at + 4)
            packed = remote[0].packed
            met = (len(packed) * 8, port) == (bits, remote[1]) and code[at + 12 : at + 12 + bits // 8] == packed
            assert family in {socket.AF_INET, socket.AF_INET6}
        else:
            (port,) = struct.unpack_from("=2xH", code, at + 4)
            assert operation in {LOCAL_PORT_AT_LEAST, LOCAL_PORT_AT_MOST}
            met = local_port >= port if operation == LOCAL_PORT_AT_LEAST else local_port <= port
        at += yes if met else no
    return at == len(code)


@given(st.integers(1, 65535), st.integers(1, 441), st.integers(1, 5))
def test_a_filter_lets_through_what_it_names(port: int, pieces: int, count: int) -> None:
    """Some destinations, and the ports of a piece of the range: no other socket."""
    ports = parse_ports("32768 60999", "")
    part = ports.piece(0, min(pieces, ports.pieces()))
    remotes = [(ipaddress.ip_address("192.0.2.7"), 400 + i) for i in range(count)]
    filter_ = toward_filter(remotes, part)
    assert len(filter_) == struct.unpack_from("=H", filter_)[0]
    inside = any(port in each for each in part)
    for i in range(count + 1):
        remote = remotes[0][0], 400 + i
        assert (inside and i < count) == passes(filter_[4:], port, remote)
