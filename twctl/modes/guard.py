"""The guard's place: TC filters on every device of a guarded network namespace, put there, kept there, taken away.

bpf/guard.c says what they do. The filters are told by their name; the class ID they carry tells the programs which
namespace they work in and whether the device has Ethernet headers.
"""

import contextlib
import errno
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from twctl.errors import TwctlError
from twctl.linux import libbpf, netlink, netns
from twctl.linux.netlink import Message, part_of
from twctl.linux.sysctl import FOLDER
from twctl.routes.messages import attributes_of, link_request

with part_of("pyroute2"):
    from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL
    from pyroute2.netlink.rtnl import (
        RTM_DELLINK,
        RTM_DELQDISC,
        RTM_DELTFILTER,
        RTM_GETLINK,
        RTM_GETQDISC,
        RTM_GETTFILTER,
        RTM_NEWLINK,
        RTM_NEWQDISC,
        RTM_NEWTFILTER,
        RTNLGRP_LINK,
        RTNLGRP_TC,
    )

# linux/if_link.h, rtnetlink.h, pkt_cls.h, pkt_sched.h
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_SLAVE_KIND, IFLA_XDP, IFLA_XDP_ATTACHED = 3, 18, 4, 43, 2
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_BPF_CLASSID, TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_ID = 3, 6, 7, 8, 11
TCA_BPF_FLAG_ACT_DIRECT = 1
TC_H_CLSACT = 0xFFFFFFF1
CLSACT_HANDLE = 0xFFFF0000
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3
ETH_P_ALL = 3
NESTED = 0x8000  # NLA_F_NESTED
TCMSG = struct.Struct("=BxHiIII")  # family, pad, interface, handle, parent, info (priority 16 | protocol 16)
# First of all filters, and a handle that others do not use: with both given, what is there is replaced, not doubled.
PRIORITY, HANDLE = 1, 0x7477
NAMES = {INGRESS: "twctl_ingress", EGRESS: "twctl_egress"}
PROGRAMS = {INGRESS: "guard_ingress", EGRESS: "guard_egress"}
# linux/if_arp.h: devices that carry TCP, with an Ethernet header and without one.
ETHERNET = frozenset((1, 772))  # ETHER, LOOPBACK
BARE = frozenset((65534, 512, 519, 768, 769, 776, 778, 823))  # NONE (tun, wireguard), PPP, RAWIP, tunnels, GRE
OTHERS = {32: "InfiniBand"}  # carry TCP, and the guard cannot read their headers
# The traffic of such a port passes its master afterwards, which has the guard.
MASTERS = frozenset(("bridge", "bond", "team", "openvswitch"))
EVENT_BYTES = 1 << 20


class Device(NamedTuple):
    """An interface: number, name, type (ARPHRD_*), what it is a port of (empty: nothing), whether XDP is attached."""

    number: int
    name: str
    type: int
    port_of: str
    xdp: bool


class Filter(NamedTuple):
    """A TC filter: where, and what; program: its number, 0 for other kinds than bpf."""

    parent: int
    priority: int
    handle: int
    kind: str
    name: str
    program: int


class Guard:
    """The guard in one network namespace. `reattached`: how often a filter had to be put back."""

    def __init__(self, namespace: str | None, index: int, table: Path) -> None:
        self.namespace = namespace
        self._index = index
        self._cookie = netns.cookie(namespace)
        self._qdiscs = Qdiscs(table.parent)
        with contextlib.ExitStack() as undo:
            self._requests = undo.enter_context(netlink.open_socket(namespace))
            self._events = undo.enter_context(
                netlink.open_socket(namespace, (RTNLGRP_LINK, RTNLGRP_TC), receive_bytes=EVENT_BYTES)
            )
            self._events.setblocking(False)  # noqa: FBT003 - socket's own signature
            self._programs = {parent: libbpf.obj_get(table / "programs" / name) for parent, name in PROGRAMS.items()}
            for fd in self._programs.values():
                undo.callback(os.close, fd)
            self._ids = {parent: libbpf.program_id(fd) for parent, fd in self._programs.items()}
            self._undo = undo.pop_all()
        self.devices: dict[int, str] = {}
        self.reattached = 0

    def close(self) -> None:
        """Close the sockets; the filters stay."""
        self._undo.close()

    def fileno(self) -> int:
        """Readable when links or filters have changed."""
        return self._events.fileno()

    def attach(self) -> None:
        """Put the guard on every device; harmless where it is already.

        :raises TwctlError: naming the device that cannot be guarded.
        """
        for device in self._links():
            self._ensure(device)

    def drain(self) -> None:
        """Follow what has changed: new devices get the guard, a filter that was taken away comes back.

        :raises TwctlError: if a device can no longer be guarded.
        """
        touched: set[int] = set()
        buffer = bytearray(netlink.BUFFER_BYTES)
        try:
            while size := self._events.recv_into(buffer):
                for message in netlink.messages(buffer, size):
                    touched |= _touches(buffer, message)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            touched |= self.devices.keys() | {device.number for device in self._links()}
        if touched:
            links = {device.number: device for device in self._links()}
            for index in touched:
                if index in links:
                    self._ensure(links[index])
                else:
                    self.devices.pop(index, None)

    def remove(self) -> None:
        """Take the filters away, and the qdiscs that were made for them, unless somebody else uses them now."""
        for device in self._links():
            with contextlib.suppress(OSError):
                self._remove_from(device.number)
        self._qdiscs.forget(self._cookie)
        self.devices.clear()

    def _remove_from(self, index: int) -> None:
        left = []
        for each in filters(self._requests, index):
            if each.name in NAMES.values():
                info = each.priority << 16 | socket.htons(ETH_P_ALL)
                self._change(RTM_DELTFILTER, 0, index, each.handle, each.parent, info, _text(TCA_KIND, "bpf"))
            else:
                left.append(each)
        if self._qdiscs.made(self._cookie, index) and not left:
            self._change(RTM_DELQDISC, 0, index, CLSACT_HANDLE, TC_H_CLSACT, 0, _text(TCA_KIND, "clsact"))

    def _links(self) -> list[Device]:
        return links(self._requests)

    def _ensure(self, device: Device) -> None:
        """Put both filters on a device, if they are not there."""
        if device.type in OTHERS:
            hint = "take the device out of this namespace, or use mode truncate"
            raise TwctlError(f"{device.name} is {OTHERS[device.type]}, which the guard cannot read", hint)
        if device.type not in ETHERNET | BARE or device.port_of in MASTERS:
            return
        try:
            present = filters(self._requests, device.number)
            missing = NAMES.keys() - {each.parent for each in present if self._is_ours(each)}
            if missing:
                self._attach(device, missing)
        except OSError as error:
            if error.errno in {errno.ENODEV, errno.ENXIO}:  # gone meanwhile
                return
            hint = f"'tc filter show dev {device.name} ingress' shows what else is there"
            raise TwctlError(f"the guard cannot be attached to {device.name}: {error.strerror}", hint) from error
        self.reattached += len(missing) if device.number in self.devices else 0
        self.devices[device.number] = device.name

    def _is_ours(self, found: Filter) -> bool:
        """The very program, and not that of an earlier version."""
        return found.name == NAMES[found.parent] and found.program == self._ids[found.parent]

    def _attach(self, device: Device, missing: set[int]) -> None:
        self._make_qdisc(device.number)
        bare = device.type not in ETHERNET
        classid = 1 << 16 | (self._index + 1) << 1 | (not bare)
        for parent in missing:
            options = (
                _number(TCA_BPF_CLASSID, classid)
                + _number(TCA_BPF_FD, self._programs[parent])
                + _text(TCA_BPF_NAME, NAMES[parent])
                + _number(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT)
            )
            body = _text(TCA_KIND, "bpf") + _attribute(TCA_OPTIONS | NESTED, options)
            info = PRIORITY << 16 | socket.htons(ETH_P_ALL)
            self._change(RTM_NEWTFILTER, NLM_F_CREATE, device.number, HANDLE, parent, info, body)

    def _make_qdisc(self, index: int) -> None:
        """After a crash before it is noted it stays, empty: it does nothing."""
        try:
            flags = NLM_F_CREATE | NLM_F_EXCL
            self._change(RTM_NEWQDISC, flags, index, CLSACT_HANDLE, TC_H_CLSACT, 0, _text(TCA_KIND, "clsact"))
        except OSError as error:
            if error.errno != errno.EEXIST or self._clsact(index) != "clsact":
                raise
        else:
            self._qdiscs.note(self._cookie, index)

    def _clsact(self, index: int) -> str:
        """Kind of the qdisc that stands at clsact's handle: `ingress` would take both filters, and have no egress."""
        found = netlink.dump(self._requests, RTM_GETQDISC, TCMSG.pack(0, 0, 0, 0, 0, 0), _decode_qdisc)
        return next((kind for where, handle, kind in found if (where, handle) == (index, CLSACT_HANDLE)), "")

    def _change(  # noqa: PLR0913, PLR0917 - the fields of struct tcmsg
        self, type_: int, flags: int, index: int, handle: int, parent: int, info: int, body: bytes
    ) -> None:
        netlink.change(self._requests, type_, flags, TCMSG.pack(0, 0, index, handle, parent, info) + body)


class Qdiscs:
    """Which clsact qdiscs the guard made (cookie of the namespace, interface), in a file that survives a crash."""

    def __init__(self, pins: Path) -> None:
        self._path = FOLDER / f"{pins.name}.qdiscs.json"

    def _load(self) -> list[list[int]]:
        return list(json.loads(self._path.read_text())) if self._path.exists() else []

    def made(self, cookie: int, index: int) -> bool:
        """Whether the guard made the qdisc of this interface."""
        return [cookie, index] in self._load()

    def note(self, cookie: int, index: int) -> None:
        """Remember one."""
        if not self.made(cookie, index):
            self._save([*self._load(), [cookie, index]])

    def forget(self, cookie: int) -> None:
        """Forget those of a namespace."""
        self._save([each for each in self._load() if each[0] != cookie])

    def _save(self, made: Sequence[Sequence[int]]) -> None:
        if not made:
            self._path.unlink(missing_ok=True)
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(made))
        part.replace(self._path)


def remove(enrolments: Mapping[int, tuple[int, str]], table: Path) -> Iterator[str]:
    """Take the guard out of the enrolled namespaces (index to cookie and name); yields what failed, a line each."""
    for index, (cookie, name) in enrolments.items():
        try:
            guard = Guard(name or None, index, table) if netns.cookie(name or None) == cookie else None
        except (TwctlError, OSError):
            guard = None
        if guard is None:  # with the namespace its filters went
            Qdiscs(table.parent).forget(cookie)
            continue
        try:
            guard.remove()
        except OSError as error:
            yield f"the guard is left in network namespace {name or '(own)'}: {error.strerror}"
        finally:
            guard.close()


def links(sock: socket.socket) -> list[Device]:
    """All interfaces of the socket's namespace."""
    return netlink.dump(sock, RTM_GETLINK, link_request(), _decode_link)


def filters(sock: socket.socket, index: int) -> list[Filter]:
    """All filters on an interface's clsact qdisc; none where there is no such qdisc."""
    found: list[Filter] = []
    for parent in (INGRESS, EGRESS):
        with contextlib.suppress(FileNotFoundError):
            body = TCMSG.pack(0, 0, index, 0, parent, 0)
            found += [each for each in netlink.dump(sock, RTM_GETTFILTER, body, _decode_filter) if each.handle]
    return found


def _touches(buffer: bytearray, message: Message) -> set[int]:
    """Interfaces about which a notification says that the guard may have to be put there."""
    if message.type in {RTM_NEWLINK, RTM_DELLINK, RTM_DELTFILTER, RTM_DELQDISC}:
        return {struct.unpack_from("=i", buffer, message.start + 20)[0]}  # the same place in ifinfomsg and tcmsg
    return set()


def _decode_link(buffer: bytearray, message: Message) -> Device:
    type_, index = struct.unpack_from("=xxHi", buffer, message.start + 16)
    found = attributes_of(buffer, message.start + 32, message.end)
    info, xdp = (_nested(found.get(each, b"")) for each in (IFLA_LINKINFO, IFLA_XDP))
    attached = xdp.get(IFLA_XDP_ATTACHED, b"\0")[0] != 0
    return Device(index, _string(found[IFLA_IFNAME]), type_, _string(info.get(IFLA_INFO_SLAVE_KIND, b"")), attached)


def _decode_filter(buffer: bytearray, message: Message) -> Filter:
    *_, handle, parent, info = TCMSG.unpack_from(buffer, message.start + 16)
    found = attributes_of(buffer, message.start + 36, message.end)
    options = _nested(found.get(TCA_OPTIONS, b""))
    kind = _string(found.get(TCA_KIND, b""))
    if kind != "bpf":
        return Filter(parent, info >> 16, handle, kind, "", 0)
    program = int.from_bytes(options.get(TCA_BPF_ID, b""), sys.byteorder)
    return Filter(parent, info >> 16, handle, kind, _string(options.get(TCA_BPF_NAME, b"")), program)


def _decode_qdisc(buffer: bytearray, message: Message) -> tuple[int, int, str]:
    """Interface, handle and kind."""
    _, _, index, handle, *_ = TCMSG.unpack_from(buffer, message.start + 16)
    return index, handle, _string(attributes_of(buffer, message.start + 36, message.end).get(TCA_KIND, b""))


def _nested(raw: bytes) -> dict[int, bytes]:
    return {type_ & ~NESTED: value for type_, value in attributes_of(bytearray(raw), 0, len(raw)).items()}


def _string(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _attribute(type_: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), type_) + value + bytes(-len(value) % 4)


def _text(type_: int, value: str) -> bytes:
    return _attribute(type_, value.encode() + b"\0")


def _number(type_: int, value: int) -> bytes:
    return _attribute(type_, struct.pack("=I", value))
