"""What `twctl blame` prints: who causes TIME_WAIT, and how many ports are left toward the busiest destinations."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from twctl.addresses import host_port
from twctl.advise.around import crowded, each_there, look_around
from twctl.commands.in_force import InForce
from twctl.modes import headroom
from twctl.table.enrolments import reachable
from twctl.table.maps import Table
from twctl.table.names import Names, user_name
from twctl.table.tallies import By, Party, Remote, Tally, on_the_wire, ranking

WIRES = 5  # that are shown of a remote endpoint


def report(table: Table, found: InForce, by: By | None, limit: int, *, json_: bool) -> Iterator[str]:
    """All that is asked for: the parties of each kind (by: of this one), and the ports toward remote endpoints.

    :raises TwctlError: where the namespaces of the table cannot be entered.
    """
    names = Names(table)
    for i, each in enumerate([by] if by else By):
        tallies = ranking(table, each, limit)
        rows = [names.row(each, tally) for tally in tallies]
        if each is By.REMOTE:
            wires = on_the_wire(table, [tally.party for tally in tallies])
            rows = [row | {"wire": _wire(wires[tally.party])} for row, tally in zip(rows, tallies, strict=True)]
        yield from map(json.dumps, rows) if json_ else [*[""] * bool(i), *lines(each, rows)]
    if by in {None, By.REMOTE}:
        yield from _ports(table, limit, daemon=found.daemon, json_=json_)


def _wire(found: Counter[Party]) -> list[dict[str, Any]]:
    """Endpoints of a remote endpoint's sessions on the wire, those with the most first."""
    return [
        {"remote": str(party.address), "remote_port": party.port, "sessions": sessions}
        for party, sessions in found.most_common(WIRES)
        if isinstance(party, Remote)
    ]


def _ports(table: Table, limit: int, *, daemon: bool, json_: bool) -> Iterator[str]:
    """Local ports left toward the remote endpoints with the most sessions, and with many live connections."""
    blamed = {tally.party: tally for tally in ranking(table, By.REMOTE, limit)}
    names = reachable(table)
    lists = each_there(names, lambda index: look_around(names[index]))
    live = [Tally(each, None, 0, 0, 0) for each in crowded(lists, limit) if each not in blamed]
    found = headroom.toward(table, [*blamed.values(), *live], daemon=daemon)
    uses = headroom.worst(found, limit, least=0.0)
    if json_:
        yield from (json.dumps({"by": "ports", **headroom.row(use)}) for use in uses)
    elif uses:
        yield from ["", *headroom.lines(uses)]


def lines(by: By, rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """A table of at most 80 columns."""
    numbers = f"{'sessions':>9} {'entered':>11} {'error':>8} {'no port':>8}"
    first = {
        By.OWNER: f"{'owner':<27} {'user':<12}",
        By.REMOTE: f"{'remote':<40}",
        By.LOCAL_PORT: f"{'local port':<40}",
    }
    yield f"{first[by]} {numbers}".rstrip()
    for row in rows:
        entries = "-" if row["entered"] is None else row["entered"]
        yield f"{_first(by, row)} {row['sessions']:>9} {entries:>11} {row['error']:>8} {row['no_port']:>8}"
        for each in row.get("wire", ()):
            where = _cut(host_port(each["remote"], each["remote_port"]), 26)
            yield f"  on the wire {where:<26} {each['sessions']:>9}"


def _first(by: By, row: Mapping[str, Any]) -> str:
    if by is By.OWNER:
        return f"{_cut(row['owner'], 27):<27} {_cut(user_name(row['uid']), 12):<12}"
    where = f" {row['netns']}" if row["netns"] else ""
    if by is By.LOCAL_PORT:
        return f"{_cut(str(row['local_port']) + where, 40):<40}"
    remote = host_port(row["remote"], row["remote_port"]) + where
    return f"{_cut(remote, 40):<40}"


def _cut(text: str, width: int) -> str:
    """The end of a name says more than its beginning."""
    return text if len(text) <= width else f"...{text[3 - width :]}"
