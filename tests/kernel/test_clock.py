"""The table after hours, days and weeks: walks, sweeps, expiry, ages, lanes and counters still say the same."""

import dataclasses
import errno
import itertools
import os
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from tests.load.clock import Batch, Machine, machine
from tests.load.programs import SMALL
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.linux.procfs import SocketBytes
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sockdiag_messages import NLMSG_ERROR
from twctl.modes.dry_run import freed
from twctl.modes.reconcile import Reconciler
from twctl.modes.truncate import Limits, Reaper, drain
from twctl.table.counters import DROPPED, TICK, Reason

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
HOUR, DAY = 3600, 86_400
TIMES = {Class.LOOPBACK: 2.0, Class.LOCAL: 10.0, Class.REMOTE: 60.0}
EVERYWHERE = list(itertools.product(Class, FAMILIES))
NOT_THERE = struct.pack("=IHHIIi", 20, NLMSG_ERROR, 0, 0, 0, -errno.ENOENT)
CENTURY = 2**24 * TICK  # what 24 bits of a tick can tell, 13 days


def folder(name: str) -> Path:
    """For pins."""
    return Path(f"/sys/fs/bpf/twctl-test-{name}-{os.getpid()}")


@pytest.fixture(scope="module")
def table() -> Iterator[Machine]:
    """Small pools and a daemon's sweeps; the tests share it, and its time goes on."""
    with machine(folder("clock")) as made:
        yield made


@pytest.fixture
def clock(table: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The table at the time that it has."""
    table.patch(monkeypatch)
    return table


@pytest.fixture
def deserted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A table whose daemon is gone: the probes go on alone."""
    with machine(folder("deserted"), sweeping=False) as made:
        made.patch(monkeypatch)
        yield made


@pytest.mark.parametrize("ticks", [2**15, 2**16, 2**24, 2**25, 2**26])
def test_the_dead_of_long_ago_are_neither_young_nor_alive(clock: Machine, ticks: int) -> None:
    """When 15, 16 or 24 bits of a tick have come round, those who enter live and have their age, and nobody else."""
    for class_, family in EVERYWHERE:
        clock.enter(class_, 60, N, family)
    clock.look_closely()
    clock.forward((ticks - 30) * TICK)
    for class_, family in EVERYWHERE:
        clock.enter(class_, 60, 29, family)
    clock.look_closely()
    clock.forward(11)
    clock.look_closely()
    would = freed(clock.table.vestiges(), TIMES, range(40_000, 40_001), SocketBytes(256, 256))
    assert (4 * 29, 6 * 29) == (would["truncate"].sessions, would["vestigial"].sessions)
    clock.forward(60)
    clock.look()
    assert not clock.batches


def test_a_sweep_leaves_no_word_of_those_who_have_expired(clock: Machine) -> None:
    """Zero is free space; those who live keep their words."""
    clock.enter(Class.REMOTE, 60, N)
    clock.forward(30)
    clock.enter(Class.REMOTE, 60, 29)
    clock.forward(40)
    Reconciler(clock.table, {}).sweep()
    assert [29, 0] == [sum(word != 0 for word in clock.table.words(family)) for family in FAMILIES]
    clock.look()
    clock.forward(60)


class Nobody:
    """A sock_diag socket of a kernel that has none of the sockets asked for (ENOENT)."""

    def __init__(self) -> None:
        self.asked = 0

    def ask(self, requests: Sequence[bytes]) -> list[bytes]:
        """Each is not there."""
        self.asked += len(requests)
        return [NOT_THERE] * len(requests)

    def destroy(self, requests: Sequence[bytes]) -> int:
        """Nothing is to be destroyed."""
        assert not requests
        return 0


def asked(clock: Machine, limit: float, *, draining: bool) -> int:
    """How many sockets mode truncate, or a drain of what is older than that (s), asks the kernel for."""
    nobody = Nobody()
    reaper = Reaper(clock.table, {0: cast("SockDiag", nobody)}, Reason.DRAINED)
    if draining:
        drain(reaper, list(Class), limit)
    for class_ in () if draining else Class:
        reaper.reap(class_, Limits(dict.fromkeys(Class, limit), dict.fromkeys(Class, limit)), 10_000)
    return nobody.asked


@pytest.mark.vm("tracepoint")
@pytest.mark.parametrize("draining", [False, True])
@pytest.mark.parametrize("ticks", [2**15, 2**16, 2**24])
def test_a_walk_passes_over_the_dead_of_long_ago(clock: Machine, ticks: int, *, draining: bool) -> None:
    """Those whose start, as far as its bits can tell, is younger than what is due."""
    clock.enter(Class.LOOPBACK, 0.1, 97)
    clock.forward(ticks * TICK - 1)
    living = clock.enter(Class.LOOPBACK, 60, N)
    clock.forward(2)
    assert asked(clock, 1.5, draining=draining) == N
    finish(clock, living)


@pytest.mark.parametrize("draining", [False, True])
def test_a_walk_passes_over_those_who_have_just_ended(clock: Machine, *, draining: bool) -> None:
    """However few have entered since."""
    ended = clock.enter(Class.LOOPBACK, 60, 97)
    for _ in range(97):
        clock.end(ended, Reason.RESET)
    living = clock.enter(Class.LOOPBACK, 60, 5)
    clock.forward(2)
    assert asked(clock, 1.5, draining=draining) == 5
    finish(clock, living)


def test_nobody_comes_back_to_more_than_there_is_room_for(clock: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer can have timers started anew: what waits for another look is bounded, and what is left out counted."""
    monkeypatch.setattr("twctl.modes.truncate.WAITING", 5)
    living = clock.enter(Class.LOOPBACK, 60, N)
    clock.forward(1)
    for _ in range(11):
        clock.restart(living, 60)
    nobody = Nobody()
    reaper = Reaper(clock.table, {0: cast("SockDiag", nobody)}, Reason.TRUNCATED)
    limits = Limits(dict.fromkeys(Class, 1.5), dict.fromkeys(Class, 1.5))
    reaper.reap(Class.LOOPBACK, limits, 10_000)
    clock.forward(0.8)
    reaper.reap(Class.LOOPBACK, limits, 10_000)
    assert (N - 11, 6) == (nobody.asked, reaper.passed_over)
    clock.forward(1)
    reaper.reap(Class.LOOPBACK, limits, 10_000)
    assert N - 6 == nobody.asked
    clock.look_closely()
    clock.forward(70)
    clock.look()


def finish(clock: Machine, batch: Batch) -> None:
    """Those of which the kernel has no socket live on until they expire; all others are over."""
    assert batch in clock.batches
    clock.look_closely()
    clock.forward(70)
    clock.look()


def heads(clock: Machine) -> list[int]:
    """Slots that each ring has handed out."""
    return [clock.table.ring(class_, family)[0] for class_, family in EVERYWHERE]


@pytest.mark.vm("tracepoint")
def test_a_timer_that_starts_anew_takes_no_slot_and_is_counted_once(clock: Machine) -> None:
    """A session whose timer starts 1009 times, in one tick and in others, stays in its slot, and so do the others."""
    clock.enter(Class.LOCAL, 10, 101, "ipv6")
    others = clock.enter(Class.LOCAL, 120, 101)
    mine = clock.enter(Class.LOCAL, 10, 1)
    before = heads(clock)
    for i in range(1009):
        mine = clock.restart(mine, 10 + i % 3)
        clock.forward((i % 5) * TICK / 4)
    clock.look_closely()
    assert before == heads(clock)
    assert [101, 1] == [batch.count for batch in clock.batches]
    clock.forward(8)
    clock.look_closely()
    clock.forward(10)
    clock.look()
    assert [others] == clock.batches
    clock.forward(120)
    clock.look()


@pytest.mark.vm("tracepoint")
def test_a_ring_full_of_translated_sessions_keeps_both_tuples_of_each(
    clock: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes two slots, also the last and the first; the oldest goes with both, and nobody has another's."""
    monkeypatch.setattr(clock, "translating", 1)
    capacity = SMALL[Class.LOOPBACK]
    for family in FAMILIES:
        mine = [clock.enter(Class.LOOPBACK, 60, family=family) for _ in range(2 * capacity)]
        for gone in mine[: -(capacity // 2)]:
            clock.batches.remove(gone)
            clock.ended[Class.LOOPBACK, Reason.EVICTED] += 1
        clock.look_closely()
    clock.forward(120)
    clock.look()


@pytest.mark.vm("tracepoint")
def test_a_ring_that_comes_round_to_a_slot_whose_timer_was_restarted_evicts_it(
    clock: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long ago the block of its entry has expired."""
    monkeypatch.setattr(clock, "translating", 0)
    mine = clock.enter(Class.LOOPBACK, 2)
    for _ in range(7):
        clock.forward(1.5)
        mine = clock.restart(mine, 2)
    for _ in range(5):  # 255 in all
        clock.enter(Class.LOOPBACK, 0.1, 51)
        clock.forward(0.3)
        mine = clock.restart(mine, 2)
    clock.look_closely()
    assert [mine] == clock.batches
    clock.enter(Class.LOOPBACK, 2)
    clock.batches.remove(mine)
    clock.ended[Class.LOOPBACK, Reason.EVICTED] += 1
    clock.look_closely()
    clock.forward(10)
    clock.look()


def test_a_fin_that_ends_fin_wait2_changes_the_word_alone(clock: Machine) -> None:
    """Substate, next sequence number and time change at once, as a reader finds them."""
    waiting = clock.enter(Class.LOCAL, 60, fin_wait2=True)
    number = waiting.first
    [before] = clock.table.vestiges()
    clock.forward(5)
    clock.restart(waiting, 60)
    [after] = clock.table.vestiges()
    assert ("FIN_WAIT2", number) == (before.substate, before.rcv_nxt)
    assert ("TIME_WAIT", number + 1) == (after.substate, after.rcv_nxt)
    clock.look_closely()
    clock.forward(70)
    clock.look()


@pytest.mark.vm("tracepoint")
def test_without_a_daemon_entries_sweep(deserted: Machine) -> None:
    """Forty days of a session every two hours: nobody lives longer than his time, and each is found again."""
    for _ in range(40 * 12):
        session = deserted.enter(Class.REMOTE, 60)
        deserted.forward(30)
        deserted.restart(session, 60)
        deserted.look()
        deserted.forward(2 * HOUR)
    assert deserted.table.is_believed()
    deserted.look()


def test_words_that_nobody_swept_for_as_long_as_they_can_tell_are_not_believed(deserted: Machine) -> None:
    """After 13 days without an entry the old words would live again; a daemon that starts zeroes them first."""
    deserted.enter(Class.REMOTE, 60, N)
    deserted.forward(CENTURY - 30)
    assert not deserted.table.is_believed()
    deserted.look()
    session = deserted.enter(Class.REMOTE, 60)
    with pytest.raises(AssertionError):  # it is not found, either: nothing is believed
        deserted.restart(session, 60)
    Reconciler(deserted.table, {}).round(end=False)
    assert deserted.table.is_believed()
    assert 0 == sum(deserted.walked().values())
    assert N + 1 == deserted.table.counters().get("dropped", DROPPED.index("unswept"))


@dataclasses.dataclass(frozen=True)
class Day:
    """Sessions that enter in 24 hours, looks at the table, and the most that live at a time."""

    entries: int
    looks: int
    most: int


HOURS = [1, 0, 0, 2, 9, 3, 1, 4, 2, 2, 1, 0, 6, 1, 3, 2, 1, 1, 8, 2, 0, 1, 2, 1]  # quiet ones, and storms
STEPS = 10  # of some seconds, before each look


def live(clock: Machine, day: Day) -> Iterator[int]:
    """Sessions of every class, family and length of life enter, start anew and end. Yields how many entered."""
    chance, entered, weights = random.Random(4711), 0, 0.0  # noqa: S311 - a test
    start, total = clock.ns, sum(HOURS) / 24 * day.looks
    for look in range(day.looks):
        weights += HOURS[look * 24 // day.looks]
        for step in range(STEPS):
            wanted = round(day.entries * (weights / total)) - entered
            room = day.most - sum(clock.living().values())
            count = min(room, wanted if step == STEPS - 1 else chance.randint(0, max(0, wanted)))
            if count > 0:
                class_, family = chance.choice(EVERYWHERE)
                life = chance.choice([TIMES[class_], TIMES[class_], 60.0, chance.uniform(0, 1000)])
                entered += clock.enter(class_, life, count, family).count
            change(clock, chance)
            clock.forward(chance.uniform(0, 9))
        clock.look()
        yield entered
        clock.forward(max(0, (start + (look + 1) * DAY * 10**9 // day.looks - clock.ns) / 1e9))


def change(clock: Machine, chance: random.Random) -> None:
    """Some of those who live start their timers anew, or end."""
    living = [batch for batch in clock.batches if batch.count and batch.lives(clock.tick)]
    for batch in chance.sample(living, min(3, len(living))):
        if chance.random() < 0.5:
            clock.restart(batch, chance.choice([TIMES[batch.class_], 60.0]))
        else:
            clock.end(batch, chance.choice([Reason.RESET, Reason.REUSED, Reason.TRUNCATED, Reason.UNKNOWN]))


def test_a_day_leaves_table_expectation_and_counters_alike(monkeypatch: pytest.MonkeyPatch, *, long: bool) -> None:
    """At every look, through quiet hours and storms; with --long ten million sessions."""
    day = Day(10_000_000, 720, 60_000) if long else Day(50_021, 48, 1000)
    capacity = 262_144 if long else 4096  # no ring comes round to one that lives, no line is full
    with machine(folder("day"), sizes=dict.fromkeys(FAMILIES, dict.fromkeys(Class, capacity))) as clock:
        clock.patch(monkeypatch)
        entered = list(live(clock, day))[-1]
        assert entered >= 0.95 * day.entries
        clock.look_closely()
        translated = entered // clock.translating
        assert entered + translated == sum(clock.table.ring(*each)[0] for each in EVERYWHERE)
        clock.forward(1200)
        clock.look()
        assert entered == sum(clock.ended.values())
