"""What `twctl status` tells: counts by class, table against kernel, and what the other modes would have freed."""

import dataclasses
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.commands.in_force import InForce
from twctl.errors import TwctlError
from twctl.linux.procfs import Sockstat, ephemeral_ports, socket_bytes
from twctl.linux.sysctl import journal_of
from twctl.modes.dry_run import freed
from twctl.table.counters import CLOSES, DROPPED, Reason
from twctl.table.enrolments import reachable
from twctl.table.layout import RECORD_BYTES
from twctl.table.maps import Table
from twctl.table.sums import Sums
from twctl.table.tallies import TALLIES_BYTES


def status(table: Table, found: InForce) -> dict[str, Any]:
    """Gather everything that `twctl status` prints, as plain values; times in seconds, memory in bytes.

    What only the kernel knows of namespaces that cannot be entered is None, and unknown says why.
    """
    sums, unknown = Sums.read(table), _unknown(table)
    time_wait = found.config.time_wait
    would_free = freed(table.vestiges(), time_wait, ephemeral_ports(), socket_bytes())
    return {
        "mode": table.mode,
        "probe": table.probe,
        "daemon": found.daemon,
        "pins": str(found.config.pins),
        "time_wait": {class_.label: seconds for class_, seconds in time_wait.items()},
        "configuration": found.source,
        "seconds": (time.monotonic_ns() - table.loaded_ns) / 1e9,
        "classes": [_class_row(table, sums, class_, family) for class_ in Class for family in FAMILIES],
        "ended": {
            class_.label: {reason.name.lower(): sums.ended(class_, reason) for reason in Reason} for class_ in Class
        },
        "closed_without_time_wait": dict(zip(CLOSES, sums.counters.values["closed"], strict=True)),
        "dropped": dict(zip(DROPPED, sums.counters.values["dropped"], strict=True)) | {"nested": table.nested()},
        "sessions": would_free["vestigial"].sessions,
        "kernel_sockets": None if unknown else _kernel_sockets(table),
        "unknown": unknown,
        "guard": table.actions() if table.guard else None,
        "sysctls": None if unknown else [*map(dataclasses.asdict, journal_of(found.config.pins).changed())],
        "table_bytes": sum(table.layout.bytes(family) for family in FAMILIES),
        "blame_bytes": TALLIES_BYTES,
        "stock_bytes": would_free["vestigial"].bytes + _record_bytes(sums),
        "would_free": {
            mode: dataclasses.asdict(row) | ({"ports": None} if unknown else {}) for mode, row in would_free.items()
        },
    }


def _record_bytes(sums: Sums) -> int:
    return sum(sums.sessions(class_, family) * RECORD_BYTES[family] for class_ in Class for family in FAMILIES)


def _class_row(table: Table, sums: Sums, class_: Class, family: str) -> dict[str, Any]:
    return {
        "class": class_.label,
        "family": family,
        "sessions": sums.sessions(class_, family),
        "entered": sums.counters.get("entered", class_, FAMILIES.index(family)),
        "adopted": sums.counters.get("adopted", class_, FAMILIES.index(family)),
        "capacity": table.layout.capacity[family][class_],
    }


def _unknown(table: Table) -> str | None:
    """Why not all can be told that the kernel knows; None: it can."""
    try:
        lacking = table.enrolments().keys() - reachable(table).keys()
    except TwctlError as error:
        return str(error)
    names = ", ".join(name for index, (_, name) in table.enrolments().items() if index in lacking)
    return f"{names} is no network namespace here" if lacking else None


def _kernel_sockets(table: Table) -> int | None:
    """Count in every enrolled namespace; None where one is gone."""
    total = 0
    for _, name in table.enrolments().values():
        try:
            sockstat = Sockstat(name or None)
        except TwctlError:
            return None
        total += sockstat.time_wait()
        sockstat.close()
    return total


def text(status: Mapping[str, Any]) -> str:
    """Lay the status out in lines of at most 80 columns."""
    daemon = "daemon running" if status["daemon"] else "no daemon running"
    kernel = _or_unknown(status["kernel_sockets"])
    closed = ", ".join(f"{how} {count}" for how, count in status["closed_without_time_wait"].items())
    lines = [
        f"{status['mode']}, {status['probe']} probe, {daemon}, pinned at {status['pins']}",
        "",
        *_columns(["class", "family", "sessions", "entered", "adopted", "capacity"], status["classes"]),
        "",
        *_columns(["ended", *(class_.label for class_ in Class)], _by_reason(status["ended"])),
        "",
        f"sessions in the table {status['sessions']}, TIME_WAIT sockets in the kernel {kernel}",
        *textwrap.wrap(f"unknown: {status['unknown']}" if status["unknown"] else "", 80, subsequent_indent="  "),
        *textwrap.wrap(f"no TIME_WAIT: {closed}", 80, subsequent_indent="  "),
        (
            f"memory of the table {_mib(status['table_bytes'])}, of blame {_mib(status['blame_bytes'])}, "
            f"of stock sockets {_mib(status['stock_bytes'])}"
        ),
        *_guard(status["guard"]),
        *_sysctls(status["sysctls"]),
        *(f"LOST: {why} {count}" for why, count in status["dropped"].items() if count),
        "",
        "would have been freed by now:",
        *_columns(["mode", "sessions", "ports", "memory"], _would_free(status["would_free"])),
        f"with time_wait {_times(status['time_wait'])}",
        f"(configuration {status['configuration']})",
    ]
    return "\n".join(lines)


def _or_unknown(number: int | None) -> int | str:
    return "unknown" if number is None else number


def _times(time_wait: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {seconds:g} s" for label, seconds in time_wait.items())


def _guard(actions: Mapping[str, int] | None) -> Iterator[str]:
    if actions is not None:
        done = ", ".join(f"{action} {count}" for action, count in actions.items() if count)
        yield from textwrap.wrap(f"guard: {done or 'nothing to do yet'}", 80, subsequent_indent="  ")


def _sysctls(changed: Sequence[Mapping[str, Any]] | None) -> Iterator[str]:
    """Those of several namespaces that were changed alike are told once."""
    if changed is None:
        yield "sysctls unknown"
        return
    yield from dict.fromkeys(f"sysctl {each['name']} {each['now']} (was {each['before']})" for each in changed)


def _columns(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One line of names and one for each row, words to the left, numbers to the right."""
    yield "".join(_cell(name, name) for name in names)
    for row in rows:
        yield "".join(_cell(name, row[name]) for name in names)


def _cell(name: str, value: object) -> str:
    return f"{value!s:<11}" if name in {"class", "family", "ended", "mode"} else f"{value!s:>12}"


def _by_reason(ended: Mapping[str, Mapping[str, int]]) -> Iterator[dict[str, Any]]:
    for reason in Reason:
        yield {"ended": reason.name.lower()} | {label: counts[reason.name.lower()] for label, counts in ended.items()}


def _would_free(modes: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for mode, row in modes.items():
        yield {"mode": mode, **row, "ports": _or_unknown(row["ports"]), "memory": _mib(row["bytes"])}


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
