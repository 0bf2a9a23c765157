"""Netfilter's rules in the calling thread's network namespace, as far as they concern the guard.

What says that a rule hands packets to a transparent proxy is searched for in the rules as the kernel dumps them: a node
may have tens of thousands, of which pyroute2 decodes a thousand in a second.
"""

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR

from twctl.linux.libc import checked, libc
from twctl.linux.netns import inside

# linux/netfilter/nfnetlink.h, nf_tables.h
NFNLGRP_NFTABLES, SUBSYS_NFTABLES, MSG_GETRULE = 7, 10, 7
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
# Attribute 1 of an expression, and of what iptables-nft puts into one: the name.
_TPROXY = tuple(struct.pack("=HH", 11, 1) + name + b"\0" for name in (b"tproxy", b"TPROXY"))
# linux/netfilter_ipv4/ip_tables.h; those of ip6tables are the same.
SO_GET_INFO, SO_GET_ENTRIES = 64, 65
_INFO = struct.Struct("=32s11I I I")  # struct ipt_getinfo: name, hooks, number and bytes of the entries
_FAMILIES = {"ip": (socket.AF_INET, socket.IPPROTO_IP), "ip6": (socket.AF_INET6, socket.IPPROTO_IPV6)}


def has_tproxy_rule() -> bool:
    """Whether a rule of nftables or iptables gives packets to a transparent proxy."""
    in_rules = any(name in message for message in _rules() for name in _TPROXY)
    return in_rules or any(_TPROXY_TARGET in _legacy_entries(family, b"mangle") for family in _FAMILIES)


_TPROXY_TARGET = b"TPROXY\0"  # in struct xt_entry_target


def tables(family: str) -> list[str]:
    """Of the old iptables (`ip`, `ip6`)."""
    names = Path(f"/proc/thread-self/net/{family}_tables_names")
    return names.read_text().split() if names.exists() else []


def _rules() -> Iterator[bytes]:
    """What the kernel dumps, a read after the other."""
    request = _HEADER.pack(20, SUBSYS_NFTABLES << 8 | MSG_GETRULE, NLM_F_REQUEST | NLM_F_DUMP, 0, 0) + bytes(4)
    with contextlib.suppress(OSError), _socket() as sock:
        sock.send(request)
        ended = False
        while not ended:
            data = sock.recv(1 << 16)
            yield data
            ended = _ends(data)


def _ends(data: bytes) -> bool:
    """Whether the last message is in there."""
    at = 0
    while at < len(data):
        size, kind, *_ = _HEADER.unpack_from(data, at)
        if kind in {NLMSG_DONE, NLMSG_ERROR}:
            return True
        at += size + 3 & ~3
    return False


def _heard(sock: socket.socket) -> bool | None:
    """Whether there is a notification, or there were more than fit; None: no more."""
    try:
        return bool(sock.recv(1, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        return True


def _socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)


def _legacy_entries(family: str, table: bytes) -> bytes:
    """The rules of a table of the old iptables; empty where there is none."""
    if table.decode() not in tables(family):  # asking would make one
        return b""
    domain, level = _FAMILIES[family]
    with contextlib.suppress(OSError), socket.socket(domain, socket.SOCK_DGRAM) as sock:
        name = table.ljust(32, b"\0")
        *_, size = _INFO.unpack(_asked(sock, level, SO_GET_INFO, name.ljust(_INFO.size, b"\0")))
        # struct ipt_get_entries: name, size, and the entries from a multiple of 8 on
        return _asked(sock, level, SO_GET_ENTRIES, struct.pack("=32sI4x", name, size) + bytes(size))
    return b""


def _asked(sock: socket.socket, level: int, option: int, question: bytes) -> bytes:
    """What getsockopt() makes of a buffer that says what is asked for. Raises OSError."""
    buffer, size = ctypes.create_string_buffer(question, len(question)), ctypes.c_uint32(len(question))
    checked(libc.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(size)))
    return buffer.raw


class RuleNotices:
    """Tells that rules of nftables have changed in a network namespace. Of the old iptables nothing tells."""

    def __init__(self, netns: str | None) -> None:
        self._sock: socket.socket | None = None
        with contextlib.suppress(OSError):  # a kernel without nftables
            self._sock = inside(netns, _socket)
            self._sock.bind((0, 1 << NFNLGRP_NFTABLES - 1))

    def take(self) -> bool:
        """Whether some have, since this was asked for the last time."""
        changed = False
        while self._sock and (told := _heard(self._sock)) is not None:
            changed |= told
        return changed

    def close(self) -> None:
        """Hear no more."""
        if self._sock:
            self._sock.close()
