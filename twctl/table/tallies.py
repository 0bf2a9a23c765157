"""Who causes TIME_WAIT: owners, remote endpoints and local ports, with their entries and live sessions.

Entries come from the tallies that the probes keep in fixed memory (bpf/observe/attribution.h): exact while a line has
no more parties than places; beyond that never too few, and too many by at most the error that stands beside them. Live
sessions are counted by one walk of the table.
"""

import dataclasses
import enum
import heapq
import ipaddress
import itertools
import mmap
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from twctl.addresses import FAMILIES, Address, is_ipv4
from twctl.linux.ports import Ports
from twctl.table.maps import Table
from twctl.table.records import RECORDS, Batch
from twctl.table.shared import CONSTANTS, STRUCTS

LINES, PLACES = CONSTANTS["TALLY_LINES"], CONSTANTS["LINE_WORDS"]
LINE, PLACE_STRUCT, PARTY = STRUCTS["tallies"], STRUCTS["place"], STRUCTS["party"]
NUMBERS = LINE.packer(("key", "entries"))
PLACE = PLACE_STRUCT.packer(("no_port", "error", "party"), raw=("party",))
PLACES_AT = LINE.fields["place"].offset
TALLIES_BYTES = CONSTANTS["KINDS"] * LINES * LINE.size
KEY_BUSY = CONSTANTS["KEY_BUSY"]
OWNER_UNKNOWN, OWNER_OTHER = CONSTANTS["OWNER_UNKNOWN"], CONSTANTS["OWNER_OTHER"]
# An ephemeral port is a service's if it has so many entries, and this share of those of its namespace.
SERVICE_ENTRIES, SERVICE_SHARE = 10, 0.01
NO_UID = 0xFFFFFFFF  # the socket's uid could not be read


class By(enum.StrEnum):
    """What is blamed."""

    OWNER = "owner"
    REMOTE = "remote"
    LOCAL_PORT = "local-port"

    @property
    def kind(self) -> int:
        """Its number (enum party_kind)."""
        return CONSTANTS[f"BY_{self.name}"]


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """Who made a socket: number of its cgroup (version 2), and uid. None: not known, or `other`."""

    cgroup: int | None
    uid: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Remote:
    """A remote endpoint, as seen from the namespace of this index."""

    address: Address
    port: int
    netns: int


@dataclasses.dataclass(frozen=True, slots=True)
class LocalPort:
    """A port of the namespace of this index."""

    port: int
    netns: int


Party = Owner | Remote | LocalPort
UNKNOWN = Owner(None, None)  # of sessions whose entry no probe saw
OTHER = Owner(-1, None)  # of those whose owner found no place, or gave it up after 18 minutes without an entry


@dataclasses.dataclass(frozen=True, slots=True)
class Tally:
    """One party's part. entries: between entries - error and entries; None: too few to have kept a place.

    no_port: connect() calls that found no free local port; sessions: alive now.
    """

    party: Party
    entered: int | None
    error: int
    no_port: int
    sessions: int


def ranking(table: Table, by: By, count: int) -> list[Tally]:
    """The parties with the most live sessions, then with the most entries: `count` of them, or fewer."""
    counters = table.counters().values
    places = list(places_of(_tallies(table), by))
    sums = _summed(places)
    if by is By.OWNER:
        living = _living_owners(table, places)
        sums |= {_OTHER_KEY: _rest(counters, sums), _UNKNOWN_KEY: (0, 0, 0)}
    else:
        living = Counter(key for family in FAMILIES for batch in _batches(table, family) for key in _keys(by, batch))
    keys = sums.keys() | {key for key, _ in living.most_common(count)}
    rows = [_tally(by, key, sums.get(key), living[key]) for key in keys]
    rows = [row for row in rows if row.sessions or row.entered or row.no_port]
    return sorted(rows, key=lambda row: (-row.sessions, -(row.entered or 0), -row.no_port, str(row.party)))[:count]


def _tally(by: By, key: bytes, sums: tuple[int, int, int] | None, sessions: int) -> Tally:
    entries, error, no_port = sums or (None, 0, 0)
    return Tally(party_at(by, key), entries, error, no_port, sessions)


def most_entered(table: Table, by: By, count: int, ephemeral: Mapping[int, Ports]) -> list[Tally]:
    """The parties with the most entries since they have a place, which is what `entries` counts here.

    Without the error it is exact, only grows while the place is kept, and begins anew with another one. ephemeral:
    the ports that connect() chooses from, by index of the namespace.
    """
    sums = _summed(places_of(_tallies(table), by))
    sure = {key: entries - error for key, (entries, error, _) in sums.items() if entries > error}
    if by is By.LOCAL_PORT:
        sure = _services(sure, ephemeral)
    first = heapq.nsmallest(count, sure, key=lambda key: (-sure[key], key))
    return [Tally(party_at(by, key), sure[key], 0, sums[key][2], 0) for key in first]


def main_owners(table: Table, by: By, wanted: Iterable[Party]) -> dict[Party, Owner]:
    """The owner of most of the live sessions of each of some remote endpoints or local ports that has any."""
    asked = {key: party for party in wanted if (key := _key(party))}
    counts: dict[bytes, Counter[int]] = {key: Counter() for key in asked}
    for batch in itertools.chain(*(_batches(table, family) for family in FAMILIES)):
        for key, number in zip(_keys(by, batch), batch.owners, strict=True):
            if key in counts:
                counts[key][number] += 1
    known = owners(table)
    return {asked[key]: known.get(max(found, key=found.__getitem__), OTHER) for key, found in counts.items() if found}


def on_the_wire(table: Table, wanted: Iterable[Party]) -> dict[Party, Counter[Party]]:
    """Where the live sessions of some remote endpoints go, where that is translated on the way."""
    asked = {key: party for party in wanted if (key := _key(party))}
    found: dict[Party, Counter[Party]] = {party: Counter() for party in asked.values()}
    for batch in itertools.chain(*(_batches(table, family) for family in FAMILIES)):
        for one, other in ((batch.records[i], wire) for i, wire in batch.wires.items()):
            here, there = _keys(By.REMOTE, dataclasses.replace(batch, records=[one, other]))
            if here in asked and here != there:
                found[asked[here]][party_at(By.REMOTE, there)] += 1
    return found


def _services(sure: Mapping[bytes, int], ephemeral: Mapping[int, Ports]) -> dict[bytes, int]:
    """Local ports without those that connect() chose, which have one session each."""
    ports = {key: (int.from_bytes(port, "big"), netns) for key in sure for port, netns in [_PORT.unpack(key)]}
    entered: Counter[int] = Counter()
    for key, (_, netns) in ports.items():
        entered[netns] += sure[key]
    return {
        key: sure[key]
        for key, (port, netns) in ports.items()
        if port not in ephemeral.get(netns, ()) or sure[key] >= max(SERVICE_ENTRIES, SERVICE_SHARE * entered[netns])
    }


def owners(table: Table) -> dict[int, Owner]:
    """Owners by the numbers that batches have. A number that is not there is `other`'s."""
    places = places_of(_tallies(table), By.OWNER)
    found = {place: party for place, key, *_ in places if isinstance(party := party_at(By.OWNER, key), Owner)}
    return {OWNER_UNKNOWN: UNKNOWN} | found


# A party's key: the bytes of its record, or of its place among the tallies, that make it what it is.
_OWNER, _IPV4, _IPV6, _PORT = (struct.Struct(each) for each in ("=QI", "=4s2sB", "=16s2sBI", "=2sB"))
_UNKNOWN_KEY, _OTHER_KEY = b"unknown", b"other"
# Where a key's bytes lie in struct party: an owner's cgroup and an IPv4 address begin as an IPv6 address does.
_ADDRESS, _PARTY_PORT, _PARTY_NETNS, _SCOPE, _UID = (
    PARTY.slice(name) for name in ("address", "port", "netns", "scope", "uid")
)
_CGROUP, _ADDRESS4 = slice(_ADDRESS.start, _ADDRESS.start + 8), slice(_ADDRESS.start, _ADDRESS.start + 4)
_FAMILY = PARTY.fields["family"].offset
# And in the records of each family.
_REMOTE, _REMOTE_PORT, _LOCAL_PORT, _NETNS = (
    {family: record.slice(name) for family, record in RECORDS.items()}
    for name in ("remote", "remote_port", "local_port", "netns")
)
_RECORD_SCOPE = RECORDS["ipv6"].slice("scope")


def _tallies(table: Table) -> mmap.mmap:
    return table.map("tallies", TALLIES_BYTES)


def places_of(memory: mmap.mmap, by: By) -> Iterator[tuple[int, bytes, int, int, int]]:
    """Yield place + 1, the party's key, entries, error and no_port of each party that has a place in the tallies."""
    first = by.kind * LINES
    for line in range(LINES):
        at = (first + line) * LINE.size
        numbers = NUMBERS.unpack_from(memory, at)
        for place in range(PLACES):
            key, entries = numbers[place::PLACES]
            if key > KEY_BUSY:
                no_port, error, party = PLACE.unpack_from(memory, at + PLACES_AT + place * PLACE.size)
                yield line * PLACES + place + 1, _key_of(by, party), entries, 0 if by is By.OWNER else error, no_port


def _key_of(by: By, party: bytes) -> bytes:
    """The key of a struct party."""
    if by is By.OWNER:
        return party[_CGROUP] + party[_UID]
    if by is By.LOCAL_PORT:
        return party[_PARTY_PORT] + party[_PARTY_NETNS]
    if FAMILIES[party[_FAMILY]] == "ipv4":
        return party[_ADDRESS4] + party[_PARTY_PORT] + party[_PARTY_NETNS]
    return party[_ADDRESS] + party[_PARTY_PORT] + party[_PARTY_NETNS] + party[_SCOPE]


def _keys(by: By, batch: Batch) -> Iterator[bytes]:
    """The key of each live session's party, from its record."""
    where = (_REMOTE, _REMOTE_PORT, _LOCAL_PORT, _NETNS)
    remote, remote_port, local_port, netns = (each[batch.family] for each in where)
    if by is By.LOCAL_PORT:
        return (raw[local_port] + raw[netns] for raw in batch.records)
    if batch.family == "ipv4":
        return (raw[remote] + raw[remote_port] + raw[netns] for raw in batch.records)
    return (raw[remote] + raw[remote_port] + raw[netns] + _zone(raw) for raw in batch.records)


def _zone(raw: bytes) -> bytes:
    """The interface index of a link-local address; of others the record holds the route's."""
    return raw[_RECORD_SCOPE] if ipaddress.IPv6Address(raw[_REMOTE["ipv6"]]).is_link_local else bytes(4)


def _batches(table: Table, family: str) -> Iterator[Batch]:
    return itertools.chain.from_iterable(table.batches(family))


def _living_owners(table: Table, places: Iterable[tuple[int, bytes, int, int, int]]) -> Counter[bytes]:
    owners = {OWNER_UNKNOWN: _UNKNOWN_KEY} | {place: key for place, key, *_ in places}
    numbers: Counter[int] = Counter()
    for family in FAMILIES:
        for batch in _batches(table, family):
            numbers.update(batch.owners)
    living: Counter[bytes] = Counter()
    for number, sessions in numbers.items():
        living[owners.get(number, _OTHER_KEY)] += sessions
    return living


def _summed(places: Iterable[tuple[int, bytes, int, int, int]]) -> dict[bytes, tuple[int, int, int]]:
    """Entries, error and no_port by key: two CPUs may have claimed a place each for the same party."""
    sums: dict[bytes, tuple[int, int, int]] = {}
    for _, key, entries, error, no_port in places:
        before = sums.get(key, (0, 0, 0))
        sums[key] = before[0] + entries, before[1] + error, before[2] + no_port
    return sums


def _rest(counters: Mapping[str, tuple[int, ...]], sums: Mapping[bytes, tuple[int, int, int]]) -> tuple[int, int, int]:
    """What no owner's place counts. The counters were read first: what comes meanwhile makes it less, never more."""
    entries = sum(counters["entered"]) - sum(each[0] for each in sums.values())
    no_port = sum(counters["no_port"]) - sum(each[2] for each in sums.values())
    return max(0, entries), 0, max(0, no_port)


def party_of(by: By, raw: bytes) -> Party:
    """The party of a place, from its struct party."""
    return party_at(by, _key_of(by, raw))


def party_at(by: By, key: bytes) -> Party:
    """The party that has a key."""
    if key in {_UNKNOWN_KEY, _OTHER_KEY}:
        return UNKNOWN if key == _UNKNOWN_KEY else OTHER
    if by is By.OWNER:
        cgroup, uid = _OWNER.unpack(key)
        return Owner(cgroup or None, None if uid == NO_UID else uid)
    if by is By.LOCAL_PORT:
        port, netns = _PORT.unpack(key)
        return LocalPort(int.from_bytes(port, "big"), netns)
    address, port, netns, *scope = (_IPV6 if len(key) == _IPV6.size else _IPV4).unpack(key)
    zone = f"%{scope[0]}" if scope and scope[0] else ""
    return Remote(ipaddress.ip_address(f"{ipaddress.ip_address(address)}{zone}"), int.from_bytes(port, "big"), netns)


def _key(party: Party) -> bytes:
    """The key of a remote endpoint or a local port, as sessions have it; empty for others."""
    if isinstance(party, LocalPort):
        return _PORT.pack(party.port.to_bytes(2, "big"), party.netns)
    if not isinstance(party, Remote):
        return b""
    end = party.address.packed, party.port.to_bytes(2, "big"), party.netns
    if is_ipv4(party.address):
        return _IPV4.pack(*end)
    scope = party.address.scope_id if isinstance(party.address, ipaddress.IPv6Address) else None
    return _IPV6.pack(*end, int(scope or 0))
