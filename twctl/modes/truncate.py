"""Destroy TIME_WAIT sockets over sock_diag: those whose class's time is up, and the oldest when memory is low.

Never a live connection: the kernel is first asked for exactly this tuple, and only what it says is a TIME_WAIT (or due
FIN_WAIT2) mini-socket is destroyed, with the cookie that came with the answer. A connection that took the tuple in
between has another cookie, and the kernel refuses.
"""

import dataclasses
import heapq
import math
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.linux.sockdiag import HEADER, TIMER_TIME_WAIT, SockDiag
from twctl.linux.tcp import KERNEL_TIME_WAIT, TCP_FIN_WAIT2, TCP_LISTEN
from twctl.table.counters import TICK, Reason
from twctl.table.maps import Table

REQUEST_BYTES = 72
DUE_SLOTS = 16
DUES_HEADER = struct.Struct("=QQQ")  # next, count, age
DUE = struct.Struct(f"={REQUEST_BYTES}sQIII4x")
DUES_BYTES = DUES_HEADER.size + DUE_SLOTS * DUE.size
# The kernel tells what is left of a timer in whole jiffies (at most 10 ms). s
TOLERANCE = 0.01
# How often a FIN_WAIT2 socket is looked at again where nothing tells that its FIN has come. s
FIN_WAIT2_POLL = 1.0
# Sockets destroyed in one go, some 10 ms of work.
DRAIN_BATCH = 1024
LATENESS_EDGES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # s


class Due(NamedTuple):
    """struct due: the request for exactly this socket, and where its vestige's word stands."""

    request: bytes
    word: int
    line: int
    position: int
    netns: int


class Answer(NamedTuple):
    """What the kernel says of a socket: state and timer (idiag_*), seconds left of the timer, cookie (8 bytes)."""

    state: int
    timer: int
    left: float
    cookie: bytes


@dataclasses.dataclass
class Lateness:
    """How long after they were due a class's sockets were destroyed: counts by LATENESS_EDGES, and the sum (s)."""

    buckets: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(LATENESS_EDGES) + 1))
    seconds: float = 0.0

    def add(self, late: float) -> None:
        """Count one."""
        self.buckets[sum(late > edge for edge in LATENESS_EDGES)] += 1
        self.seconds += late


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a class's sessions may stay in TIME_WAIT and FIN_WAIT2 (inf: as long as the kernel lets them)."""

    time_wait: Mapping[Class, float]
    fin_wait2: Mapping[Class, float]


class Reaper:
    """Walks the rings from their oldest end, destroys what is over its limits, counted as `reason`."""

    def __init__(
        self,
        table: Table,
        diags: Mapping[int, SockDiag],
        reason: Reason,
        fin_timeout: Callable[[int], float] = lambda _: KERNEL_TIME_WAIT,
    ) -> None:
        self._table = table
        self._diags = diags
        self._reason = reason
        self._fin_timeout = fin_timeout  # of a namespace by its index, s
        self._collect, self._finish = table.program("collect"), table.program("finish")
        self._dues = table.map("dues_map", DUES_BYTES)
        self._tails: dict[tuple[Class, str], int] = {}
        # Sockets that were not due when the walk passed them: when to look again (monotonic), and what at. Heaps.
        self._waiting: dict[Class, list[tuple[float, str, Due]]] = {class_: [] for class_ in Class}
        self.lateness = {class_: Lateness() for class_ in Class}
        self.errors = 0

    def reap(self, class_: Class, limits: Limits, most: int) -> tuple[int, float]:
        """Destroy what is due of a class, at most about `most` sockets.

        Returns how many were destroyed, and seconds until the next can be due.
        """
        least = min(limits.time_wait[class_], limits.fin_wait2[class_])
        destroyed, wait = self._revisit(class_, limits), max(least, TICK)
        for family in FAMILIES:
            for dues, until in self._walk(class_, family, least):
                wait = min(wait, until)
                destroyed += self._handle(class_, family, dues, limits)
                if destroyed >= most:
                    return destroyed, 0.0
        if self._waiting[class_]:
            wait = min(wait, max(0.0, self._waiting[class_][0][0] - time.monotonic()))
        return destroyed, wait

    def _walk(self, class_: Class, family: str, limit: float) -> Iterator[tuple[list[Due], float]]:
        """Yield what is old enough, in order of age, and seconds until the next of this ring will be (inf: unknown)."""
        # One tick more than the time itself, for a start is rounded down: never early.
        least = math.ceil(limit / TICK) + 1 if limit else 0
        head, _, capacity = self._table.ring(class_, family)[:3]
        tail = max(self._tails.get((class_, family), 0), head - capacity)
        while tail < head:
            looked, tail, age, found = self._look(class_, family, tail, least)
            self._tails[class_, family] = tail
            yield found, (least - age + 1) * TICK if age else math.inf
            if age or not looked:
                return

    def take_up(self, marks: Mapping[tuple[Class, str], int], limits: Limits) -> None:
        """Destroy what is due among the entries since `marks` (entry numbers), and come back to the rest in time.

        For sessions that a comparison with the kernel put there: they are older than their places say, and the walk
        would come too late.
        """
        for (class_, family), mark in marks.items():
            if min(limits.time_wait[class_], limits.fin_wait2[class_]) >= KERNEL_TIME_WAIT:
                continue
            head, tail, looked = self._table.ring(class_, family)[0], mark, 1
            while tail < head and looked:
                looked, tail, _, dues = self._look(class_, family, tail, 0)
                self._handle(class_, family, dues, limits)

    def _look(self, class_: Class, family: str, tail: int, least: int) -> tuple[int, int, int, list[Due]]:
        """Return slots looked at, the next entry, the age + 1 of what was too young (0: nothing), and what was not."""
        looked = self._collect.run(FAMILIES.index(family), class_, tail, least)
        tail, count, age = DUES_HEADER.unpack_from(self._dues)
        found = [Due._make(DUE.unpack_from(self._dues, DUES_HEADER.size + i * DUE.size)) for i in range(count)]
        return looked, tail, age, found

    def _revisit(self, class_: Class, limits: Limits) -> int:
        """Look again at the sockets that were not due."""
        waiting, now, destroyed = self._waiting[class_], time.monotonic(), 0
        while waiting and waiting[0][0] <= now:
            _, family, due = heapq.heappop(waiting)
            destroyed += self._handle(class_, family, [due], limits)
        return destroyed

    def _handle(self, class_: Class, family: str, dues: list[Due], limits: Limits) -> int:
        destroyed = 0
        for netns in {due.netns for due in dues}:
            mine = [due for due in dues if due.netns == netns]
            if netns in self._diags:
                destroyed += self._handle_in(self._diags[netns], class_, family, mine, limits)
        return destroyed

    def _handle_in(self, diag: SockDiag, class_: Class, family: str, dues: list[Due], limits: Limits) -> int:
        condemned, late = [], []
        for due, raw in zip(dues, diag.ask([due.request for due in dues]), strict=True):
            answer = parse(raw)
            if answer is None or answer.timer != TIMER_TIME_WAIT:
                self._end(family, due, Reason.REUSED if answer and answer.state != TCP_LISTEN else Reason.UNKNOWN)
                continue
            over = self._over(class_, due, answer, limits)
            if over < -TOLERANCE:
                self._keep(class_, family, due, answer, over)
            elif self._end(family, due, self._reason):
                condemned.append(destroy_request(due.request, answer.cookie))
                late.append(over)
        refused = diag.destroy(condemned)
        self.errors += refused
        for over in late:
            self.lateness[class_].add(max(0.0, over))
        return len(condemned) - refused

    def _over(self, class_: Class, due: Due, answer: Answer, limits: Limits) -> float:
        """Seconds that a mini-socket is over its limit, by the kernel's own timer; negative if it is not."""
        if answer.state == TCP_FIN_WAIT2:
            return self._fin_timeout(due.netns) - answer.left - limits.fin_wait2[class_]
        return KERNEL_TIME_WAIT - answer.left - limits.time_wait[class_]

    def _keep(self, class_: Class, family: str, due: Due, answer: Answer, over: float) -> None:
        """Come back to a mini-socket that is not due: its timer was restarted, or it is still in FIN_WAIT2.

        Where the probe sees restarts, the vestige moves with them, and a walk will find it in its new place.
        """
        unseen = answer.state == TCP_FIN_WAIT2 and self._table.probe != "fentry"
        wait = min(-over, FIN_WAIT2_POLL) if unseen else -over
        if wait < KERNEL_TIME_WAIT:
            heapq.heappush(self._waiting[class_], (time.monotonic() + wait, family, due))

    def _end(self, family: str, due: Due, reason: Reason) -> bool:
        return self._finish.run(FAMILIES.index(family), due.line, due.position, due.word, reason) == 1


def drain(reaper: Reaper, classes: Sequence[Class], older_than: float) -> dict[Class, int]:
    """Destroy the TIME_WAIT sockets that are older than so many seconds, in the order of `classes`, oldest first.

    Sockets in FIN_WAIT2 stay: their peer's FIN is still to come.
    """
    limits = Limits(dict.fromkeys(Class, older_than), dict.fromkeys(Class, math.inf))
    drained = dict.fromkeys(classes, 0)
    for class_ in classes:
        wait = 0.0
        while not wait:
            destroyed, wait = reaper.reap(class_, limits, DRAIN_BATCH)
            drained[class_] += destroyed
    return drained


def parse(raw: bytes) -> Answer | None:
    """Read the kernel's answer to an exact-match request; None if it has no such socket."""
    if HEADER.unpack_from(raw)[1] != 20:  # noqa: PLR2004 - SOCK_DIAG_BY_FAMILY; else NLMSG_ERROR, ENOENT
        return None
    left = struct.unpack_from("=I", raw, HEADER.size + 52)[0] / 1000
    return Answer(raw[HEADER.size + 1], raw[HEADER.size + 2], left, raw[HEADER.size + 44 : HEADER.size + 52])


def destroy_request(request: bytes, cookie: bytes) -> bytes:
    """Turn the request for a socket into the one that destroys it (SOCK_DESTROY), if it still has this cookie."""
    return request[:4] + struct.pack("=H", 21) + request[6 : REQUEST_BYTES - 8] + cookie
