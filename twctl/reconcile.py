"""Table against kernel: take over what was there before us, and find what ended without telling (bpf/reconcile.h)."""

import dataclasses
import ipaddress
import socket
import struct
import time
from typing import Any

from twctl.classes import Class
from twctl.layout import FAMILIES
from twctl.sockdiag import SockDiag
from twctl.table import Reason, Table

INBOX_BYTES = 65536
OUTBOX_HEADER = struct.Struct("=QQQ")  # adopted, restarted, number of unseen
UNSEEN = struct.Struct("=QII16s16s2s2sII")  # word, line, index, then the tuple with its namespace index and scope
OUTBOX_BYTES = OUTBOX_HEADER.size + 16 * 8 * UNSEEN.size
MESSAGE_BYTES = 88
# One round asks the kernel about at most this many vanished sessions, some 0.2 s of work; the next round goes on.
QUESTIONS = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Drift:
    """What one round found: sessions that the table did not have, whose timer had moved on, that the kernel no longer has."""

    missing: int
    restarted: int
    stale: int
    seconds: float


class Reconciler:
    """Runs rounds; the daemon's thread is the only one that does."""

    def __init__(self, table: Table, diags: dict[int, SockDiag]) -> None:
        self._table = table
        self._diags = diags  # by namespace index
        self._inbox = memoryview(table.map("inbox", INBOX_BYTES + MESSAGE_BYTES))
        self._outbox = table.map("outbox", OUTBOX_BYTES)
        self._marks = memoryview(table.map("marks", 8 * len(Class) * len(FAMILIES))).cast("Q")
        self._seen = {family: table.map(f"seen_{family}", (table.layout.slots(family) // 64 + 1) * 8) for family in FAMILIES}
        verbs = ("look", "take", "sweep", "finish")
        self._programs = {f"{verb}_{family}": table.program(f"{verb}_{family}") for verb in verbs for family in FAMILIES}

    def round(self, *, end: bool = True) -> Drift:
        """Compare once. With `end`, sessions that the kernel no longer has are ended (reason unknown)."""
        started = time.monotonic()
        self._begin()
        for index, diag in self._diags.items():
            for size in diag.dump(socket.AF_INET, self._inbox[:INBOX_BYTES]):
                self._take("ipv4", size, index)
            for size in diag.dump(socket.AF_INET6, self._inbox[:INBOX_BYTES]):
                self._take("ipv6", size, index)
                self._take("ipv4", size, index)
        stale = sum(self._sweep(family, end=end) for family in FAMILIES)
        adopted, restarted, _ = OUTBOX_HEADER.unpack_from(self._outbox)
        return Drift(adopted, restarted, stale, time.monotonic() - started)

    def sweep(self) -> float:
        """Zero the expired words, without asking the kernel for anything; returns seconds."""
        started = time.monotonic()
        for family in FAMILIES:
            self._sweep(family, end=False)
        return time.monotonic() - started

    def _begin(self) -> None:
        OUTBOX_HEADER.pack_into(self._outbox, 0, 0, 0, 0)
        for memory in self._seen.values():
            memory[:] = bytes(len(memory))
        for i, (klass, family) in enumerate((klass, family) for klass in Class for family in FAMILIES):
            self._marks[i] = self._table.ring(klass, family)[0]

    def _take(self, family: str, size: int, index: int) -> None:
        look, take = self._programs[f"look_{family}"], self._programs[f"take_{family}"]
        offset = 0
        while (offset := look.run(offset, size, index)) + MESSAGE_BYTES <= size:
            take.run(offset, index)
            offset += struct.unpack_from("=I", self._inbox, offset)[0] + 3 & ~3

    def _sweep(self, family: str, *, end: bool) -> int:
        sweep, line, ended, asked = self._programs[f"sweep_{family}"], 0, 0, 0
        while line := sweep.run(line):
            if not end:
                continue
            count = OUTBOX_HEADER.unpack_from(self._outbox)[2]
            for i in range(min(count, QUESTIONS - asked)):
                asked += 1
                ended += self._finish(family, *UNSEEN.unpack_from(self._outbox, OUTBOX_HEADER.size + i * UNSEEN.size))
        return ended

    def _finish(self, family: str, word: int, line: int, index: int, *known: Any) -> bool:
        if self._in_kernel(family, *known):
            return False
        return self._programs[f"finish_{family}"].run(line, index, word, Reason.UNKNOWN) == 1

    def _in_kernel(self, family: str, local: bytes, remote: bytes, local_port: bytes, remote_port: bytes, netns: int, scope: int) -> bool:
        size = 4 if family == "ipv4" else 16
        addresses = ipaddress.ip_address(local[:size]), ipaddress.ip_address(remote[:size])
        ports = int.from_bytes(local_port, "big"), int.from_bytes(remote_port, "big")
        diag = self._diags.get(netns)
        return diag is not None and diag.has_mini_socket(addresses[0], ports[0], addresses[1], ports[1], scope)
