"""Destroy TIME_WAIT sockets over sock_diag: those whose class's time is up, and the oldest when memory is low.

A live connection is never destroyed: the kernel is first asked for exactly this tuple, and only what it says is a
mini-socket in TIME_WAIT (or in FIN_WAIT2, and due) is destroyed, with the cookie that came with the answer. A
connection that took the tuple in between has another cookie, and the kernel refuses.
"""

import dataclasses
import heapq
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sockdiag_messages import TIMER_TIME_WAIT, Answer, destroy_request, read_answer
from twctl.linux.tcp import KERNEL_TIME_WAIT, TCP_FIN_WAIT2, TCP_LISTEN
from twctl.modes.histogram import Histogram
from twctl.table.counters import TICK, Reason
from twctl.table.maps import Table
from twctl.table.shared import STRUCTS

DUES_BYTES, DUES_AT = STRUCTS["dues"].size, STRUCTS["dues"].fields["due"].offset
DUES_HEADER = STRUCTS["dues"].packer(("next", "count", "wait"))
DUE = STRUCTS["due"].packer(("request", "entry", "word", "line", "index", "netns", "wait", "age"), raw=("request",))
END = 2**64 - 1  # of a ring: no entry has this number
# The walk waits for one tick more than a class's time: the start of a session is rounded down to a tick (TICK s).
ROUNDING_TICKS = 1
# The kernel tells what is left of a timer in whole jiffies (at most 10 ms). s
TOLERANCE = 0.01
# How often a FIN_WAIT2 socket is looked at again: its own time is not yet over, and its FIN makes it another. s
FIN_WAIT2_POLL = 1.0
# Sockets destroyed in one go, some 10 ms of work.
DRAIN_BATCH = 1024
# So many entries of a class, 120 bytes each, can wait for another look; what is beyond that is left to the kernel.
WAITING = 65_536
LATENESS_EDGES = (0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 15.0)  # s; none is a class's time


class Due(NamedTuple):
    """struct due: number of an entry, the request for exactly this socket, and where its vestige's index word stands.

    wait: ticks until it is to be looked at again; 0: it is due. age: ticks since its timer was started.
    """

    request: bytes
    entry: int
    word: int
    line: int
    position: int
    netns: int
    wait: int
    age: int


class Walked(NamedTuple):
    """What `collect` found among some entries of a ring, from the oldest on.

    looked: entries looked at; next: number of the entry at which to go on; wait: ticks until the one at which the walk
    stopped is due, 0: it did not stop; dues: those that are, or that somebody is to come back to.
    """

    looked: int
    next: int
    wait: int
    dues: list[Due]


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a class's sessions may stay in TIME_WAIT and FIN_WAIT2 (inf: as long as the kernel lets them)."""

    time_wait: Mapping[Class, float]
    fin_wait2: Mapping[Class, float]


class Reaper:
    """Walks the rings from their oldest session on and destroys those that are over their limits.

    diags: sock_diag sockets by index of the namespace, as they are now. reason: what the ends are counted as.
    lateness: by class; errors: sockets that the kernel did not destroy, for they were gone or another connection's;
    passed_over: sessions that nobody comes back to, as too many others wait. takes: whether a session of a family is
    wanted at all. dry: only count, destroy nothing.

    A session that the kernel has no socket of is left alone: it may be the guard's, or its socket be bound to a device,
    which sock_diag finds only for who names that (inet_diag_find_one_icsk). What is gone the comparison ends.
    """

    def __init__(
        self,
        table: Table,
        diags: Mapping[int, SockDiag],
        reason: Reason,
        *,
        takes: Callable[[str, Due], bool] = lambda *_: True,
        dry: bool = False,
    ) -> None:
        self._takes, self._dry = takes, dry
        self._table = table
        self._diags = diags
        self._reason = reason
        self._collect, self._finish = table.program("collect"), table.program("finish")
        self._dues = table.map("dues_map", DUES_BYTES)
        self._tails: dict[tuple[Class, str], int] = {}
        # What was not due when the walk passed it: when to look again (monotonic), and at which entry. Heaps.
        self._waiting: dict[Class, list[tuple[float, str, int]]] = {class_: [] for class_ in Class}
        self.lateness = {class_: Histogram(LATENESS_EDGES) for class_ in Class}
        self.errors = self.passed_over = 0

    def reap(self, class_: Class, limits: Limits, most: int, *, in_order: bool = True) -> tuple[int, float]:
        """Destroy what is due of a class, at most about `most` sockets; meanwhile nobody else does (Table.exclusive).

        Returns how many were destroyed, and seconds until the next can be due. in_order: a session that is too young
        ends the walk; without it each one is looked at, wherever it stands.
        """
        with self._table.exclusive():
            return self._reap(class_, limits, most, in_order=in_order)

    def _reap(self, class_: Class, limits: Limits, most: int, *, in_order: bool) -> tuple[int, float]:
        least = min(limits.time_wait[class_], limits.fin_wait2[class_])
        destroyed, wait = self._revisit(class_, limits, least, most), max(least, TICK)
        for family in FAMILIES:
            if destroyed >= most:
                return destroyed, 0.0
            for dues, until in self._walk(class_, family, least, in_order=in_order):
                wait = min(wait, until)
                destroyed += self._handle(class_, family, dues, limits)
                if destroyed >= most:
                    return destroyed, 0.0
        if self._waiting[class_]:
            wait = min(wait, max(0.0, self._waiting[class_][0][0] - time.monotonic()))
        return destroyed, wait

    def _walk(self, class_: Class, family: str, limit: float, *, in_order: bool) -> Iterator[tuple[list[Due], float]]:
        """Yield what is older than `limit` (s), oldest first, and seconds until the next one will be (inf: unknown)."""
        head, _, capacity = self._table.ring(class_, family)[:3]
        tail = max(self._tails.get((class_, family), 0), head - capacity)
        while tail < head:
            walked = self._collect_dues(class_, family, (tail, END), _ticks(limit), in_order=in_order)
            self._tails[class_, family] = tail = walked.next
            yield walked.dues, walked.wait * TICK or math.inf
            if walked.wait or not walked.looked:
                return

    def take_up(self, marks: Mapping[tuple[Class, str], int], limits: Limits) -> None:
        """Destroy what is due among the entries since `marks` (entry numbers), and come back to the rest in time.

        This is for sessions that a comparison with the kernel put into the table: they are older than their places in
        the ring say, so the walk would come to them too late. To be called where nobody else uses the dues
        (Table.exclusive), as in a comparison.
        """
        for (class_, family), mark in marks.items():
            least = min(limits.time_wait[class_], limits.fin_wait2[class_])
            if least >= KERNEL_TIME_WAIT:
                continue
            head, tail, looked = self._table.ring(class_, family)[0], mark, 1
            while tail < head and looked:
                looked, tail, _, dues = self._collect_dues(class_, family, (tail, END), _ticks(least), in_order=False)
                self._handle(class_, family, dues, limits)

    def _collect_dues(
        self, class_: Class, family: str, entries: tuple[int, int], least: int, *, in_order: bool
    ) -> Walked:
        """Run the program `collect` (bpf/observe/due.h) from an entry on, up to another. least: age, in ticks."""
        looked = self._collect.run(FAMILIES.index(family), class_, *entries, least, in_order)
        following, count, wait = DUES_HEADER.unpack_from(self._dues)
        dues = [Due._make(DUE.unpack_from(self._dues, DUES_AT + i * DUE.size)) for i in range(count)]
        return Walked(looked, following, wait, dues)

    def _revisit(self, class_: Class, limits: Limits, least: float, most: int) -> int:
        """Look again at what was not due."""
        waiting, now, destroyed = self._waiting[class_], time.monotonic(), 0
        while waiting and waiting[0][0] <= now and destroyed < most:
            dues: dict[str, list[Due]] = {family: [] for family in FAMILIES}
            for _ in range(DRAIN_BATCH):
                if not waiting or waiting[0][0] > now:
                    break
                _, family, entry = heapq.heappop(waiting)
                at = entry, entry + 1
                dues[family] += self._collect_dues(class_, family, at, _ticks(least), in_order=False).dues
            destroyed += sum(self._handle(class_, family, found, limits) for family, found in dues.items())
        return destroyed

    def _handle(self, class_: Class, family: str, dues: list[Due], limits: Limits) -> int:
        for due in dues:
            if due.wait:
                self._come_back(class_, family, due.entry, due.wait * TICK)
        destroyed, dues = 0, [due for due in dues if not due.wait and self._takes(family, due)]
        for netns in {due.netns for due in dues}:
            mine = [due for due in dues if due.netns == netns]
            if netns in self._diags:
                destroyed += self._handle_in(self._diags[netns], class_, family, mine, limits)
        return destroyed

    def _handle_in(self, diag: SockDiag, class_: Class, family: str, dues: list[Due], limits: Limits) -> int:
        condemned, late = [], []
        for due, raw in zip(dues, diag.ask([due.request for due in dues]), strict=True):
            answer = read_answer(raw)
            if answer is None or answer.timer != TIMER_TIME_WAIT:
                if answer and answer.state != TCP_LISTEN and not self._table.guard:
                    self._end(family, due, Reason.REUSED)
                continue
            over = self._over(class_, due, answer, limits)
            if over < -TOLERANCE:
                self._keep(class_, family, due, answer, over)
            elif self._end(family, due, self._reason):
                condemned.append(destroy_request(due.request, answer.cookie))
                late.append(over)
        refused = 0 if self._dry else diag.destroy(condemned)
        self.errors += refused
        for over in late:
            self.lateness[class_].add(max(0.0, over))
        return len(condemned) - refused

    def _over(self, class_: Class, due: Due, answer: Answer, limits: Limits) -> float:
        """Seconds that a mini-socket is over its limit; negative if it is not.

        By the kernel's own timer, but in FIN_WAIT2, where nothing tells how long that was to be (TCP_LINGER2).
        """
        if answer.state == TCP_FIN_WAIT2:
            return float((due.age - ROUNDING_TICKS) * TICK) - limits.fin_wait2[class_]
        return KERNEL_TIME_WAIT - answer.left - limits.time_wait[class_]

    def _keep(self, class_: Class, family: str, due: Due, answer: Answer, over: float) -> None:
        """Come back to a mini-socket that is not due: its timer was restarted, or it is still in FIN_WAIT2."""
        wait = min(-over, FIN_WAIT2_POLL) if answer.state == TCP_FIN_WAIT2 else -over
        if wait < KERNEL_TIME_WAIT:
            self._come_back(class_, family, due.entry, wait)

    def _come_back(self, class_: Class, family: str, entry: int, seconds: float) -> None:
        waiting = self._waiting[class_]
        if len(waiting) < WAITING:
            heapq.heappush(waiting, (time.monotonic() + seconds, family, entry))
        else:
            self.passed_over += 1

    def _end(self, family: str, due: Due, reason: Reason) -> bool:
        return self._dry or self._finish.run(FAMILIES.index(family), due.line, due.position, due.word, reason) == 1


def drain(reaper: Reaper, classes: Sequence[Class], older_than: float) -> dict[Class, int]:
    """Destroy the TIME_WAIT sockets that are older than so many seconds, in the order of `classes`, oldest first.

    A batch at a time: a daemon waits for the table. Sockets in FIN_WAIT2 stay: their peer's FIN is still to come.
    """
    limits = Limits(dict.fromkeys(Class, older_than), dict.fromkeys(Class, math.inf))
    drained = dict.fromkeys(classes, 0)
    for class_ in classes:
        destroyed = DRAIN_BATCH
        while destroyed >= DRAIN_BATCH:
            destroyed, _ = reaper.reap(class_, limits, DRAIN_BATCH, in_order=False)
            drained[class_] += destroyed
    return drained


def _ticks(limit: float) -> int:
    """The least age, in ticks, of what is older than so many seconds."""
    return math.ceil(limit / TICK) + ROUNDING_TICKS if limit else 0
