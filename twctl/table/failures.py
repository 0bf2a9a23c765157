"""When connect() found no free local port toward a remote endpoint: since when, and for the last time."""

from typing import NamedTuple

from twctl.table.maps import Table
from twctl.table.shared import STRUCTS
from twctl.table.tallies import LINES, PLACES, TALLIES_BYTES, By, Remote, party_at, places_of

FAILURE = STRUCTS["failure"]
FAILURES_BYTES = LINES * PLACES * FAILURE.size
TIMES = FAILURE.packer(("since", "last"))


class Failing(NamedTuple):
    """Seconds ago: when calls began to fail without a pause of a minute, and when the last one did."""

    since: float
    last: float


def failing(table: Table, now: float) -> dict[Remote, Failing]:
    """By the endpoints toward which calls have failed. now: monotonic (s)."""
    memory = table.map("failures", FAILURES_BYTES)
    found: dict[Remote, Failing] = {}
    for place, key, _, _, no_port in places_of(table.map("tallies", TALLIES_BYTES), By.REMOTE):
        since, last = TIMES.unpack_from(memory, (place - 1) * FAILURE.size)
        party = party_at(By.REMOTE, key)
        if no_port and last and isinstance(party, Remote):
            found[party] = Failing(now - since / 1e9, now - last / 1e9)
    return found
