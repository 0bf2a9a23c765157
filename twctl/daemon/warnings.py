"""What is wrong by the facts of the landing page: a line each, the weightiest first. Bounds are those of the alerts."""

from collections.abc import Iterator, Sequence

from twctl.classes import Class
from twctl.config.keys import Mode
from twctl.daemon.facts import Facts
from twctl.daemon.loop import HANGING_SECONDS
from twctl.modes.headroom import Use
from twctl.table.counters import DROPPED
from twctl.table.looks import LOST_SHARE, TABLE_FULL

PORTS_HALF_USED, PORTS_USED = 0.5, 0.8  # shares
SOON_SECONDS = 600.0  # until ports are used up that are half used already
DRIFT_SHARE, DRIFT_LEAST = 0.05, 100  # sessions


def warnings(facts: Facts) -> list[str]:
    """Every line; none: all is well."""
    return [line for rule in (_loop, _ports, _guard, _namespaces, _evictions, _drift, _lost) for line in rule(facts)]


def _loop(facts: Facts) -> Iterator[str]:
    if not facts.healthy:
        yield f"The daemon hangs: its loop has not gone round for {HANGING_SECONDS:g} s. Restart it."


def _ports(facts: Facts) -> Iterator[str]:
    if failed := facts.more("no_port"):
        yield f"{failed:,} connect() calls found no free local port {_lately(facts)}."
    for use in facts.uses or ():
        soon = use.seconds_left is not None and use.seconds_left < SOON_SECONDS and use.ratio > PORTS_HALF_USED
        if soon or use.ratio > PORTS_USED:
            yield f"{use.ratio:.0%} of the local ports toward {facts.where(use)} are held; {ports_left(facts, use)}."


def ports_left(facts: Facts, use: Use) -> str:
    """How long there will be a port toward a destination, by now."""
    if use.seconds_left is None:
        return "those that are let go keep up"
    seconds = max(0.0, use.seconds_left - facts.uses_age)
    return f"none is left in {seconds:.0f} s" if seconds else "none is left"


def _guard(facts: Facts) -> Iterator[str]:
    if facts.guarded_devices == 0:
        yield "No device has the guard, so nothing does TIME_WAIT's duty."
    if found := _counted((count, kind) for kind, count in facts.obstacles.items()):
        yield f"The guard is suspended where something is between wire and sockets: {found}."


def _namespaces(facts: Facts) -> Iterator[str]:
    if facts.left_alone:
        yield f"Network namespaces that are left alone: {facts.left_alone:,} (the log says why)."


def _evictions(facts: Facts) -> Iterator[str]:
    for class_ in Class:
        label, room = class_.label, f"[capacity] is too small for class {class_.label}"
        if evicted := facts.more("ended", label, "evicted"):
            guarding = " before their time" if facts.mode == Mode.VESTIGIAL else ""
            yield f"{evicted:,} sessions were evicted{guarding} {_lately(facts)}: {room}."
        elif facts.look.full[class_] > TABLE_FULL:
            yield f"The table is {facts.look.full[class_]:.0%} full: {room}."


def _drift(facts: Facts) -> Iterator[str]:
    drift, sessions = sum(facts.drift.values()), sum(facts.look.sessions.values())
    if drift > max(DRIFT_LEAST, DRIFT_SHARE * sessions):
        found = _counted((count, which) for which, count in facts.drift.items())
        yield f"The table differs from the kernel's list: the last comparison mended {found} sessions."


def _lost(facts: Facts) -> Iterator[str]:
    lost = [(facts.more("dropped", why), why) for why in (*DROPPED, "nested")]
    entered = sum(facts.more("entered", class_.label) for class_ in Class)
    if sum(count for count, _ in lost) > LOST_SHARE * entered:
        yield f"Entries were lost, or kept imperfectly, {_lately(facts)}: {_counted(lost)}."


def _counted(counts: "Iterator[tuple[int, str]] | Sequence[tuple[int, str]]") -> str:
    return ", ".join(f"{count:,} {what}" for count, what in counts if count)


def _lately(facts: Facts) -> str:
    return f"in the last {facts.minutes:.0f} min" if facts.minutes >= 1 else "in the last minute"
