"""The same segments to two sessions, one on stock duty and one on the other: the same replies, and the same end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.load.duty import (
    FIN_WAIT2,
    GONE,
    NO_VESTIGIAL,
    STOCK,
    TIME_WAIT,
    VESTIGIAL,
    After,
    Duty,
    Reply,
    Sent,
    Subject,
    duty,
)
from tests.load.paths import IPV4, IPV6, MAPPED
from tests.load.peer import TunPeer
from tests.load.segments import ACK, FIN, PSH, RST, SYN, URG

# A reply that comes late would be another one's.
pytestmark = pytest.mark.alone("it waits for replies")

EXAMPLES = 503
TS_RECENT = 0x5EED0000
# Without a guard, stock is compared with itself: the harness is shown to be deterministic.
OTHER = STOCK if NO_VESTIGIAL else VESTIGIAL


@dataclass(frozen=True)
class Outcome:
    """What a session answered to each segment, whether its timer was restarted, and what it came to."""

    replies: list[list[Reply]]
    restarted: bool | None  # None: gone
    after: After


@dataclass(frozen=True)
class Case:
    """A session and the segments that it gets."""

    state: str
    family: str
    timestamps: bool
    sent: tuple[Sent, ...]


@dataclass(frozen=True)
class Accepted:
    """A difference that is meant, and why."""

    reason: str
    applies: Callable[[Case, Outcome, Outcome], bool]


ACCEPTED_DIFFERENCES: tuple[Accepted, ...] = ()


@pytest.fixture(scope="module", params=[0, 1], ids=["plain", "rfc1337"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Duty, Duty]]:
    """The two duties. Nothing depends on how fast a test runs: ACKs have no limit, and the peer's clock stands."""
    setting = {"net.ipv4.tcp_rfc1337": request.param, "net.ipv4.tcp_invalid_ratelimit": 0}
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(TunPeer, "clock", staticmethod(lambda: TS_RECENT))
        yield stack.enter_context(duty(STOCK, setting)), stack.enter_context(duty(OTHER, setting))


FLAGS = st.one_of(
    st.sampled_from([0, ACK, FIN | ACK, FIN, SYN, SYN | ACK, RST, RST | ACK, ACK | PSH, SYN | FIN]),
    st.sets(st.sampled_from([FIN, SYN, RST, PSH, ACK, URG, 0x40, 0x80])).map(sum),
)
HALF = 2**31
SEGMENTS = st.builds(
    Sent,
    flags=FLAGS,
    seq=st.sampled_from([0, 0, 0, -1, -1, 1, 2, -2, -10, -11, -100, 100, HALF - 1, HALF, HALF + 1]),
    windows=st.sampled_from([0, 0, 0, 0, 1]),
    length=st.sampled_from([0, 0, 0, 1, 10]),
    ack=st.sampled_from([0, 0, 0, -1, 1, 1000, HALF]),
    ts=st.sampled_from([1, 1, 0, 2, 1000, -1, HALF, None]),
)
CASES = st.builds(
    Case,
    state=st.sampled_from([TIME_WAIT, FIN_WAIT2]),
    family=st.sampled_from([IPV4, IPV6, MAPPED]),
    timestamps=st.booleans(),
    sent=st.lists(SEGMENTS, min_size=1, max_size=6).map(tuple),
)
# What may stand in the place of the options: bytes, and how much newer than TSr a timestamp is.
OPTIONS = st.lists(
    st.one_of(
        st.binary(max_size=4),
        st.sampled_from([b"\1", b"\0", b"\2\4\5\x78", b"\3\3\7", b"\4\2", b"\x08\x0a", b"\x08\0", b"\xfd\2"]),
        st.sampled_from([-1, 0, 1]),
    ),
    max_size=8,
).map(tuple)


def outcome(subject: Subject, case: Case) -> Outcome:
    """Send the segments of a case."""
    before = subject.fires()
    replies = [subject.send(sent) for sent in case.sent]
    after = subject.after()
    return Outcome(replies, None if after.state == GONE else subject.restarted(before), after)


def assert_same(pair: tuple[Duty, Duty], case: Case) -> None:
    """Both do the same, but for what is accepted."""
    stock, other = (outcome(one.aged(case.state, case.family, timestamps=case.timestamps), case) for one in pair)
    for accepted in ACCEPTED_DIFFERENCES:
        if stock != other and accepted.applies(case, stock, other):
            note(f"accepted: {accepted.reason}")
            return
    assert stock == other


fixed = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@fixed
@given(case=CASES)
def test_the_same_segments_have_the_same_effect(pair: tuple[Duty, Duty], case: Case) -> None:
    """Up to six segments of any kind get the same replies on both duties, and leave both sessions alike."""
    assert_same(pair, case)


@fixed
@given(
    case=CASES.flatmap(
        lambda case: st.lists(OPTIONS, min_size=1, max_size=6).map(
            lambda options: replace(
                case, sent=tuple(replace(one, options=o) for one, o in zip(case.sent, options, strict=False))
            )
        )
    )
)
def test_any_options_have_the_same_effect(pair: tuple[Duty, Duty], case: Case) -> None:
    """So do segments whose options are wrong, cut short, repeated or unknown."""
    assert_same(pair, case)
