"""The configuration: what each key means, what it may be, and what keys demand of each other."""

import enum
import ipaddress
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twctl.addresses import Network, host_port
from twctl.classes import Class
from twctl.config.settings import (
    DEFAULT,
    Key,
    Setting,
    absolute_path,
    choice,
    list_of,
    number,
    plain,
    read_toml,
    refusal,
    settle,
    text,
)
from twctl.linux.sysctl import NAMES as SYSCTLS
from twctl.linux.tcp import KERNEL_TIME_WAIT

DEFAULT_FILE = Path("/etc/twctl.toml")


class Mode(enum.StrEnum):
    """What twctl does with sessions."""

    OBSERVE = "observe"
    TRUNCATE = "truncate"
    VESTIGIAL = "vestigial"


class Probe(enum.StrEnum):
    """What sees sessions being born."""

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


@dataclass(frozen=True)
class Capacity:
    """Sessions (int) that the table holds of each class, by family."""

    ipv4: Mapping[Class, int]
    ipv6: Mapping[Class, int]


@dataclass(frozen=True)
class Tls:
    """Absolute paths of PEM files. client_ca: Path, client certificates are required; None: they are not."""

    certfile: Path
    keyfile: Path
    client_ca: Path | None


@dataclass(frozen=True)
class PressureSettings:
    """When something counts as short, and what is done about ports.

    psi_stall: ms of stall in a second, 0: not asked; tcp_memory: bool, ask TCP as well; port_headroom: float, share of
    the ports toward a destination that is to be free, 0: not asked; floor: float, seconds that its sessions keep.
    """

    psi_stall: int
    tcp_memory: bool
    port_headroom: float
    floor: Mapping[Class, float]


@dataclass(frozen=True)
class BlameSettings:
    """Who causes it, in metrics. destinations: how many have their ports there; metrics: parties of each kind."""

    destinations: int
    metrics: int


@dataclass(frozen=True)
class Config:
    """Every setting, checked.

    netns: names under /run/netns, empty: the namespace twctl runs in; all_netns: bool, that one and all that have a
    name; pins: Path, absolute; reconcile_interval: float, seconds, 0: never; force: bool, mode vestigial also where the
    guard may not see what sockets see; time_wait, fin_wait2: float, seconds; classes: prefixes set by hand; tls: None:
    HTTP.
    """

    mode: Mode
    listen: Listen
    netns: tuple[str, ...]
    all_netns: bool
    pins: Path
    probe: Probe
    reconcile_interval: float
    force: bool
    time_wait: Mapping[Class, float]
    fin_wait2: Mapping[Class, float]
    capacity: Capacity
    classes: Mapping[Network, Class]
    tls: Tls | None
    sysctl: Mapping[str, int]
    pressure: PressureSettings
    blame: BlameSettings


@dataclass(frozen=True)
class Effective:
    """The configuration in force and, for each dotted key, where its value is from."""

    config: Config
    settings: Mapping[str, Setting]

    def rows(self) -> Iterator[tuple[str, object, str]]:
        """Every dotted key, its value (None: unset, or int, float, str, list of str) and its source.

        source: "default", the path of the file, or "command line".
        """
        for name, setting in self.settings.items():
            yield name, plain(setting.value), setting.source

    def published(self) -> dict[str, list[object]]:
        """Value and source by dotted key, as plain values: what the running daemon tells the commands."""
        return {name: [value, source] for name, value, source in self.rows()}


def load(path: Path | None, overrides: Mapping[str, object], *, default_file: Path = DEFAULT_FILE) -> Effective:
    """The configuration from a file and the command line.

    path: None: default_file, if it exists. overrides: options by key; None and empty sequences are not given.
    Raises TwctlError where the file cannot be read, a key is unknown or a value is refused.
    """
    file = path or (default_file if default_file.exists() else None)
    given = {name: str(value) if isinstance(value, Path) else value for name, value in overrides.items()}
    options = {name: value for name, value in given.items() if value not in (None, [], ())}
    layers = [(str(file), read_toml(file))] if file else []
    settings = settle(KEYS, [*layers, ("command line", options)])
    return Effective(_config(settings), settings)


def _config(settings: Mapping[str, Setting]) -> Config:
    for check in (_check_netns, _check_truncate, _check_vestigial, _check_floor, _check_tls):
        check(settings)
    value = {name: setting.value for name, setting in settings.items()}
    top = {name: value[name] for name in _TOP}
    return Config(
        **top,
        time_wait=_by_class(value, "time_wait"),
        fin_wait2=_by_class(value, "fin_wait2"),
        capacity=Capacity(_by_class(value, "capacity.ipv4"), _by_class(value, "capacity.ipv6")),
        classes=_prefixes(settings),
        tls=Tls(value["tls.certfile"], value["tls.keyfile"], value["tls.client_ca"]) if value["tls.certfile"] else None,
        sysctl={full: value[f"sysctl.{key}"] for key, full in SYSCTLS.items() if value[f"sysctl.{key}"] is not None},
        pressure=_pressure(value),
        blame=BlameSettings(value["blame.destinations"], value["blame.metrics"]),
    )


def _by_class(value: Mapping[str, Any], table: str) -> dict[Class, Any]:
    return {class_: value[f"{table}.{class_.label}"] for class_ in Class}


def _pressure(value: Mapping[str, Any]) -> PressureSettings:
    """A default floor above the class's own time means that time."""
    floors, times = _by_class(value, "pressure.floor"), _by_class(value, "time_wait")
    floor = {class_: min(floors[class_], times[class_]) for class_ in Class}
    stall, memory, headroom = (value[f"pressure.{name}"] for name in ("psi_stall", "tcp_memory", "port_headroom"))
    return PressureSettings(stall, memory, headroom, floor)


def _check_netns(settings: Mapping[str, Setting]) -> None:
    every = settings["all_netns"]
    if every.value and settings["netns"].value:
        raise refusal(every.source, "all_netns", every.value, "leave netns out, or all_netns")


def _check_truncate(settings: Mapping[str, Setting]) -> None:
    for class_ in Class:
        name = f"time_wait.{class_.label}"
        seconds = settings[name]
        if settings["mode"].value == Mode.TRUNCATE and seconds.value > KERNEL_TIME_WAIT:
            hint = 'in mode truncate the kernel ends TIME_WAIT at 60 s: allowed up to 60, or set mode = "vestigial"'
            raise refusal(seconds.source, name, seconds.value, hint)


def _check_vestigial(settings: Mapping[str, Setting]) -> None:
    buckets = settings["sysctl.tcp_max_tw_buckets"]
    if settings["mode"].value == Mode.VESTIGIAL and buckets.value is not None:
        hint = "mode vestigial sets it to 0 and puts it back: leave it out"
        raise refusal(buckets.source, "sysctl.tcp_max_tw_buckets", buckets.value, hint)


def _check_floor(settings: Mapping[str, Setting]) -> None:
    for class_ in Class:
        name, time_wait = f"pressure.floor.{class_.label}", settings[f"time_wait.{class_.label}"].value
        floor = settings[name]
        if floor.source != DEFAULT and floor.value > time_wait:
            hint = f"allowed up to time_wait.{class_.label}, which is {time_wait:g}"
            raise refusal(floor.source, name, floor.value, hint)


def _check_tls(settings: Mapping[str, Setting]) -> None:
    for name, needed in (("keyfile", "certfile"), ("certfile", "keyfile"), ("client_ca", "certfile")):
        given = settings[f"tls.{name}"]
        if given.value and not settings[f"tls.{needed}"].value:
            raise refusal(given.source, f"tls.{name}", given.value, f"set tls.{needed} too, or leave tls.{name} out")


def _prefixes(settings: Mapping[str, Setting]) -> dict[Network, Class]:
    classes: dict[Network, Class] = {}
    for class_ in Class:
        name = f"classes.{class_.label}"
        setting = settings[name]
        for prefix in setting.value:
            if (other := classes.setdefault(prefix, class_)) != class_:
                hint = f"{prefix} is in classes.{other.label} too: allowed in one class only"
                raise refusal(setting.source, name, plain(setting.value), hint)
    return classes


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


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004 - refusals are ValueErrors
    return value


def _listen(value: object) -> Listen:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text(value))
    if not match or int(match[3]) not in _PORTS:
        raise ValueError
    if match[1]:
        ipaddress.IPv6Address(match[1])
    elif re.fullmatch(r"[0-9.]+", match[2]):
        ipaddress.IPv4Address(match[2])
    return Listen(match[1] or match[2], int(match[3]))


def _namespace(value: object) -> str:
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


_TOP = ("mode", "listen", "netns", "all_netns", "pins", "probe", "reconcile_interval", "force")
_PORTS = range(65536)
_CAPACITIES = range(256, 4_194_304 + 1)  # the index word holds a 24-bit slot
_PATH = Key(None, absolute_path, "an absolute path")
_CAPACITY = Key(None, _sessions, "a whole number of sessions from 256 to 4194304", shared=True)
_TIME_WAIT = Key(None, number((sys.float_info.min, 1000)), "seconds above 0, up to 1000")
_PREFIXES = Key(None, list_of(_prefix), "a list of prefixes such as 10.0.0.0/8 or fd00::/8")
# Shorter than 0.1 s would read routes all the time; longer than a day means never.
_INTERVAL = Key(15.0, number((0, 0), (0.1, 86400)), "0 (never) or seconds from 0.1 to 86400")

KEYS: dict[str, Key] = {
    "mode": Key("observe", choice(Mode), ", ".join(Mode)),
    "listen": Key("127.0.0.1:9815", _listen, "HOST:PORT or [IPV6]:PORT, with port 0 to 65535"),
    "netns": Key([], list_of(_namespace), "a list of names under /run/netns"),
    "all_netns": Key(default=False, parse=_boolean, allowed="true, false"),
    "pins": replace(_PATH, default="/sys/fs/bpf/twctl"),
    "probe": Key("auto", choice(Probe), ", ".join(Probe)),
    "reconcile_interval": _INTERVAL,
    "force": Key(default=False, parse=_boolean, allowed="true, false"),
    **_per_class("time_wait", _TIME_WAIT, 2.0, 10.0, 60.0),
    **_per_class("fin_wait2", _TIME_WAIT, 60.0, 60.0, 60.0),
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
    "sysctl.nf_conntrack_tcp_timeout_time_wait": Key(None, _whole(1, 86_400), "whole seconds from 1 to 86400"),
    "pressure.psi_stall": Key(150, _whole(0, 999), "0 (off) or milliseconds of stall a second, up to 999"),
    "pressure.tcp_memory": Key(default=True, parse=_boolean, allowed="true, false"),
    "pressure.port_headroom": Key(0.0, number((0, 0), (0.01, 0.9)), "0 (off) or a share of the ports, 0.01 to 0.9"),
    **_per_class("pressure.floor", _TIME_WAIT, 1.0, 2.0, 15.0),
    "blame.destinations": Key(5, _whole(0, 50), "a whole number from 0 (none) to 50"),
    "blame.metrics": Key(0, _whole(0, 100), "0 (off) or how many parties of each kind, up to 100"),
}
