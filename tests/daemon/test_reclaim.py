"""Truncating and draining, with a reaper of a test's own."""

from typing import cast

from twctl.classes import Class
from twctl.daemon.reclaim import PRESSURE_SECONDS, TRUNCATE_SECONDS, Draining, Truncating
from twctl.linux.pressure import Pressure
from twctl.modes.truncate import Limits, Reaper

TIMES = {Class.LOOPBACK: 2.0, Class.LOCAL: 10.0, Class.REMOTE: 60.0}


class FakeReaper:
    """So many sockets of each class are due; the next in so many seconds."""

    def __init__(self, due: dict[Class, int], wait: dict[Class, float]) -> None:
        self.due, self.wait, self.asked = due, wait, list[Class]()

    def reap(self, class_: Class, _limits: Limits, most: int) -> tuple[int, float]:
        """Destroy some."""
        self.asked.append(class_)
        done = min(self.due[class_], most)
        self.due[class_] -= done
        return done, self.wait[class_]


class FakePressure:
    """Short of memory, or not."""

    def __init__(self, *, short: bool) -> None:
        self.short = short

    def now(self) -> bool:
        """As the test says."""
        return self.short


def test_truncating_comes_back_when_the_next_is_due() -> None:
    """Of any class, and not all the time."""
    reaper = FakeReaper(dict.fromkeys(Class, 0), {Class.LOOPBACK: 1.5, Class.LOCAL: 0.7, Class.REMOTE: 60.0})
    task = Truncating(cast("Reaper", reaper), Limits(TIMES, TIMES))
    assert 0.7 == task.run()
    assert list(Class) == reaper.asked
    reaper.wait[Class.LOCAL] = 0.0
    assert TRUNCATE_SECONDS == task.run()


def draining(reaper: FakeReaper, *, short: bool) -> Draining:
    """The task."""
    pressure = cast("Pressure", FakePressure(short=short))
    return Draining(cast("Reaper", reaper), pressure)


def test_draining_takes_the_nearest_class_first() -> None:
    """A batch at a time, and stops where none is left."""
    reaper = FakeReaper({Class.LOOPBACK: 5, Class.LOCAL: 3, Class.REMOTE: 0}, dict.fromkeys(Class, 0.0))
    task = draining(reaper, short=True)
    assert [TRUNCATE_SECONDS, TRUNCATE_SECONDS, PRESSURE_SECONDS] == [task.run() for _ in range(3)]
    assert [0, 0, 1, 0, 1, 2] == reaper.asked


def test_nothing_is_drained_while_there_is_memory() -> None:
    """It asks again soon."""
    reaper = FakeReaper(dict.fromkeys(Class, 7), dict.fromkeys(Class, 0.0))
    assert PRESSURE_SECONDS == draining(reaper, short=False).run()
    assert [] == reaper.asked
