"""conntrack in the calling thread's network namespace: how full it is, what it has refused, and which ports it holds.

There may be a million entries, of which pyroute2 decodes some thousands in a second. So they are taken as the kernel
dumps them, and no more of them than a sample: the order is that of a keyed hash, so the first ones are like all.
"""

import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR

# linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h, nf_conntrack_tcp.h
SUBSYS_CTNETLINK, MSG_GET = 1, 1
PROTOINFO = 4
TIME_WAIT = 7  # TCP_CONNTRACK_TIME_WAIT
# What it has refused, of the columns of /proc/net/stat/nf_conntrack: no port was free, or another packet of the same
# connection was sooner; no memory or no room; a connection that was forgotten to make room.
REFUSED = ("insert_failed", "drop", "early_drop")
READ_BYTES, ANSWER_SECONDS = 1 << 16, 5.0
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr; struct nfgenmsg follows
_ATTRIBUTE = struct.Struct("=HH")
_START = _HEADER.size + 4
# A tuple of TCP by its size: addresses, number of the protocol, ports. Others (ICMP, zones) have other sizes.
_TUPLES = {each.size: each for each in (struct.Struct(f"=12x{size}s4x{size}s8xB3x4x2s2x4x2s2x") for size in (4, 16))}
# After CTA_PROTOINFO and CTA_PROTOINFO_TCP, where the state is the first
_STATE = 3 * _ATTRIBUTE.size


class Key(NamedTuple):
    """The address that a port is of, and the endpoint that replies come from, as bytes on the wire."""

    source: bytes
    remote: bytes
    remote_port: bytes


class Sample(NamedTuple):
    """TCP connections among the first `read` entries.

    complete: bool, whether there are no more. ports: how many hold a port of each key; translated: how many of them
    have another source on the wire than their socket; closed: how many are in TIME_WAIT.
    """

    read: int
    complete: bool
    ports: Mapping[Key, int]
    translated: Mapping[Key, int]
    closed: Mapping[Key, int]


class Fill(NamedTuple):
    """How many connections it remembers, of how many at most, and how many it refused; None: the kernel hides it."""

    entries: int
    most: int
    refused: Mapping[str, int] | None


def fill(proc: Path = Path("/proc")) -> Fill | None:
    """Read it; None where no conntrack is."""
    folder = proc / "sys/net/netfilter"
    try:
        entries, most = (int((folder / f"nf_conntrack_{name}").read_text()) for name in ("count", "max"))
    except FileNotFoundError:
        return None
    with contextlib.suppress(FileNotFoundError):
        return Fill(entries, most, refused((proc / "thread-self/net/stat/nf_conntrack").read_text()))
    return Fill(entries, most, None)


def refused(text: str) -> dict[str, int]:
    """Sums over all CPUs: a line of hexadecimal numbers for each, below their names."""
    names, *rows = (line.split() for line in text.splitlines())
    return {name: sum(int(row[names.index(name)], 16) for row in rows) for name in REFUSED}


def sample(most: int) -> Sample:
    """Read so many entries, at most some hundred more. Raises OSError where the kernel gives none."""
    ports: Counter[Key] = Counter()
    translated: Counter[Key] = Counter()
    closed: Counter[Key] = Counter()
    read, complete = 0, False
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.settimeout(ANSWER_SECONDS)
        sock.send(_HEADER.pack(_START, SUBSYS_CTNETLINK << 8 | MSG_GET, NLM_F_REQUEST | NLM_F_DUMP, 0, 0) + bytes(4))
        while not complete and read < most:
            data, at = sock.recv(READ_BYTES), 0
            while at < len(data):
                size, kind, *_ = _HEADER.unpack_from(data, at)
                if kind in {NLMSG_DONE, NLMSG_ERROR}:
                    _raise(data, at)
                    complete = True
                    break
                read += 1
                if found := entry(data, at + _START, at + size):
                    ports[found.key] += 1
                    for counts, holds in ((translated, found.translated), (closed, found.closed)):
                        if holds:
                            counts[found.key] += 1
                at += size + 3 & ~3
    return Sample(read, complete, ports, translated, closed)


def _raise(data: bytes, at: int) -> None:
    """The number after either header is 0, or that of an error."""
    (number,) = struct.unpack_from("=i", data, at + _HEADER.size)
    if number:
        raise OSError(-number, "the kernel does not list what conntrack remembers")


class Entry(NamedTuple):
    """A TCP connection. translated: bool, whether its source is another on the wire; closed: bool, in TIME_WAIT."""

    key: Key
    translated: bool
    closed: bool


def entry(data: bytes, at: int, end: int) -> Entry | None:
    """Read one; None: it is not of TCP. The tuples of both directions come first."""
    size, _ = _ATTRIBUTE.unpack_from(data, at)
    if not (layout := _TUPLES.get(size)):
        return None
    source, _, protocol, port, _ = layout.unpack_from(data, at)
    if protocol != socket.IPPROTO_TCP or _ATTRIBUTE.unpack_from(data, at + size)[0] != size:
        return None
    remote, on_wire, _, remote_port, port_on_wire = layout.unpack_from(data, at + size)
    closed = _state(data, at + 2 * size, end) == TIME_WAIT
    return Entry(Key(on_wire, remote, remote_port), (source, port) != (on_wire, port_on_wire), closed)


def _state(data: bytes, at: int, end: int) -> int:
    """TCP's, of what follows the tuples."""
    while at < end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if kind & 0x3FFF == PROTOINFO:
            return data[at + _STATE]
        at += size + 3 & ~3
    return 0
