"""What `twctl blame` prints: who causes TIME_WAIT, and how many ports are left toward the busiest destinations."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from twctl.addresses import host_port
from twctl.table.names import user_name
from twctl.table.tallies import By


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
