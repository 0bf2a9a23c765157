"""Entries that no probe saw, by two numbers that are read one after the other."""

from dataclasses import dataclass, field

import pytest

from twctl.daemon.unseen import TRIES, Unseen
from twctl.linux.procfs import counts_entries


@dataclass
class Kernel:
    """One namespace: what it has counted, and what is born whenever that is read."""

    cookie: int
    counted: int = 0
    seen: int = 0
    meanwhile: list[int] = field(default_factory=list)

    @property
    def entry_count(self) -> "Kernel":
        """Itself."""
        return self

    def count(self) -> int:
        """Read the kernel's count; entries come at once afterwards."""
        counted = self.counted
        self.close(self.meanwhile.pop(0) if self.meanwhile else 0)
        return counted

    def close(self, sessions: int, *, unseen: int = 0) -> None:
        """So many sessions end."""
        self.counted += sessions
        self.seen += sessions - unseen


def missed(*kernels: Kernel) -> tuple[Unseen, list[Kernel]]:
    """It looks at a list that may change."""
    members = list(kernels)
    return Unseen(members, lambda: sum(kernel.seen for kernel in kernels)), members  # type: ignore[arg-type]


def twice(counting: Unseen) -> int:
    """The total of the second of two looks."""
    counting.look()
    return counting.look()


@pytest.mark.parametrize(
    ("release", "entries"),
    [("5.10.0-34-amd64", False), ("5.17.15", False), ("5.18-rc1", True), ("6.1.0-40-amd64", True), ("6.18.5+", True)],
)
def test_kernels_count_entries_from_5_18_on(release: str, entries: bool) -> None:  # noqa: FBT001 - a parameter
    """Releases as uname prints them."""
    assert entries == counts_entries(release)


def test_what_was_counted_before_is_not_missed() -> None:
    """Only what the kernel counts from the first look on is compared with the entries."""
    kernel = Kernel(1, counted=101, seen=7)
    counting, _ = missed(kernel)
    assert 0 == twice(counting)
    kernel.close(13, unseen=3)
    assert 3 == twice(counting)
    kernel.close(5)
    assert 3 == twice(counting)
    kernel.close(2, unseen=2)
    assert 5 == twice(counting)


def test_what_is_seen_a_moment_after_the_kernel_counts_it_is_no_miss() -> None:
    """It looks like one once, not twice."""
    kernel = Kernel(1)
    counting, _ = missed(kernel)
    assert 0 == counting.look()
    kernel.close(5, unseen=2)
    assert 0 == counting.look()
    kernel.seen += 2
    assert 0 == twice(counting)


def test_entries_between_two_readings_are_no_misses() -> None:
    """Neither when the first look finds a moment of rest late, nor when it finds none, nor later."""
    for busy in (1, TRIES - 1, TRIES, 2 * TRIES):
        kernel = Kernel(1, meanwhile=[3] * busy)
        counting, _ = missed(kernel)
        assert 0 == counting.look()
        kernel.meanwhile = [2, 0]
        kernel.close(11)
        assert 0 == counting.look()
        assert 0 == counting.look()


def test_the_total_stays_when_namespaces_come_and_go() -> None:
    """What one has counted before it joined, or after it left, is nobody's."""
    first, second = Kernel(1), Kernel(2, counted=1009)
    counting, members = missed(first, second)
    members.remove(second)
    assert 0 == twice(counting)
    first.close(7, unseen=7)
    assert 7 == twice(counting)
    members.append(second)
    assert 7 == twice(counting)
    second.close(4, unseen=4)
    assert 11 == twice(counting)
    members.remove(first)
    first.close(100, unseen=100)
    assert 11 == twice(counting)
