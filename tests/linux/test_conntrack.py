"""conntrack's fill and entries: counters from text, entries from messages as the kernel lays them out."""

import socket
import struct
from pathlib import Path

import pytest

from twctl.linux.conntrack import Entry, Fill, Key, entry, fill, refused

# Of Linux 6.18, two CPUs; before 5.10 the columns are the same.
STAT = """\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  \
expect_new expect_create expect_delete search_restart
00000017  00000000 00000000 00000000 00000003 00000000 00000000 00000000 00000000 00000017 00000002 00000000 00000000  \
00000000 00000000 00000000 00000000
00000017  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 0000000b 00000000 0000001f 00000000  \
00000000 00000000 00000000 00000000
"""


def test_refused_are_summed_over_cpus() -> None:
    """They are hexadecimal."""
    assert {"insert_failed": 34, "drop": 2, "early_drop": 31} == refused(STAT)


def test_what_the_kernel_hides_is_not_made_up(tmp_path: Path) -> None:
    """Without conntrack there is nothing; without its file below /proc/net the fill alone."""
    assert fill(tmp_path) is None
    folder = tmp_path / "sys/net/netfilter"
    folder.mkdir(parents=True)
    (folder / "nf_conntrack_count").write_text("23\n")
    (folder / "nf_conntrack_max").write_text("262144\n")
    assert Fill(23, 262144, None) == fill(tmp_path)
    stat = tmp_path / "thread-self/net/stat/nf_conntrack"
    stat.parent.mkdir(parents=True)
    stat.write_text(STAT)
    assert Fill(23, 262144, {"insert_failed": 34, "drop": 2, "early_drop": 31}) == fill(tmp_path)


def attribute(kind: int, data: bytes) -> bytes:
    """With what fills it up to a multiple of 4."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """With the kernel's flag for it."""
    return attribute(kind | 0x8000, b"".join(parts))


End = tuple[str, int]


def direction(kind: int, source: End, remote: End, protocol: int = 6) -> bytes:
    """CTA_TUPLE_ORIG (1) or CTA_TUPLE_REPLY (2)."""
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    first = 3 if family == socket.AF_INET6 else 1
    addresses = [attribute(first + i, socket.inet_pton(family, each)) for i, (each, _) in enumerate((source, remote))]
    ports = [attribute(2 + i, each.to_bytes(2, "big")) for i, (_, each) in enumerate((source, remote))]
    return nested(kind, nested(1, *addresses), nested(2, attribute(1, bytes([protocol])), *ports))


REST = attribute(3, bytes(4)) + attribute(7, bytes(4))  # CTA_STATUS, CTA_TIMEOUT
CLOSED = nested(4, nested(1, attribute(1, b"\x07"), attribute(2, b"\x0a")))
OPEN = nested(4, nested(1, attribute(1, b"\x03")))
WIRE = Key(socket.inet_aton("10.9.0.1"), socket.inet_aton("10.9.0.2"), (443).to_bytes(2, "big"))
WIRE6 = Key(
    socket.inet_pton(socket.AF_INET6, "fd09::1"), socket.inet_pton(socket.AF_INET6, "fd09::2"), WIRE.remote_port
)
MASQUERADED = direction(1, ("172.17.0.2", 40000), ("10.9.0.2", 443)) + direction(
    2, ("10.9.0.2", 443), ("10.9.0.1", 40000)
)
OTHER_PORT = direction(1, ("10.9.0.1", 40000), ("10.9.0.2", 443)) + direction(2, ("10.9.0.2", 443), ("10.9.0.1", 1024))
OWN = direction(1, ("10.9.0.1", 40000), ("10.9.0.2", 443)) + direction(2, ("10.9.0.2", 443), ("10.9.0.1", 40000))
SERVICE = direction(1, ("10.9.0.1", 40000), ("10.96.0.1", 80)) + direction(2, ("10.9.0.2", 443), ("10.9.0.1", 40000))
SIX = direction(1, ("fd17::2", 40000), ("fd09::2", 443)) + direction(2, ("fd09::2", 443), ("fd09::1", 40000))
UDP = direction(1, ("10.9.0.1", 53), ("10.9.0.2", 53), 17) + direction(2, ("10.9.0.2", 53), ("10.9.0.1", 53), 17)
CASES = [
    (MASQUERADED + REST + CLOSED, Entry(WIRE, translated=True, closed=True)),
    (MASQUERADED + REST + OPEN, Entry(WIRE, translated=True, closed=False)),
    (OTHER_PORT + REST + OPEN, Entry(WIRE, translated=True, closed=False)),
    (OWN + REST + CLOSED, Entry(WIRE, translated=False, closed=True)),
    (SERVICE + REST, Entry(WIRE, translated=False, closed=False)),
    (SIX + REST + CLOSED, Entry(WIRE6, translated=True, closed=True)),
    (UDP + REST, None),
    (nested(1, bytes(56)) + nested(2, bytes(56)) + REST, None),
]


@pytest.mark.parametrize(("message", "expected"), CASES)
def test_an_entry_is_what_it_holds_on_the_wire(message: bytes, expected: Entry | None) -> None:
    """Its source there, the real destination, and whether either is another than the socket's own; TCP alone."""
    around = b"\xff" * 20
    assert expected == entry(around + message + around, 20, 20 + len(message))
