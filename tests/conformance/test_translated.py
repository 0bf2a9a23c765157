"""What a session whose packets are translated answers to its peer: the same as on a stock host, whatever translates."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest

from tests.load.duty import (
    AGED,
    FIN_WAIT2,
    GONE,
    NO_VESTIGIAL,
    RESTARTED,
    STOCK,
    TIME_WAIT,
    VESTIGIAL,
    After,
    Reply,
    Sent,
    Subject,
)
from tests.load.paths import IPV4, IPV6, MAPPED
from tests.load.peer import TunPeer
from tests.load.segments import ACK, FIN, PSH, RST, SYN
from tests.load.translations import TRANSLATIONS, TranslatedDuty, translated_duty

pytestmark = pytest.mark.alone("it waits for replies")

TS_RECENT = 0x5EED0000
HALF = 2**31
OTHER = STOCK if NO_VESTIGIAL else VESTIGIAL


@dataclass(frozen=True)
class Case:
    """A session, and what it gets."""

    name: str
    state: str
    sent: tuple[Sent, ...]


def in_time_wait(name: str, *sent: Sent) -> Case:
    """The peer has closed, too."""
    return Case(name, TIME_WAIT, sent)


def half_open(name: str, *sent: Sent) -> Case:
    """The peer is slow to close."""
    return Case(f"half open: {name}", FIN_WAIT2, sent)


FIN_AGAIN = Sent(FIN | ACK, seq=-1)
CASES = (
    in_time_wait("FIN again", FIN_AGAIN),
    in_time_wait("FIN again and again", FIN_AGAIN, FIN_AGAIN, FIN_AGAIN),
    in_time_wait("FIN again with an old ACK", Sent(FIN | ACK, seq=-1, ack=-1)),
    in_time_wait("late data", Sent(ACK | PSH, seq=-10, length=10)),
    in_time_wait("late data and FIN", Sent(FIN | ACK | PSH, seq=-11, length=10)),
    in_time_wait("data at R", Sent(ACK | PSH, length=1)),
    in_time_wait("data after R", Sent(ACK, seq=100, length=10)),
    in_time_wait("old ACK", Sent(ACK, seq=-1)),
    in_time_wait("ACK", Sent(ACK)),
    in_time_wait("ACK after R", Sent(ACK, seq=1)),
    in_time_wait("RST", Sent(RST)),
    in_time_wait("RST|ACK", Sent(RST | ACK)),
    in_time_wait("RST after R, and FIN again", Sent(RST | ACK, seq=1), FIN_AGAIN),
    in_time_wait("RST before R, and FIN again", Sent(RST | ACK, seq=-1), FIN_AGAIN),
    in_time_wait("new SYN, nobody listens", Sent(SYN, seq=5000)),
    in_time_wait("SYN that is not new", Sent(SYN, seq=-5000, ts=0)),
    in_time_wait("SYN at R, older TSval", Sent(SYN, ts=-1)),
    in_time_wait("FIN again, older TSval", Sent(FIN | ACK, seq=-1, ts=-1)),
    in_time_wait("data, older TSval", Sent(ACK, length=10, ts=-1)),
    half_open("FIN", Sent(FIN | ACK)),
    half_open("FIN, and again", Sent(FIN | ACK), Sent(FIN | ACK)),
    half_open("late data and FIN", Sent(FIN | ACK, seq=-10, length=10)),
    half_open("old FIN", FIN_AGAIN),
    half_open("old ACK", Sent(ACK, seq=-1)),
    half_open("ACK", Sent(ACK)),
    half_open("RST", Sent(RST)),
    half_open("RST in the window", Sent(RST, seq=1)),
    half_open("RST before R", Sent(RST, seq=-1)),
    half_open("data", Sent(ACK | PSH, length=1)),
    half_open("SYN at R", Sent(SYN)),
    half_open("SYN before R", Sent(SYN, seq=-1)),
    half_open("FIN, older TSval", Sent(FIN | ACK, ts=-1)),
    in_time_wait("RST far away, and FIN again", Sent(RST | ACK, seq=HALF), FIN_AGAIN),
    in_time_wait("ACK far away", Sent(ACK, seq=HALF)),
    in_time_wait("ACK of nothing sent", Sent(FIN | ACK, seq=-1, ack=HALF)),
    in_time_wait("ACK beyond the window", Sent(ACK, windows=1, seq=1)),
    in_time_wait("no flags", Sent(0, seq=-1)),
    half_open("ACK far away", Sent(ACK, seq=HALF)),
    half_open("RST beyond the window", Sent(RST | ACK, windows=1, seq=1)),
)


@dataclass(frozen=True)
class Outcome:
    """What the peer got for each segment, what others got, whether the timer was restarted, and what came of it."""

    replies: list[list[Reply]]
    strays: int
    restarted: bool | None  # None: gone
    after: After


@pytest.fixture(scope="module", params=TRANSLATIONS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[TranslatedDuty, TranslatedDuty]]:
    """The two duties. Nothing depends on how fast a test runs: ACKs have no limit, and the peer's clock stands."""
    setting = {"net.ipv4.tcp_invalid_ratelimit": 0}
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(TunPeer, "clock", staticmethod(lambda: TS_RECENT))
        yield tuple(stack.enter_context(translated_duty(kind, request.param, setting)) for kind in (STOCK, OTHER))


def outcome(subject: Subject, sent: tuple[Sent, ...]) -> Outcome:
    """Send the segments of a case."""
    # conntrack lets no segment without flags pass, so the last question is one with ACK
    subject = replace(subject, listened=True)
    before = subject.remaining()
    subject.duty.peer.strays()
    replies = [subject.send(one) for one in sent]
    left = subject.duty.left(subject)
    after = subject.after()
    assert (left is None) == (after.state == GONE), (left, after)
    strays = len(subject.duty.peer.strays())
    return Outcome(replies, strays, None if left is None else left > before + RESTARTED, after)


@pytest.mark.parametrize("timestamps", [True, False], ids=["timestamps", "plain"])
@pytest.mark.parametrize("family", [IPV4, IPV6, MAPPED])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_peer_gets_what_stock_would_answer(
    pair: tuple[TranslatedDuty, TranslatedDuty], case: Case, family: str, *, timestamps: bool
) -> None:
    """Whatever translates between it and the application."""
    stock, other = (outcome(one.aged(case.state, family, timestamps=timestamps), case.sent) for one in pair)
    assert stock == other
