"""What `twctl table` prints: the live sessions that the filters let through, a line each."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from twctl.addresses import FAMILIES, Network, host_port
from twctl.classes import Class
from twctl.config.config import Config
from twctl.modes.times import goes_in
from twctl.table.maps import Table
from twctl.table.records import Ends, Vestige, as_json

TITLE = f"{'class':<8} {'substate':<9} {'local':<21} {'remote':<21} {'expires':>7} netns"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which sessions are wanted; None: any. remote: prefix of the remote address."""

    class_: Class | None = None
    family: str | None = None
    remote: Network | None = None
    local_port: int | None = None

    def takes(self, vestige: Vestige) -> bool:
        """Whether a session is wanted."""
        return (
            self.class_ in {None, vestige.class_}
            and self.local_port in {None, vestige.local_port}
            and (self.remote is None or vestige.remote in self.remote)
        )


def sessions(table: Table, wanted: Filter, truncating: Config | None) -> Iterator[Vestige]:
    """Each live session. truncating: the configuration of a daemon in mode truncate, None where none runs."""
    families = (wanted.family,) if wanted.family else FAMILIES
    for vestige in table.vestiges(families):
        if wanted.takes(vestige):
            yield replace(vestige, expires_in=goes_in(vestige, truncating)) if truncating else vestige


def lines(vestiges: Iterator[Vestige]) -> Iterator[str]:
    """A title, and a line for each session."""
    yield TITLE
    for each in vestiges:
        local, remote = host_port(each.local, each.local_port), host_port(each.remote, each.remote_port)
        start = f"{each.class_.label:<8} {each.substate:<9} {local:<21} {remote:<21}"
        yield f"{start} {each.expires_in:>6.1f}s {each.netns}{_on_wire(each.wire)}".rstrip()


def _on_wire(wire: Ends | None) -> str:
    """What packets have instead, where they are translated on their way."""
    if wire is None:
        return ""
    return f"  on the wire {host_port(wire.local, wire.local_port)} -> {host_port(wire.remote, wire.remote_port)}"


def json_lines(vestiges: Iterator[Vestige]) -> Iterator[str]:
    """A JSON object for each session."""
    return (json.dumps(as_json(vestige)) for vestige in vestiges)
