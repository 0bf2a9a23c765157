"""Comparisons with the kernel's list, and the rounds of the guard, with a table of a test's own."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from twctl.classes import Class
from twctl.config.config import Config, load
from twctl.daemon.discovery import Discovery
from twctl.daemon.upkeep import GUARD_SECONDS, SWEEP_SECONDS, Guarding, Leaving, Reconciling
from twctl.modes.filters import Ours
from twctl.modes.reconcile import Drift, Reconciler
from twctl.table.maps import Table

NOWHERE = Path("/nowhere/twctl.toml")


def configured(**options: object) -> Config:
    """Defaults but for these."""
    return load(None, options, default_file=NOWHERE).config


class FakeTable:
    """Nobody else wants it."""

    enrolments = dict
    lives: Sequence[int] = (2_000_000_000, 10_000_000_000)
    guard = 7

    def set_lives(self, time_wait: Mapping[Class, float], _: Mapping[Class, float]) -> None:
        """From seconds."""
        self.lives = [int(each * 1e9) for each in time_wait.values()]

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """At once."""
        yield


class FakeReconciler:
    """Finds what a test says; `failing`: the kernel refuses."""

    def __init__(self) -> None:
        self.found, self.failing, self.swept = Drift(0, 0, 0, 0.0), False, 0
        self.asked: list[list[int]] = []

    def round(self, *, end: bool = True) -> Drift:
        """Compare."""
        if self.failing and end:
            raise OSError(1, "refused")
        return self.found

    def take_over(self, indexes: Sequence[int]) -> Drift:
        """Note which namespaces."""
        self.asked.append(list(indexes))
        return self.found

    def marks(self) -> dict[tuple[Class, str], int]:
        """One ring."""
        return {(Class.LOCAL, "ipv4"): 23}

    def sweep(self) -> float:
        """Count."""
        self.swept += 1
        return 0.0


def reconciling(
    reconciler: FakeReconciler, config: Config, taken: list[object] | None = None, *, ends_seen: bool = False
) -> Reconciling:
    """The task over a fake table."""
    note = (taken if taken is not None else []).append
    table = cast("Table", FakeTable())
    return Reconciling(table, cast("Reconciler", reconciler), config, ends_seen=ends_seen, taken_over=note)


def test_the_first_comparison_comes_an_interval_after_the_start() -> None:
    """The start itself has just compared."""
    task = reconciling(FakeReconciler(), configured(reconcile_interval=7))
    assert (7, 0) == (task.run(), task.rounds)
    assert (7, 1) == (task.run(), task.rounds)


def test_a_guard_that_is_leaving_puts_it_off() -> None:
    """Until it is gone the kernel does not have all sessions."""
    task = reconciling(FakeReconciler(), configured(reconcile_interval=7))
    task.wait(101.0)
    assert 101.0 == task.run()


def test_what_a_comparison_mends_is_told() -> None:
    """The drift of the last one, and what was missing in all of them."""
    reconciler, taken = FakeReconciler(), list[object]()
    task = reconciling(reconciler, configured(reconcile_interval=7), taken)
    task.run()
    for missing, stale in ((3, 5), (2, 0)):
        reconciler.found = Drift(missing, 0, stale, 0.0)
        task.run()
    assert ({"missing": 2, "stale": 0}, 5, 2, 2) == (task.drift, task.missing, task.rounds, len(taken))


def test_a_comparison_that_fails_is_counted_and_tried_again() -> None:
    """It took nothing over."""
    reconciler = FakeReconciler()
    task = reconciling(reconciler, configured(reconcile_interval=7))
    task.run()
    reconciler.failing = True
    assert (7, 1, 0) == (task.run(), task.errors, task.rounds)


def test_a_long_comparison_takes_half_a_percent_of_a_cpu() -> None:
    """The next one comes later."""
    reconciler = FakeReconciler()
    task = reconciling(reconciler, configured(reconcile_interval=7))
    task.run()
    reconciler.found = Drift(0, 0, 0, 1.0)
    assert 200.0 == task.run()


@pytest.mark.parametrize(
    ("options", "ends_seen"),
    [({"mode": "vestigial"}, False), ({"reconcile_interval": 0}, False), ({}, True)],
)
def test_without_a_comparison_expired_words_are_zeroed(options: dict[str, object], ends_seen: bool) -> None:  # noqa: FBT001
    """In mode vestigial, where it is switched off, and where the probe sees each end."""
    reconciler = FakeReconciler()
    task = reconciling(reconciler, configured(**options), ends_seen=ends_seen)
    assert [SWEEP_SECONDS] * 2 == [task.run(), task.run()]
    assert (1, 0) == (reconciler.swept, task.rounds)


def test_only_namespaces_that_joined_are_taken_over() -> None:
    """By their index."""
    reconciler = FakeReconciler()
    joined = [SimpleNamespace(index=index) for index in (3, 5)]
    reconciling(reconciler, configured()).take_over(joined)  # type: ignore[arg-type]
    assert [[3, 5]] == reconciler.asked


def test_the_guard_looks_at_one_namespace_after_the_other() -> None:
    """At each within ten seconds, also when one leaves meanwhile."""
    looked = list[str]()

    class Names(list[str]):
        """The namespaces, and what is done in each."""

        mend_guard = looked.append

    names = Names("abc")
    discovery = SimpleNamespace(namespaces=names, attend=lambda name, work: work(name))
    task = Guarding(cast("Discovery", discovery))
    assert GUARD_SECONDS / 3 == task.run()
    names.remove("b")
    for _ in range(3):
        task.run()
    assert {"a", "c"} == set(looked)


def test_a_guard_of_an_earlier_mode_goes_when_its_last_vestige_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before, and once."""
    now, table = [1000.0], FakeTable()
    monkeypatch.setattr("twctl.daemon.upkeep.time.monotonic", lambda: now[0])
    monkeypatch.setattr("twctl.daemon.upkeep.remove_guard", lambda *_: iter(()))
    config = configured(time_wait={"remote": 30})
    task = Leaving(cast("Table", table), Ours(frozenset(), frozenset(), Path("/nowhere")), config)
    assert 10 < task.run() < 11
    assert (7, False, [2, 10]) == (table.guard, task.over, [each // 10**9 for each in table.lives])
    now[0] += task.seconds
    assert math.inf == task.run()
    assert (0, True, [2, 10, 30]) == (table.guard, task.over, [each // 10**9 for each in table.lives])
