"""Births that no probe saw, by two numbers that are read one after the other."""

from dataclasses import dataclass, field

from twctl.missed import TRIES, Missed


@dataclass
class Kernel:
    """One namespace: what it refuses, and what is born whenever that is read."""

    cookie: int
    refused: int = 0
    seen: int = 0
    meanwhile: list[int] = field(default_factory=list)

    @property
    def refusals(self) -> "Kernel":
        """Itself."""
        return self

    def count(self) -> int:
        """Read the kernel's count; births come at once afterwards."""
        counted = self.refused
        self.close(self.meanwhile.pop(0) if self.meanwhile else 0)
        return counted

    def close(self, sessions: int, *, unseen: int = 0) -> None:
        """So many sessions end."""
        self.refused += sessions
        self.seen += sessions - unseen


def missed(*kernels: Kernel) -> tuple[Missed, list[Kernel]]:
    """It looks at a list that may change."""
    members = list(kernels)
    return Missed(members, lambda: sum(kernel.seen for kernel in kernels)), members  # type: ignore[arg-type]


def test_what_was_refused_before_is_not_missed() -> None:
    """Only what is refused from the first look on is held against the births."""
    kernel = Kernel(1, refused=101, seen=7)
    counting, _ = missed(kernel)
    assert 0 == counting.look()
    kernel.close(13, unseen=3)
    assert 3 == counting.look()
    kernel.close(5)
    assert 3 == counting.look()
    kernel.close(2, unseen=2)
    assert 5 == counting.look()


def test_births_between_two_readings_are_no_misses() -> None:
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
    """What one has refused before it joined, or after it left, is nobody's."""
    first, second = Kernel(1), Kernel(2, refused=1009)
    counting, members = missed(first, second)
    members.remove(second)
    assert 0 == counting.look()
    first.close(7, unseen=7)
    assert 7 == counting.look()
    members.append(second)
    assert 7 == counting.look()
    second.close(4, unseen=4)
    assert 11 == counting.look()
    members.remove(first)
    first.close(100, unseen=100)
    assert 11 == counting.look()
