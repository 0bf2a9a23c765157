"""The records of the table, decoded into plain values, and the words of the index that say which of them live."""

import dataclasses
import ipaddress
from typing import Any

from twctl.addresses import Address
from twctl.classes import Class
from twctl.table.counters import TICK
from twctl.table.shared import CONSTANTS, STRUCTS

TICK_SHIFT, HORIZON_TICKS = CONSTANTS["TICK_SHIFT"], CONSTANTS["HORIZON_TICKS"]
SLOT_MASK, TICK_MASK = CONSTANTS["SLOT_MASK"], CONSTANTS["TICK_MASK"]
EXPIRY_SHIFT = 40  # of the tick in an index word: tick 24 | tag 16 | slot 24 (vestige.h)
RECORDS = {"ipv4": STRUCTS["vestige4"], "ipv6": STRUCTS["vestige6"]}
VESTIGE = {
    family: record.packer(raw=("local", "remote", "local_port", "remote_port")) for family, record in RECORDS.items()
}
FIN_WAIT2, TIMESTAMPS = CONSTANTS["VESTIGE_FIN_WAIT2"], CONSTANTS["VESTIGE_TIMESTAMPS"]


@dataclasses.dataclass(frozen=True, slots=True)
class Vestige:
    """One session: who with, what sequence state, how long still.

    expires_in and age in seconds; window as it went on the wire, before scaling; ts_recent None without timestamps;
    known False for a session that was taken over and whose sequence state nobody saw.
    """

    family: str
    class_: Class
    substate: str
    local: Address
    local_port: int
    remote: Address
    remote_port: int
    expires_in: float
    age: float
    netns: str
    snd_nxt: int
    rcv_nxt: int
    window: int
    window_scale: int
    ts_recent: int | None
    ts_offset: int
    known: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Live sessions of one family and class: slots, numbers of owners (blame.py), records as they stand (VESTIGE)."""

    family: str
    class_: Class
    slots: list[int]
    owners: list[int]
    records: list[bytes]


def decode(  # noqa: PLR0913 - keywords
    family: str, raw: bytes, *, class_: Class, expires_in: float, age: float, names: dict[int, str]
) -> Vestige:
    """Decode a record (32 or 64 bytes) into a Vestige."""
    local, remote, local_port, remote_port, snd, rcv, recent, offset, window, netns, bits, *_ = VESTIGE[family].unpack(
        raw
    )
    return Vestige(
        family=family,
        class_=class_,
        substate="FIN_WAIT2" if bits & FIN_WAIT2 else "TIME_WAIT",
        local=ipaddress.ip_address(local),
        local_port=int.from_bytes(local_port, "big"),
        remote=ipaddress.ip_address(remote),
        remote_port=int.from_bytes(remote_port, "big"),
        expires_in=expires_in,
        age=age,
        netns=names.get(netns, f"#{netns}"),
        snd_nxt=snd,
        rcv_nxt=rcv,
        window=window,
        window_scale=bits >> 4,
        ts_recent=recent if bits & TIMESTAMPS else None,
        ts_offset=offset,
        known=snd != 0 or rcv != 0,
    )


def remaining(word: int, now_ns: int) -> float:
    """Seconds until an index word expires; 0 if it has."""
    left = (word >> EXPIRY_SHIFT) - (now_ns >> TICK_SHIFT) & TICK_MASK
    return left * TICK if left <= HORIZON_TICKS else 0.0


def as_json(vestige: Vestige) -> dict[str, Any]:
    """Return what `twctl table --json` prints for a session; `class` is a word of Python, hence the renaming."""
    row = dataclasses.asdict(vestige)
    row["class"] = row.pop("class_").label
    return row | {"local": str(vestige.local), "remote": str(vestige.remote)}
