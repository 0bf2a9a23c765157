"""Which remote endpoints can be short of local ports, from the tallies that the probes keep: no socket is looked at.

A port toward an endpoint is held by a live connection or by a session in TIME_WAIT. The latter are at most the entries
of the last SESSION_SECONDS, and the tallies have those: an endpoint with few of them has ports left. (Tallies are exact
for every endpoint that matters here: bpf/observe/attribution.h. Entries that no probe saw are missing.)
"""

import heapq
import math
import time
from array import array
from collections import deque
from typing import NamedTuple

from twctl.addresses import Endpoint
from twctl.table.maps import Table
from twctl.table.tallies import (
    KEY_BUSY,
    LINE,
    LINES,
    NUMBERS,
    PLACE,
    PLACES,
    PLACES_AT,
    TALLIES_BYTES,
    By,
    Remote,
    party_of,
)

# A session whose peer's FIN is late stays 60 s in FIN_WAIT2 (a longer tcp_fin_timeout keeps a full socket instead), and
# then 60 s in TIME_WAIT.
SESSION_SECONDS = 120.0
REMEMBER_SECONDS = 15.0  # between two counts that are kept: 64 KB each


class Counts(NamedTuple):
    """What every place had counted at one moment (monotonic, s): entries and connects that found no port."""

    at: float
    keys: "array[int]"  # of the party in the place
    counts: "array[int]"


class Places(NamedTuple):
    """All places of remote endpoints. errors: the part of their count that is an earlier party's."""

    now: Counts
    errors: list[int]
    parties: list[bytes]


def read(memory: memoryview, at: float) -> Places:
    """Read the tallies of remote endpoints: 1.5 ms."""
    keys, counts = array("Q"), array("Q")
    errors: list[int] = []
    parties: list[bytes] = []
    first = list(By).index(By.REMOTE) * LINES
    for line in range(first, first + LINES):
        start = line * LINE.size
        numbers = NUMBERS.unpack_from(memory, start)
        failures, error, party = zip(*PLACE.iter_unpack(memory[start + PLACES_AT : start + LINE.size]), strict=True)
        keys.extend(numbers[:PLACES])
        counts.extend(map(int.__add__, numbers[PLACES:], failures))
        errors += error
        parties += party
    return Places(Counts(at, keys, counts), errors, parties)


class Destinations:
    """Remembers what was counted, and so knows what has come since. It takes 0.7 MB."""

    def __init__(self, table: Table) -> None:
        self._memory = memoryview(table.map("tallies", TALLIES_BYTES))
        self._last: Counts | None = None
        self._earlier: deque[Counts] = deque()

    def look(self, count: int) -> dict[int, dict[Endpoint, float]]:
        """Return the endpoints to which most has gone since the last look: at most `count`, by index of the namespace.

        Each has the number of sessions that can be in TIME_WAIT toward it (inf: not known yet).
        """
        found = read(self._memory, time.monotonic())
        more = _since(found, self._last)
        self._remember(found.now)
        busy: dict[int, dict[Endpoint, float]] = {}
        for place in heapq.nlargest(count, (i for i, number in enumerate(more) if number > 0), key=more.__getitem__):
            party = party_of(By.REMOTE, found.parties[place])
            if isinstance(party, Remote):
                mine = busy.setdefault(party.netns, {})
                endpoint = party.address, party.port
                mine[endpoint] = mine.get(endpoint, 0.0) + self._sessions(found, place)
        return busy

    def _remember(self, now: Counts) -> None:
        self._last = now
        if not self._earlier or now.at - self._earlier[-1].at >= REMEMBER_SECONDS:
            self._earlier.append(now)
        while len(self._earlier) > 1 and now.at - self._earlier[1].at >= SESSION_SECONDS:
            self._earlier.popleft()

    def _sessions(self, found: Places, place: int) -> float:
        base, now = self._earlier[0], found.now
        if now.at - base.at < SESSION_SECONDS:
            return math.inf
        same = base.keys[place] == now.keys[place]
        return float(max(0, now.counts[place] - (base.counts[place] if same else found.errors[place])))


def _since(found: Places, last: Counts | None) -> list[int]:
    """What has come to each place's party. One that has taken the place since has what it counts beyond its error."""
    now = found.now
    before = last or Counts(now.at, array("Q", bytes(8 * len(now.keys))), now.counts)
    return [
        count - (known if key == old else error) if key > KEY_BUSY else 0
        for key, count, error, old, known in zip(
            now.keys, now.counts, found.errors, before.keys, before.counts, strict=True
        )
    ]
