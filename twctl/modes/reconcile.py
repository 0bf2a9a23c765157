"""Compare the table with the kernel's list of mini-sockets (bpf/observe/compare.h).

Sessions that were there before the probe are taken over, timers that were restarted move on, and what the kernel no
longer has is ended.
"""

import dataclasses
import ipaddress
import socket
import time
from collections.abc import Iterable
from typing import NamedTuple

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sockdiag_messages import MESSAGE_BYTES, offsets
from twctl.table.counters import LANES, Reason
from twctl.table.maps import Table
from twctl.table.shared import CONSTANTS, STRUCTS

IPV4, IPV6 = range(len(FAMILIES))
INBOX_BYTES = CONSTANTS["INBOX_BYTES"]  # and one message more
OUTBOX_BYTES, UNSEEN_AT = STRUCTS["outbox"].size, STRUCTS["outbox"].fields["unseen"].offset
OUTBOX_HEADER = STRUCTS["outbox"].packer(("adopted", "restarted", "unseen_count"))
UNSEEN = STRUCTS["unseen"].packer(raw=("tuple",))
TUPLE = STRUCTS["tuple"].packer(raw=("local", "remote", "local_port", "remote_port"))
# One round asks the kernel about at most this many vanished sessions, some 0.2 s of work; the next round goes on.
QUESTIONS = 10_000
# A pool counts as full from this share of its capacity on.
FULL = 0.99


class Unseen(NamedTuple):
    """struct unseen: a word of the index, where it stands, and its tuple (IPv4: the first four bytes of an address)."""

    word: int
    line: int
    position: int
    local: bytes
    remote: bytes
    local_port: bytes
    remote_port: bytes
    netns: int
    scope: int


@dataclasses.dataclass(frozen=True, slots=True)
class Drift:
    """What one round found: sessions missing in the table, with a timer that had moved on, missing in the kernel.

    seconds: of CPU time that it took.
    """

    missing: int
    restarted: int
    stale: int
    seconds: float


class Reconciler:
    """Compares in rounds. One thread at a time may do that (Table.exclusive): the inbox and the outbox are shared.

    diags: sock_diag sockets by index of the namespace, as they are now.
    """

    def __init__(self, table: Table, diags: dict[int, SockDiag]) -> None:
        self._table = table
        self._diags = diags
        self._inbox = memoryview(table.map("inbox", INBOX_BYTES + MESSAGE_BYTES))
        self._outbox = table.map("outbox", OUTBOX_BYTES)
        self._marks = memoryview(table.map("marks", 8 * len(Class) * len(FAMILIES))).cast("Q")
        self._seen = {
            family: table.map(f"seen_{family}", (table.layout.slots(family) // 64 + 1) * 8) for family in FAMILIES
        }
        self._adopting = True
        self._take, self._adopt, self._sweep, self._finish = (
            table.program(name) for name in ("take", "adopt", "sweep", "finish")
        )

    def round(self, *, end: bool = True) -> Drift:
        """Compare all namespaces once. With `end`, sessions that the kernel no longer has are ended (reason unknown).

        A full pool lacks what it has discarded: nothing is taken over then, for that would discard others.
        """
        started = time.thread_time()
        self._begin()
        self._adopting = not (end and self._is_full())
        for index in self._diags:
            self._read(index)
        stale = self._walk(end=end)
        adopted, restarted, _ = OUTBOX_HEADER.unpack_from(self._outbox)
        return Drift(adopted, restarted, stale, time.thread_time() - started)

    def take_over(self, indexes: Iterable[int]) -> Drift:
        """Take over what the kernel has in namespaces that just joined; the next round ends what is stale."""
        started = time.thread_time()
        self._begin()
        self._adopting = True
        for index in indexes:
            self._read(index)
        adopted, restarted, _ = OUTBOX_HEADER.unpack_from(self._outbox)
        return Drift(adopted, restarted, 0, time.thread_time() - started)

    def _read(self, index: int) -> None:
        """Dump one namespace. Sessions of dual-stack sockets, IPv4 in the table, are in the kernel's list of IPv6."""
        diag = self._diags[index]
        for size in diag.dump(socket.AF_INET, self._inbox[:INBOX_BYTES]):
            self._compare(IPV4, size, index)
        for size in diag.dump(socket.AF_INET6, self._inbox[:INBOX_BYTES]):
            self._compare(IPV6, size, index)
            self._compare(IPV4, size, index)

    def marks(self) -> dict[tuple[Class, str], int]:
        """Numbers of the entries that were next when the last round began."""
        keys = [(class_, family) for class_ in Class for family in FAMILIES]
        return dict(zip(keys, self._marks[: len(keys)], strict=True))

    def sweep(self) -> float:
        """Zero the expired words, without asking the kernel for anything; returns seconds of CPU time."""
        started = time.thread_time()
        self._walk(end=False)
        return time.thread_time() - started

    def _is_full(self) -> bool:
        living = self._table.living(time.monotonic_ns())
        return any(
            sum(living[class_, family, lane] for lane in range(LANES))
            >= FULL * self._table.layout.capacity[family][class_]
            for class_ in Class
            for family in FAMILIES
        )

    def _begin(self) -> None:
        if not self._table.is_believed():
            self.sweep()
        self._outbox[:UNSEEN_AT] = bytes(UNSEEN_AT)
        for memory in self._seen.values():
            memory[:] = bytes(len(memory))
        for i, (class_, family) in enumerate((class_, family) for class_ in Class for family in FAMILIES):
            self._marks[i] = self._table.ring(class_, family)[0]

    def _compare(self, family: int, size: int, index: int) -> None:
        """Compare the messages in the inbox with the table, and put what is missing into it."""
        for offset, _ in offsets(self._inbox, size):
            if offset + MESSAGE_BYTES <= size and self._take.run(family, offset, index) and self._adopting:
                self._adopt.run(family, offset, index)

    def _walk(self, *, end: bool) -> int:
        began_ns = time.monotonic_ns()
        ended = sum(self._walk_lines(family, end=end) for family in (IPV4, IPV6))
        self._table.swept(began_ns)
        return ended

    def _walk_lines(self, family: int, *, end: bool) -> int:
        line, ended, asked = 0, 0, 0
        while True:
            line = self._sweep.run(family, line)
            count = OUTBOX_HEADER.unpack_from(self._outbox)[2] if end else 0
            for i in range(min(count, QUESTIONS - asked)):
                asked += 1
                *word, ends = UNSEEN.unpack_from(self._outbox, UNSEEN_AT + i * UNSEEN.size)
                ended += self._end(family, Unseen(*word, *TUPLE.unpack(ends)))
            if not line:  # after the last lines, which may be fewer than a batch; they are in the outbox, too
                return ended

    def _end(self, family: int, unseen: Unseen) -> bool:
        if self._in_kernel(family, unseen):
            return False
        return self._finish.run(family, unseen.line, unseen.position, unseen.word, Reason.UNKNOWN) == 1

    def _in_kernel(self, family: int, unseen: Unseen) -> bool:
        size = 4 if family == IPV4 else 16
        local, remote = ipaddress.ip_address(unseen.local[:size]), ipaddress.ip_address(unseen.remote[:size])
        ports = int.from_bytes(unseen.local_port, "big"), int.from_bytes(unseen.remote_port, "big")
        diag = self._diags.get(unseen.netns)
        return diag is not None and diag.has_mini_socket((local, ports[0]), (remote, ports[1]), unseen.scope)
