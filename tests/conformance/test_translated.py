"""What a session whose packets are translated answers to its peer: the same as on a stock host, whatever translates."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest

from tests.load.duty import (
    FIN_WAIT2,
    GONE,
    NO_VESTIGIAL,
    RESTARTED,
    STOCK,
    TIME_WAIT,
    VESTIGIAL,
    Reply,
    Sent,
    Subject,
)
from tests.load.paths import IPV4, IPV6, MAPPED
from tests.load.peer import TunPeer
from tests.load.segments import ACK, FIN, PSH, RST, SYN
from tests.load.translations import (
    PLAIN,
    TRANSLATIONS,
    TranslatedDuty,
    Translation,
    missing,
    translated_duties,
    translated_duty,
)

pytestmark = pytest.mark.alone("it waits for replies")

TS_RECENT = 0x5EED0000
HALF = 2**31
OTHER = STOCK if NO_VESTIGIAL else VESTIGIAL


@dataclass(frozen=True)
class Case:
    """A session, and what it gets.

    astray: whose conntrack takes it for no part of the connection, and so does not translate it: the kernel looks for
    a socket of the tuple on the wire, finds none, and answers with a RST, or, where the address is not its own, with
    nothing. The guard does not depend on conntrack, and answers what TIME_WAIT would.
    few: for every translation; the others are for those of FULL.
    """

    name: str
    state: str
    sent: tuple[Sent, ...]
    astray: tuple[bool, ...] = ()  # served: the peer has opened the connection
    few: bool = False

    def goes_astray(self, translation: Translation) -> bool:
        """Where conntrack has this translation."""
        return translation.served in self.astray and translation.tracked

    def is_let_in(self, translation: Translation) -> bool:
        """It is a SYN for a transparent proxy, whose listener only a rule of netfilter knows."""
        return translation.same and any(one.flags & (SYN | ACK) == SYN for one in self.sent)


def in_time_wait(name: str, *sent: Sent, astray: tuple[bool, ...] = (), few: bool = False) -> Case:
    """The peer has closed, too."""
    return Case(name, TIME_WAIT, sent, astray, few)


def half_open(name: str, *sent: Sent, astray: tuple[bool, ...] = (), few: bool = False) -> Case:
    """The peer is slow to close."""
    return Case(f"half open: {name}", FIN_WAIT2, sent, astray, few)


EVERYWHERE = (False, True)
# The peer's SYN is no part of a connection that the host has opened.
DIALLED = (False,)
# One for each end that the host can be, and the one whose SYNs are its own matter.
FULL = ("dnat and snat", "redirect", "tproxy")
FAMILIES = ((IPV4, True), (IPV6, True), (MAPPED, False))  # and whether there are timestamps

FIN_AGAIN = Sent(FIN | ACK, seq=-1)
CASES = (
    in_time_wait("FIN again", FIN_AGAIN, few=True),
    in_time_wait("FIN again and again", FIN_AGAIN, FIN_AGAIN, FIN_AGAIN),
    in_time_wait("FIN again with an old ACK", Sent(FIN | ACK, seq=-1, ack=-1)),
    in_time_wait("late data", Sent(ACK | PSH, seq=-10, length=10), few=True),
    in_time_wait("late data and FIN", Sent(FIN | ACK | PSH, seq=-11, length=10)),
    in_time_wait("data at R", Sent(ACK | PSH, length=1)),
    in_time_wait("data after R", Sent(ACK, seq=100, length=10)),
    in_time_wait("old ACK", Sent(ACK, seq=-1)),
    in_time_wait("ACK", Sent(ACK)),
    in_time_wait("ACK after R", Sent(ACK, seq=1)),
    in_time_wait("RST", Sent(RST), few=True),
    in_time_wait("RST|ACK", Sent(RST | ACK)),
    in_time_wait("RST after R, and FIN again", Sent(RST | ACK, seq=1), FIN_AGAIN),
    in_time_wait("RST before R, and FIN again", Sent(RST | ACK, seq=-1), FIN_AGAIN),
    in_time_wait("new SYN, nobody listens", Sent(SYN, seq=5000), astray=DIALLED, few=True),
    in_time_wait("SYN that is not new", Sent(SYN, seq=-5000, ts=0), astray=DIALLED),
    in_time_wait("SYN at R, older TSval", Sent(SYN, ts=-1), astray=DIALLED),
    in_time_wait("FIN again, older TSval", Sent(FIN | ACK, seq=-1, ts=-1)),
    in_time_wait("data, older TSval", Sent(ACK, length=10, ts=-1)),
    half_open("FIN", Sent(FIN | ACK), few=True),
    half_open("FIN, and again", Sent(FIN | ACK), Sent(FIN | ACK)),
    half_open("late data and FIN", Sent(FIN | ACK, seq=-10, length=10)),
    half_open("old FIN", FIN_AGAIN),
    half_open("old ACK", Sent(ACK, seq=-1)),
    half_open("ACK", Sent(ACK)),
    half_open("RST", Sent(RST)),
    half_open("RST in the window", Sent(RST, seq=1)),
    half_open("RST before R", Sent(RST, seq=-1)),
    half_open("data", Sent(ACK | PSH, length=1)),
    half_open("SYN at R", Sent(SYN), astray=DIALLED),
    half_open("SYN before R", Sent(SYN, seq=-1), astray=DIALLED),
    half_open("FIN, older TSval", Sent(FIN | ACK, ts=-1)),
    in_time_wait("RST far away, and FIN again", Sent(RST | ACK, seq=HALF), FIN_AGAIN),
    in_time_wait("ACK far away", Sent(ACK, seq=HALF), astray=EVERYWHERE, few=True),
    in_time_wait("ACK of nothing sent", Sent(FIN | ACK, seq=-1, ack=HALF), astray=EVERYWHERE),
    in_time_wait("ACK beyond the window", Sent(ACK, windows=1, seq=1)),
    in_time_wait("no flags", Sent(0, seq=-1), astray=EVERYWHERE),
    half_open("ACK far away", Sent(ACK, seq=HALF), astray=EVERYWHERE),
    half_open("RST beyond the window", Sent(RST | ACK, windows=1, seq=1)),
)


@dataclass(frozen=True)
class Outcome:
    """What the peer got for each segment, what came to no connection of its, and what became of the session's timer."""

    replies: list[list[Reply]]
    strays: int
    timer: str


@dataclass(frozen=True)
class Trio:
    """Duties with the same peer. plain: stock, and nothing is translated."""

    plain: TranslatedDuty
    stock: TranslatedDuty
    other: TranslatedDuty


@pytest.fixture(scope="module")
def setting() -> Iterator[dict[str, object]]:
    """Nothing depends on how fast a test runs: ACKs have no limit, and the peer's clock stands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TunPeer, "clock", staticmethod(lambda: TS_RECENT))
        yield {"net.ipv4.tcp_invalid_ratelimit": 0}


@pytest.fixture(scope="module")
def plain(setting: dict[str, object]) -> Iterator[dict[bool, TranslatedDuty]]:
    """What the answers of TIME_WAIT are, where the host dials and where it is dialled."""
    with ExitStack() as stack:
        yield {served: stack.enter_context(translated_duty(STOCK, one, setting)) for served, one in PLAIN.items()}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All cases in all families for those of FULL, a few for the others; with --long all for all."""
    if "trio" not in metafunc.fixturenames:
        return
    long = metafunc.config.getoption("long")
    rows = [
        pytest.param(name, case, *family, id=f"{name}-{case.name}-{family[0]}", marks=_possible(name))
        for name in TRANSLATIONS
        for family in FAMILIES
        for case in CASES
        if long or name in FULL or (case.few and family[0] != MAPPED)
    ]
    metafunc.parametrize(("trio", "case", "family", "timestamps"), rows, indirect=["trio"], scope="module")


def _possible(name: str) -> tuple[pytest.MarkDecorator, ...]:
    """What skips a translation that this machine cannot have."""
    reason = missing(name)
    return (pytest.mark.skip(reason=reason),) if reason else ()


@pytest.fixture(scope="module")
def others(setting: dict[str, object]) -> Iterator[dict[str, TranslatedDuty]]:
    """The guard, in a namespace for each translation."""
    possible = {name: one for name, one in TRANSLATIONS.items() if not missing(name)}
    with translated_duties(OTHER, possible, setting) as made:
        yield made


@pytest.fixture(scope="module")
def trio(
    request: pytest.FixtureRequest,
    plain: dict[bool, TranslatedDuty],
    others: dict[str, TranslatedDuty],
    setting: dict[str, object],
) -> Iterator[Trio]:
    """Where a translation is, stock and guarded."""
    translation = TRANSLATIONS[request.param]
    with translated_duty(STOCK, translation, setting) as stock:
        yield Trio(plain[translation.served], stock, others[request.param])


def outcome(subject: Subject, sent: tuple[Sent, ...]) -> Outcome:
    """Send the segments of a case."""
    before = subject.fires()
    subject.duty.peer.strays()
    replies = [subject.send(one) for one in sent]
    fires = subject.duty.fires(subject)
    timer = GONE if fires is None else "restarted" if fires > before + RESTARTED else "goes on"
    return Outcome(replies, len(subject.duty.peer.strays()), timer)


def unwindowed(found: Outcome) -> Outcome:
    """Without the window: that depends on the route which the connection began with, and so on the translation."""
    return replace(found, replies=[[replace(one, window=0) for one in replies] for replies in found.replies])


def ended_by_a_syn(duty: TranslatedDuty) -> float:
    """Sessions in whose place a new connection was let in or out."""
    assert duty.watch
    return duty.watch.metric("twctl_time_wait_ended_total", reason="reused")


def test_the_peer_gets_what_time_wait_would_answer(trio: Trio, case: Case, family: str, *, timestamps: bool) -> None:
    """Whatever translates between it and the application."""
    translation = trio.stock.translation
    let_in = case.is_let_in(translation) and trio.other.watch is not None
    before = ended_by_a_syn(trio.other) if let_in else 0
    plain, stock, other = (
        outcome(one.aged(case.state, family, timestamps=timestamps), case.sent)
        for one in (trio.plain, trio.stock, trio.other)
    )
    if let_in:
        # The kernel has no connection for it, and forwards nothing here: silence.
        assert Outcome([[] for _ in case.sent], 0, GONE) == other
        assert before + 1 == ended_by_a_syn(trio.other)
        return
    if case.goes_astray(translation):
        assert "goes on" == stock.timer
        assert all(reply.flags & RST for replies in stock.replies for reply in replies)
        assert unwindowed(plain) == unwindowed(other)
        return
    assert unwindowed(plain) == unwindowed(stock)
    assert stock == other
