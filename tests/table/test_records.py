"""Records and index words as Python reads them, without a kernel."""

import ipaddress
import struct
import time

import pytest

from twctl.classes import Class
from twctl.table.counters import TICK
from twctl.table.records import Ends, as_json, decode, remaining, translated

IPV4 = struct.pack(
    "=4s4s2s2sIIIIHBB", bytes([10, 0, 0, 1]), bytes([192, 0, 2, 7]), b"\x9c\x40", b"\x01\xbb", 1, 2, 4, 5, 509, 5, 0x72
)


def word(tick: int, slot: int = 7) -> int:
    """An index word that expires at a tick."""
    return (tick & 0xFFFFFF) << 40 | 0xABCD << 24 | slot


def test_a_record_of_32_bytes_is_decoded_field_by_field() -> None:
    """Addresses and ports in network order, the rest in host order, scale and flags in the last byte."""
    found = decode("ipv4", IPV4, class_=Class.REMOTE, expires_in=1.5, age=2.5, names={5: "blue"})
    assert as_json(found) == {
        "family": "ipv4",
        "class": "remote",
        "substate": "TIME_WAIT",
        "local": "10.0.0.1",
        "local_port": 40000,
        "remote": "192.0.2.7",
        "remote_port": 443,
        "expires_in": 1.5,
        "age": 2.5,
        "netns": "blue",
        "snd_nxt": 1,
        "rcv_nxt": 3,
        "window": 509,
        "window_scale": 7,
        "ts_recent": 4,
        "ts_offset": 5,
        "known": True,
        "wire": None,
    }


def test_a_translated_session_is_shown_as_its_application_sees_it() -> None:
    """The record that names it has what is on the wire, which stands beside."""
    service = ipaddress.ip_address("10.96.0.1")
    found = decode("ipv4", IPV4, class_=Class.REMOTE, expires_in=0, age=0, names={})
    row = as_json(translated(found, Ends(found.local, 40001, service, 80)))
    assert ("10.0.0.1", 40001, "10.96.0.1", 80) == tuple(row[name] for name in Ends._fields)
    assert {"local": "10.0.0.1", "local_port": 40000, "remote": "192.0.2.7", "remote_port": 443} == row["wire"]


def test_a_record_of_64_bytes_is_decoded_with_its_flags() -> None:
    """FIN_WAIT2 without timestamps, and no sequence numbers: a session that was taken over."""
    local, remote = ipaddress.ip_address("2001:db8::1"), ipaddress.ip_address("2001:db8::2")
    raw = struct.pack("=16s16s2s2sIIIIHBBI4x", local.packed, remote.packed, b"\0\1", b"\0\2", 0, 0, 9, 0, 0, 3, 0x09, 0)
    found = decode("ipv6", raw, class_=Class.LOCAL, fin_wait2=True, expires_in=0, age=0, names={})
    assert (local, 1, remote, 2) == (found.local, found.local_port, found.remote, found.remote_port)
    assert ("FIN_WAIT2", None, False, "#3") == (found.substate, found.ts_recent, found.known, found.netns)


def test_the_peer_s_fin_is_the_next_that_is_expected_until_it_has_come() -> None:
    """FIN_WAIT2 or TIME_WAIT stands in the word, and the record is the same: it has the FIN's sequence number."""
    raw = IPV4[:16] + struct.pack("=I", 0xFFFFFFFF) + IPV4[20:]
    found = [
        decode("ipv4", raw, class_=Class.REMOTE, fin_wait2=waits, expires_in=0, age=0, names={}).rcv_nxt
        for waits in (True, False)
    ]
    assert [0xFFFFFFFF, 0] == found


@pytest.mark.parametrize(("ticks", "expected"), [(1, 1), (16383, 16383), (0, 0), (-1, 0), (16384, 0)])
def test_a_word_lives_from_its_tick_back_to_the_horizon(ticks: int, expected: int) -> None:
    """A word that expires later than the horizon is an old one whose tick has wrapped."""
    now = 12345 << 26
    assert expected * TICK == remaining(word(12345 + ticks), now)


def test_ticks_wrap_after_24_bits() -> None:
    """A session born just before the wrap expires after it."""
    assert 3 * TICK == remaining(word(1), (2**24 - 2) << 26)


def test_the_words_of_a_free_line_are_not_alive() -> None:
    """Zero is free space, whatever the clock says, outside the 18 minutes before the tick wraps."""
    assert remaining(0, time.monotonic_ns()) == 0
