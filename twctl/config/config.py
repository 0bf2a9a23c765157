"""The configuration as one value, and what its keys demand of each other."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twctl.addresses import Network
from twctl.classes import Class
from twctl.config.keys import FOLLOW, KEYS, Listen, Mode, Probe
from twctl.config.settings import COMMAND_LINE, DEFAULT, Setting, plain, read_toml, refusal, settle
from twctl.linux.sysctl import NAMES as SYSCTLS
from twctl.linux.tcp import KERNEL_TIME_WAIT

DEFAULT_FILE = Path("/etc/twctl.toml")
_TOP = ("mode", "listen", "netns", "all_netns", "pins", "probe", "reconcile_interval", "force")


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
    """When memory counts as low, and how many ports are to stay free.

    psi_stall: ms that tasks stall in a second, 0: PSI is not used; tcp_memory: bool, whether TCP's own memory counts;
    port_headroom: float, share of the ports toward a destination that is to stay free, 0: off; floor: float, seconds
    that TIME_WAIT toward it lasts at least; orphans: int, sockets above which mode vestigial has FIN_WAIT2 become
    vestiges.
    """

    psi_stall: int
    tcp_memory: bool
    port_headroom: float
    floor: Mapping[Class, float]
    orphans: int


@dataclass(frozen=True)
class BlameSettings:
    """How many single destinations (for their ports) and parties of each kind (for their entries) have metrics."""

    destinations: int
    metrics: int


@dataclass(frozen=True)
class Config:
    """Every setting, checked.

    netns: names under /run/netns, empty: the namespace twctl runs in; all_netns: bool, that one and all that have a
    name; pins: Path, absolute; reconcile_interval: float, seconds, 0: never; force: bool, mode vestigial also where the
    guard may not see what sockets see; time_wait, fin_wait2: float, seconds; reuse_age: float, seconds, 0: off;
    classes: prefixes set by hand; tls: None: HTTP; port_search: int, connect()'s search for a port is measured in one
    of so many seconds, 0: in none.
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
    reuse_age: Mapping[Class, float]
    capacity: Capacity
    classes: Mapping[Network, Class]
    tls: Tls | None
    sysctl: Mapping[str, int]
    pressure: PressureSettings
    blame: BlameSettings
    port_search: int


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
    settings = settle(KEYS, [*layers, (COMMAND_LINE, options)])
    return Effective(_config(settings), settings)


def pins_of(path: Path | None, overrides: Mapping[str, object], *, default_file: Path = DEFAULT_FILE) -> Path:
    """The pins of a configuration that is refused, and may not even be TOML: arguments as of `load`. Never an error."""
    try:
        file = path or default_file
        text = file.read_text(errors="replace") if file.is_file() else ""
    except OSError:
        text = ""
    line = re.search(r"""^\s*["']?pins["']?\s*=\s*["']([^"']+)["']""", text, re.MULTILINE)
    return Path(str(overrides.get("pins") or (line[1] if line else KEYS["pins"].default)))


def from_published(published: Mapping[str, Sequence[Any]]) -> Effective:
    """The configuration of a running daemon, from what `Effective.published` gave; the source of each value says so.

    Raises ValueError and KeyError where a daemon of another version published other keys or values.
    """
    settings = {
        name: Setting(None if value is None else KEYS[name].parse(value), f"from the daemon ({source})")
        for name, (value, source) in published.items()
    }
    return Effective(_config(settings), settings)


def _config(settings: Mapping[str, Setting]) -> Config:
    for check in (_check_netns, _check_truncate, _check_vestigial, _check_within_time_wait, _check_tls):
        check(settings)
    value = {name: setting.value for name, setting in settings.items()}
    top = {name: value[name] for name in _TOP}
    return Config(
        **top,
        time_wait=_by_class(value, "time_wait"),
        fin_wait2=_by_class(value, "fin_wait2"),
        reuse_age=_by_class(value, "reuse_age"),
        capacity=Capacity(_by_class(value, "capacity.ipv4"), _by_class(value, "capacity.ipv6")),
        classes=_prefixes(settings),
        tls=Tls(value["tls.certfile"], value["tls.keyfile"], value["tls.client_ca"]) if value["tls.certfile"] else None,
        sysctl=_sysctl(value),
        pressure=_pressure(value),
        blame=BlameSettings(value["blame.destinations"], value["blame.metrics"]),
        port_search=value["connect.port_search"],
    )


def _by_class(value: Mapping[str, Any], table: str) -> dict[Class, Any]:
    return {class_: value[f"{table}.{class_.label}"] for class_ in Class}


def _sysctl(value: Mapping[str, Any]) -> dict[str, int]:
    """Those that are set, by their full names. What follows the classes' times follows those that are in force."""
    longest = KERNEL_TIME_WAIT if value["mode"] == Mode.OBSERVE else max(_by_class(value, "time_wait").values())
    given = {full: value[f"sysctl.{key}"] for key, full in SYSCTLS.items()}
    return {full: math.ceil(longest) if each == FOLLOW else each for full, each in given.items() if each is not None}


def _pressure(value: Mapping[str, Any]) -> PressureSettings:
    """A default floor above the class's own time means that time."""
    floors, times = _by_class(value, "pressure.floor"), _by_class(value, "time_wait")
    floor = {class_: min(floors[class_], times[class_]) for class_ in Class}
    stall, memory, headroom = (value[f"pressure.{name}"] for name in ("psi_stall", "tcp_memory", "port_headroom"))
    return PressureSettings(stall, memory, headroom, floor, value["pressure.orphans"])


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


def _check_within_time_wait(settings: Mapping[str, Setting]) -> None:
    for table, class_ in itertools.product(("pressure.floor", "reuse_age"), Class):
        name, time_wait = f"{table}.{class_.label}", settings[f"time_wait.{class_.label}"].value
        given = settings[name]
        if given.source != DEFAULT and given.value > time_wait:
            hint = f"allowed up to time_wait.{class_.label}, which is {time_wait:g}"
            raise refusal(given.source, name, given.value, hint)


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
