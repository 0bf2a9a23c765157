"""When orphans in FIN_WAIT2 stay sockets, over namespaces that only take note."""

import math
from collections.abc import Iterator
from contextlib import closing
from typing import cast

import pytest

from twctl.daemon.namespaces import Namespaces
from twctl.daemon.orphans import CALM_SECONDS, WatchingOrphans
from twctl.linux.procfs import MaxOrphans


class Noted:
    """What was said to the namespaces."""

    def __init__(self) -> None:
        self.said: list[bool] = []

    def let_orphans_stay(self, stay: bool) -> None:  # noqa: FBT001 - as Namespaces has it
        """See Namespaces."""
        self.said.append(stay)


@pytest.fixture
def noted() -> Noted:
    """Nothing was said yet."""
    return Noted()


@pytest.fixture
def watching(noted: Noted) -> Iterator[WatchingOrphans]:
    """At most 1,009 orphans."""
    with closing(WatchingOrphans(cast(Namespaces, noted), 1009)) as made:
        yield made


def count(monkeypatch: pytest.MonkeyPatch, watching: WatchingOrphans, orphans_: int, now: float) -> None:
    """One look that finds so many, at this time."""
    monkeypatch.setattr(watching, "orphans", lambda: orphans_)
    monkeypatch.setattr("time.monotonic", lambda: now)
    watching.run()


def test_above_the_limit_they_become_vestiges_until_there_were_few_for_a_while(
    monkeypatch: pytest.MonkeyPatch, watching: WatchingOrphans, noted: Noted
) -> None:
    """Neither a look at the limit changes anything, nor one at half of it, nor a calm that is too short."""
    said = []
    for orphans_, now in (
        (1009, 100),
        (1013, 101),
        (1013, 102),
        (505, 103),
        (504, 104),
        (504, 103 + CALM_SECONDS),
        (505, 104 + CALM_SECONDS),
        (504, 104 + 2 * CALM_SECONDS),
        (504, 105 + 2 * CALM_SECONDS),
        (1009, 106 + 2 * CALM_SECONDS),
    ):
        count(monkeypatch, watching, orphans_, now)
        said.append(watching.stay)
    assert [True, False, False, False, False, False, False, False, True, True] == said
    assert [False, True] == noted.said


def test_each_change_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, watching: WatchingOrphans, caplog: pytest.LogCaptureFixture
) -> None:
    """However many looks there are in between."""
    with caplog.at_level("INFO", "twctl"):
        for orphans_, now in ((1013, 100), (1013, 101), (0, 101 + CALM_SECONDS), (0, 102 + CALM_SECONDS)):
            count(monkeypatch, watching, orphans_, now)
    assert [
        "1013 orphans, more than 1009: those in FIN_WAIT2 become vestiges for now",
        "0 orphans: those in FIN_WAIT2 stay sockets again",
    ] == caplog.messages


@pytest.mark.parametrize(("kernel", "limit"), [(1000, 500), (4000, 1009), (math.inf, 1009)])
def test_half_of_the_kernel_s_own_limit_is_one_as_well(
    monkeypatch: pytest.MonkeyPatch, watching: WatchingOrphans, kernel: float, limit: int
) -> None:
    """Above the whole of it the kernel resets orphans; where it does not say, the configuration's alone counts."""
    monkeypatch.setattr(MaxOrphans, "count", lambda _: kernel)
    assert limit == watching.limit()


def test_the_kernel_says_how_many_orphans_there_are_and_may_be(watching: WatchingOrphans) -> None:
    """Numbers of the running kernel."""
    assert watching.orphans() >= 0
    assert 0 < watching.limit() <= 1009
