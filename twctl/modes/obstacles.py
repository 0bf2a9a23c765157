"""Why the guard may not see on a device what a local socket sees: something changes or takes packets in between."""

import socket
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from twctl.linux import libbpf, netlink
from twctl.linux.netlink import Message
from twctl.linux.netns import inside
from twctl.modes.guard import INGRESS, NAMES, PRIORITY, filters, links
from twctl.routes.messages import attributes_of

BPF_TCX_INGRESS = 46  # linux/bpf.h
# linux/netlink.h, netfilter/nfnetlink.h, netfilter/nf_tables.h, xfrm.h
NETLINK_XFRM, NETLINK_NETFILTER = 6, 12
NFT_MSG_GETCHAIN = 10 << 8 | 4
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_USE, NFTA_CHAIN_TYPE = 1, 3, 6, 7
XFRM_MSG_GETPOLICY = 0x15
POLICY_ID_BYTES = 64  # struct xfrm_userpolicy_id


def obstacles(namespace: str | None) -> Iterator[str]:
    """One line for each in this network namespace.

    :raises TwctlError: if the namespace cannot be entered.
    """
    with netlink.open_socket(namespace) as sock:
        for device in links(sock):
            if device.xdp:
                yield f"XDP on {device.name}: what it redirects or drops does not reach the guard"
            if inside(namespace, partial(libbpf.attached, device.number, BPF_TCX_INGRESS)):
                yield f"a TCX program on {device.name} runs before the guard"
            for each in filters(sock, device.number):
                if each.parent == INGRESS and each.priority <= PRIORITY and each.name not in NAMES.values():
                    yield f"another TC filter on {device.name} runs before the guard (pref {each.priority})"
    yield from _nat(namespace)
    if policies := _ask(namespace, NETLINK_XFRM, XFRM_MSG_GETPOLICY, bytes(POLICY_ID_BYTES)):
        yield f"{len(policies)} IPsec policies: the guard does not see inside ESP"


def _nat(namespace: str | None) -> Iterator[str]:
    """NAT of local addresses: the tuple on the wire is not the socket's."""
    for family in ("ip", "ip6"):
        names = inside(namespace, partial(_read, Path(f"/proc/thread-self/net/{family}_tables_names")))
        if "nat" in names.split():
            yield f"{family}tables has a nat table: tuples on the wire may not be those of the sockets"
    generic = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)  # struct nfgenmsg
    for raw in _ask(namespace, NETLINK_NETFILTER, NFT_MSG_GETCHAIN, generic):
        found = attributes_of(bytearray(raw), 20, len(raw))
        if found.get(NFTA_CHAIN_TYPE, b"").rstrip(b"\0") == b"nat" and any(found.get(NFTA_CHAIN_USE, b"")):
            where = " ".join(found[each].rstrip(b"\0").decode() for each in (NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME))
            yield f"nftables has NAT in {where}: tuples on the wire may not be those of the sockets"


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _ask(namespace: str | None, protocol: int, type_: int, body: bytes) -> list[bytes]:
    """All messages of a dump; none where the kernel has no such subsystem."""
    try:
        with netlink.open_socket(namespace, protocol=protocol) as sock:
            return netlink.dump(sock, type_, body, _copy)
    except OSError:
        return []


def _copy(buffer: bytearray, message: Message) -> bytes:
    return bytes(buffer[message.start : message.end])
