"""The loop: tasks when they are due, sources when they tell of something, and what each signal does."""

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from twctl.daemon import loop as module
from twctl.daemon.loop import Heartbeat, Task, loop, signals
from twctl.linux.signals import SIGNALS, put_off


@dataclass
class Counting:
    """A task that is done so many times, and then asks for the end."""

    times: int
    end: Callable[[], object]
    done: int = 0

    def run(self) -> float:
        """Count."""
        self.done += 1
        if self.done == self.times:
            self.end()
        return 0.0


@dataclass
class Pipe:
    """A source: what it has read."""

    ends: tuple[int, int] = field(default_factory=os.pipe)
    handled: list[bytes] = field(default_factory=list)
    since: list[float] = field(default_factory=list)

    def fileno(self) -> int:
        """The reading end."""
        return self.ends[0]

    def handle(self, since: float) -> None:
        """Read."""
        self.since.append(since)
        self.handled.append(os.read(self.ends[0], 64))


def ask(number: signal.Signals) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), number)


def never() -> str | None:
    """No configuration follows."""
    return None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(number: signal.Signals) -> None:
    """After the tasks that were due before."""
    task = Counting(23, lambda: ask(number))
    with signals() as asked:
        assert loop(asked, [], [task], never) is None
    assert task.done == 23


def test_hangup_goes_on_with_the_configuration_that_it_brings() -> None:
    """The first one cannot be used, so the loop goes on; with the second it ends."""
    answers = [None, "another"]
    task = Counting(7, lambda: ask(signal.SIGHUP))
    other = Counting(13, lambda: ask(signal.SIGHUP))
    with signals() as asked:
        assert "another" == loop(asked, [], [task, other], lambda: answers.pop(0))
    assert [] == answers


def test_a_task_can_bring_what_it_goes_on_with() -> None:
    """As soon as it is done."""
    task = Counting(7, never)
    with signals() as asked:
        found = loop(asked, [], [task], never, lambda: "another" if task.done == 7 else None)
    assert ("another", 7) == (found, task.done)


def test_a_source_is_handled_when_it_has_something() -> None:
    """And not before."""
    source = Pipe()
    tasks: list[Task] = [
        Counting(3, lambda: os.write(source.ends[1], b"change")),
        Counting(11, lambda: ask(signal.SIGTERM)),
    ]
    try:
        with signals() as asked:
            loop(asked, [source], tasks, never)
        assert [b"change"] == source.handled
    finally:
        for end in source.ends:
            os.close(end)


def test_a_source_is_told_how_long_at_most_its_change_has_waited() -> None:
    """Where the loop was asleep, since it woke up; where a task kept it busy, since it looked before that."""
    source = Pipe()

    class Slow(Counting):
        def run(self) -> float:
            if not self.done:
                os.write(source.ends[1], b"change")
                time.sleep(0.2)
            return super().run() or 0.2

    def later() -> None:
        os.write(source.ends[1], b"change")

    start, timer = time.monotonic(), threading.Timer(0.3, later)
    tasks: list[Task] = [Slow(5, lambda: ask(signal.SIGTERM))]
    try:
        with signals() as asked:
            timer.start()
            loop(asked, [source], tasks, never)
        busy, asleep = source.since
        assert busy - start < 0.2
        assert asleep - start >= 0.3
    finally:
        timer.join()
        for end in source.ends:
            os.close(end)


def test_a_task_that_is_done_for_good_is_not_run_again() -> None:
    """It said that it is due in an infinite time."""

    class Once(Counting):
        def run(self) -> float:
            super().run()
            return math.inf

    once, other = Once(0, never), Counting(5, lambda: ask(signal.SIGTERM))
    with signals() as asked:
        loop(asked, [], [once, other], never)
    assert (1, 5) == (once.done, other.done)


def test_signals_are_as_before_afterwards() -> None:
    """Handlers, and where Python writes their numbers."""
    before = [signal.getsignal(number) for number in SIGNALS]
    with signals() as asked:
        assert isinstance(asked, socket.socket)
    assert before == [signal.getsignal(number) for number in SIGNALS]
    assert -1 == signal.set_wakeup_fd(-1)


def test_a_loop_that_goes_round_is_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a minute has passed without a beat."""
    now = [1000.0]
    monkeypatch.setattr("twctl.daemon.loop.time.monotonic", lambda: now[0])
    heart = Heartbeat()
    now[0] += module.HANGING_SECONDS - 1
    assert heart.healthy()
    now[0] += 2
    assert not heart.healthy()
    assert module.BEAT_SECONDS == heart.run()
    assert heart.healthy()


def test_a_signal_that_was_put_off_is_heard() -> None:
    """One that came while the process was made ready."""
    with put_off():
        signal.raise_signal(signal.SIGTERM)
        with signals() as asked:
            assert bytes([signal.SIGTERM]) == asked.recv(1)
