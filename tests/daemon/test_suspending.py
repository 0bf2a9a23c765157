"""When the guard is suspended and resumed, over namespaces that only take note."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from twctl.daemon import suspending as module
from twctl.daemon.discovery import Discovery
from twctl.daemon.suspending import LOOK_SECONDS, STEP_SECONDS, Suspending
from twctl.modes.obstacles import Obstacle

NAT, XDP = Obstacle("nat", "NAT"), Obstacle("xdp", "XDP")


class FakeNotices:
    """Of one namespace, by its path."""

    changed: set[str]
    closed: list[str]

    def __init__(self, path: str) -> None:
        self.path = path

    def take(self) -> bool:
        """Whether rules have changed, once."""
        told = self.path in self.changed
        self.changed.discard(self.path)
        return told

    def close(self) -> None:
        """See RuleNotices."""
        self.closed.append(self.path)


class FakeNamespace:
    """Known by its path."""

    def __init__(self, path: str) -> None:
        self.name = self.path = path
        self.guard = SimpleNamespace(disturbed=False, witnessed=False)


class FakeNamespaces(list[FakeNamespace]):
    """Some, and which of them are suspended."""

    def __init__(self, *paths: str) -> None:
        super().__init__(map(FakeNamespace, paths))
        self.suspended: set[FakeNamespace] = set()
        self.done: list[tuple[str, str]] = []
        self.watched: list[str] = []
        self.sessions = (0, 0)

    def witnessed(self, _: FakeNamespace) -> tuple[int, int, int]:
        """See Namespaces."""
        return *self.sessions, 0

    def suspend(self, namespace: FakeNamespace) -> list[str]:
        """See Namespaces."""
        self.suspended.add(namespace)
        self.done.append(("suspend", namespace.path))
        return []

    def watch(self, namespace: FakeNamespace, *, guarded: bool) -> None:
        """See Namespaces."""
        assert guarded
        assert namespace not in self.suspended
        self.watched.append(namespace.path)

    def resume(self, namespace: FakeNamespace) -> None:
        """See Namespaces."""
        self.suspended.discard(namespace)
        self.done.append(("resume", namespace.path))


class Watch:
    """The task, what there is to find, and the clock."""

    def __init__(self, *paths: str) -> None:
        self.namespaces = FakeNamespaces(*paths)
        self.left_alone = Counter[str]()
        obstacles = self.left_alone.copy
        discovery = SimpleNamespace(namespaces=self.namespaces, attend=self.attend, obstacles=obstacles)
        self.task = Suspending(cast("Discovery", discovery))
        self.found: dict[str, list[Obstacle]] = {}
        self.looked: list[str] = []
        self.now = 100.0

    @staticmethod
    def attend(namespace: FakeNamespace, work: Callable[[FakeNamespace], None]) -> None:
        """See Discovery."""
        work(namespace)

    def obstacles(self, path: str) -> list[Obstacle]:
        """What a look finds."""
        self.looked.append(path)
        return self.found.get(path, [])

    def after(self, seconds: float) -> None:
        """Time passes, and the task has its turns."""
        end = self.now + seconds
        while self.now < end:
            self.now += STEP_SECONDS
            self.task.run()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Two namespaces, known for a while."""
    made = Watch("a", "b")
    FakeNotices.changed, FakeNotices.closed = set(), []
    monkeypatch.setattr(module, "RuleNotices", FakeNotices)
    monkeypatch.setattr(module, "obstacles", made.obstacles)
    monkeypatch.setattr("time.monotonic", lambda: made.now)
    monkeypatch.setattr("time.thread_time", lambda: 0.0)
    made.task.run()
    return made


def test_each_namespace_is_looked_at_in_turn(watch: Watch) -> None:
    """Not before its time, for who joins was looked at; then as often as it says."""
    watch.after(LOOK_SECONDS - STEP_SECONDS)
    assert [] == watch.looked
    watch.after(3 * LOOK_SECONDS)
    assert (3, 3) == (watch.looked.count("a"), watch.looked.count("b"))


def test_an_obstacle_suspends_once_and_its_end_resumes(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    """One line for each, and the numbers by kind; another obstacle that comes to it changes nothing."""
    watch.found["a"] = [NAT]
    watch.after(2 * LOOK_SECONDS)
    watch.found["a"] = [NAT, XDP, XDP]
    watch.after(2 * LOOK_SECONDS)
    assert [("suspend", "a")] == watch.namespaces.done
    assert {"nat": 1, "xdp": 2} == watch.task.found()
    watch.found.clear()
    watch.after(2 * LOOK_SECONDS)
    assert [("suspend", "a"), ("resume", "a")] == watch.namespaces.done
    assert {} == watch.task.found()
    assert [1, 0] == [sum(f"namespace {name}: until" in line for line in caplog.messages) for name in ("a", "b")]


def test_sessions_that_leave_past_the_guard_suspend_it_where_it_is_witnessed(watch: Watch) -> None:
    """Until others have notes again; elsewhere nobody counts them."""
    watch.namespaces.sessions = (7, 3)
    watch.after(2 * LOOK_SECONDS)
    assert [] == watch.namespaces.done
    watch.namespaces[0].guard.witnessed = True
    watch.after(2 * LOOK_SECONDS)
    assert [] == watch.namespaces.done
    watch.namespaces.sessions = (7, 5)
    watch.after(3 * LOOK_SECONDS)
    assert ([("suspend", "a")], {"egress": 1}) == (watch.namespaces.done, watch.task.found())
    for noted in (8, 9):
        assert [("suspend", "a")] == watch.namespaces.done
        watch.namespaces.sessions = (noted, 5)
        watch.after(2 * LOOK_SECONDS)
    assert [("suspend", "a"), ("resume", "a")] == watch.namespaces.done


def test_one_that_joins_suspended_is_looked_at_at_once(watch: Watch) -> None:
    """Nobody is told again, and what is found there counts, as does what keeps others from joining."""
    new = FakeNamespace("c")
    watch.namespaces.append(new)
    watch.namespaces.suspended.add(new)
    watch.found["c"] = [NAT]
    watch.left_alone["xdp"] = 2
    watch.after(STEP_SECONDS)
    assert (["c"], [], {"nat": 1, "xdp": 2}) == (watch.looked, watch.namespaces.done, watch.task.found())


@pytest.mark.parametrize("what", ["rules", "devices"])
def test_what_tells_of_a_change_is_followed_by_a_look(watch: Watch, what: str) -> None:
    """At the next turn, and only there."""
    if what == "rules":
        FakeNotices.changed.add("b")
    else:
        watch.namespaces[1].guard.disturbed = True
    watch.after(2 * STEP_SECONDS)
    assert ["b"] == watch.looked


def test_changes_without_end_keep_no_other_from_being_looked_at(watch: Watch) -> None:
    """Whoever has waited longest is first."""
    for _ in range(int(2 * LOOK_SECONDS)):
        FakeNotices.changed.add("b")
        watch.after(STEP_SECONDS)
    assert "a" in watch.looked


def test_who_has_left_is_forgotten(watch: Watch) -> None:
    """Nothing is kept open for it, nor counted."""
    watch.found["a"] = [NAT]
    watch.after(2 * LOOK_SECONDS)
    watch.namespaces.pop(0)
    watch.after(STEP_SECONDS)
    assert (["a"], {}) == (FakeNotices.closed, watch.task.found())
    watch.task.close()
    assert ["a", "b"] == FakeNotices.closed


def test_a_look_that_fails_leaves_it_as_it_was(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device may go while it is asked for."""
    watch.found["a"] = [NAT]
    watch.after(2 * LOOK_SECONDS)

    def gone(_path: str) -> list[Obstacle]:
        raise OSError

    monkeypatch.setattr(module, "obstacles", gone)
    watch.after(2 * LOOK_SECONDS)
    assert [("suspend", "a")] == watch.namespaces.done
    assert {"nat": 1} == watch.task.found()
