"""Every key of the configuration: its default, what it may be, and how its value is read."""

import enum
import ipaddress
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from twctl.addresses import Network, host_port
from twctl.classes import Class
from twctl.config.settings import Key, absolute_path, choice, list_of, number, text


class Mode(enum.StrEnum):
    """What twctl does with sessions."""

    OBSERVE = "observe"
    TRUNCATE = "truncate"
    VESTIGIAL = "vestigial"


class Probe(enum.StrEnum):
    """How entries into TIME_WAIT are seen."""

    AUTO = "auto"
    FENTRY = "fentry"
    TRACEPOINT = "tracepoint"


@dataclass(frozen=True)
class Listen:
    """Where metrics are served. host: str, a name or address without brackets; port: int, 0: any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return host_port(self.host, self.port)


def _sessions(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value not in _CAPACITIES:
        raise ValueError
    return value


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return value

    return parse


def _conntrack_seconds(value: object) -> int | str:
    return FOLLOW if value == FOLLOW else _whole(1, 86_400)(value)


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004 - refusals are ValueErrors
    return value


def _listen(value: object) -> Listen:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text(value))
    if not match or int(match[3]) not in _PORTS:
        raise ValueError
    if match[1]:  # of either family: who writes it for a whole cluster does not know which
        ipaddress.ip_address(match[1])
    elif re.fullmatch(r"[0-9.]+", match[2]):
        ipaddress.IPv4Address(match[2])
    return Listen(match[1] or match[2], int(match[3]))


def namespace_name(value: object) -> str:
    """A name under /run/netns. Raises ValueError."""
    name = text(value)
    if name in {"", ".", ".."} or "/" in name:
        raise ValueError
    return name


def _prefix(value: object) -> Network:
    written = text(value)
    if "/" not in written or "%" in written:
        raise ValueError
    prefix = ipaddress.ip_network(written, strict=False)
    if ipaddress.ip_interface(written).ip != prefix.network_address:
        reason = f"{written} has host bits set, write {prefix}"
        raise ValueError(reason)
    if isinstance(prefix, ipaddress.IPv6Network) and prefix.subnet_of(ipaddress.IPv6Network("::ffff:0:0/96")):
        reason = f"{written} is IPv4 on the wire, write the IPv4 prefix"
        raise ValueError(reason)
    return prefix


def _per_class(table: str, key: Key, *defaults: object) -> dict[str, Key]:
    return {f"{table}.{c.label}": replace(key, default=default) for c, default in zip(Class, defaults, strict=True)}


_PORTS = range(65536)
_CAPACITIES = range(256, 4_194_304 + 1)  # the index word holds a 24-bit slot
_PATH = Key(None, absolute_path, "an absolute path")
_CAPACITY = Key(None, _sessions, "a whole number of sessions from 256 to 4194304", shared=True)
LONGEST_LIFE = 1000  # s
FOLLOW = "time_wait"  # a time that is to be that of the classes
_TIME_WAIT = Key(None, number((sys.float_info.min, LONGEST_LIFE)), f"seconds above 0, up to {LONGEST_LIFE}")
# A connect() whose SYN is held so long is not given up yet: with the kernel's defaults it is after 127 s.
_REUSE_AGE = Key(None, number((0, 0), (0.1, 60)), "0 (off) or seconds from 0.1 to 60")
_CONNTRACK = Key(None, _conntrack_seconds, f'whole seconds from 1 to 86400, or "{FOLLOW}": the longest time of a class')
_PREFIXES = Key(None, list_of(_prefix), "a list of prefixes such as 10.0.0.0/8 or fd00::/8")
# Shorter than 0.1 s would read routes all the time; longer than a day means never.
_INTERVAL = Key(15.0, number((0, 0), (0.1, 86400)), "0 (never) or seconds from 0.1 to 86400")

KEYS: dict[str, Key] = {
    "mode": Key("observe", choice(Mode), ", ".join(Mode)),
    "listen": Key("127.0.0.1:9815", _listen, "HOST:PORT or [IPV6]:PORT, with port 0 to 65535"),
    "netns": Key([], list_of(namespace_name), "a list of names under /run/netns"),
    "all_netns": Key(default=False, parse=_boolean, allowed="true, false"),
    "pins": replace(_PATH, default="/sys/fs/bpf/twctl"),
    "probe": Key("auto", choice(Probe), ", ".join(Probe)),
    "reconcile_interval": _INTERVAL,
    "force": Key(default=False, parse=_boolean, allowed="true, false"),
    **_per_class("time_wait", _TIME_WAIT, 2.0, 10.0, 60.0),
    **_per_class("fin_wait2", _TIME_WAIT, 60.0, 60.0, 60.0),
    **_per_class("reuse_age", _REUSE_AGE, 0.0, 0.0, 0.0),
    **_per_class("capacity.ipv4", _CAPACITY, 65536, 65536, 65536),
    **_per_class("capacity.ipv6", _CAPACITY, 65536, 65536, 65536),
    **_per_class("classes", _PREFIXES, [], [], []),
    "tls.certfile": _PATH,
    "tls.keyfile": _PATH,
    "tls.client_ca": _PATH,
    "sysctl.tcp_fin_timeout": Key(None, _whole(1, 3600), "whole seconds from 1 to 3600"),
    "sysctl.tcp_tw_reuse": Key(None, _whole(0, 2), "0, 1, 2"),
    "sysctl.tcp_tw_reuse_delay": Key(None, _whole(1, 60_000), "whole milliseconds from 1 to 60000"),
    "sysctl.tcp_max_tw_buckets": Key(None, _whole(0, 2**31 - 1), "a whole number from 0 to 2147483647"),
    "sysctl.nf_conntrack_tcp_timeout_time_wait": _CONNTRACK,
    "pressure.psi_stall": Key(150, _whole(0, 999), "0 (off) or milliseconds of stall a second, up to 999"),
    "pressure.tcp_memory": Key(default=True, parse=_boolean, allowed="true, false"),
    "pressure.port_headroom": Key(0.0, number((0, 0), (0.01, 0.9)), "0 (off) or a share of the ports, 0.01 to 0.9"),
    "pressure.orphans": Key(32768, _whole(0, 2**31 - 1), "a whole number of sockets, 0 to 2147483647"),
    **_per_class("pressure.floor", _TIME_WAIT, 1.0, 2.0, 15.0),
    "connect.port_search": Key(10, _whole(0, 3600), "0 (off), or whole seconds from 1 (all the time) to 3600"),
    "blame.destinations": Key(5, _whole(0, 50), "a whole number from 0 (none) to 50"),
    "blame.metrics": Key(0, _whole(0, 100), "0 (off) or how many parties of each kind, up to 100"),
}
