"""What a session in TIME_WAIT, or in FIN_WAIT2 after close(), answers to each kind of segment, and what becomes of it.

The rules are those of tcp_timewait_state_process() (net/ipv4/tcp_minisocks.c), numbered: T for TIME_WAIT, F for
FIN_WAIT2, A for the acknowledgment. The stock kernel passes every test here, so a guard that passes equals it.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from tests.load import wait_until
from tests.load.duty import (
    AGED,
    AS_AGREED,
    FIN_WAIT2,
    GONE,
    RESTARTED,
    TIME_WAIT,
    After,
    Duty,
    Reply,
    Sent,
    Subject,
)
from tests.load.paths import IPV4, IPV6, MAPPED
from tests.load.peer import Connection, TunPeer
from tests.load.scripts import SCRIPTS
from tests.load.segments import ACK, FIN, PSH, RST, SYN, URG, Segment, after, build

Duties = Callable[..., Duty]
N = 23
FAMILIES = (IPV4, IPV6, MAPPED)
HALF = 2**31

# Replies: nothing, the ACK, the ACK of the peer's FIN that ends FIN_WAIT2, a RST.
NONE, ACKED, FIN_ACKED, RESET = "nothing", "ACK", "ACK of the FIN", "RST"
# On which connections a rule is tried.
ANY, WITH, WITHOUT = (True, False), (True,), (False,)


@dataclass(frozen=True)
class Row:
    """A segment, its reply, and the session afterwards. ts_moved: how far TSr has moved, on a connection with it."""

    name: str
    sent: Sent
    reply: str
    state: str
    restarts: bool = False
    ts_moved: int = 0
    timestamps: tuple[bool, ...] = ANY


def kept(name: str, reply: str, sent: Sent, *, restarts: bool = False, **more: int | tuple[bool, ...]) -> Row:
    """The session stays in TIME_WAIT."""
    return replace(Row(name, sent, reply, TIME_WAIT, restarts), **more)  # type: ignore[arg-type]


def waits(name: str, reply: str, sent: Sent, timestamps: tuple[bool, ...] = ANY) -> Row:
    """The session stays in FIN_WAIT2, and its timer goes on."""
    return Row(name, sent, reply, FIN_WAIT2, timestamps=timestamps)


def ends(name: str, reply: str, sent: Sent, timestamps: tuple[bool, ...] = ANY) -> Row:
    """The session is no more."""
    return Row(name, sent, reply, GONE, timestamps=timestamps)


# fmt: off
TIME_WAIT_ROWS = (
    ends("T1 RST", NONE, Sent(RST)),
    ends("T1 RST|ACK", NONE, Sent(RST | ACK)),
    ends("T1 RST|SYN", NONE, Sent(RST | SYN)),
    ends("T1 RST|FIN|ACK with data", NONE, Sent(RST | FIN | ACK, length=10)),
    ends("T1 RST, ACK of nothing sent", NONE, Sent(RST | ACK, ack=1000)),
    ends("T1 RST, same TSval", NONE, Sent(RST, ts=0), WITH),
    ends("T1 RST without timestamps", NONE, Sent(RST, ts=None), WITH),
    kept("T2 ACK", NONE, Sent(ACK), restarts=True, ts_moved=1),
    kept("T2 ACK much later", NONE, Sent(ACK, ts=1000), restarts=True, ts_moved=1000, timestamps=WITH),
    kept("T2 ACK, same TSval", NONE, Sent(ACK, ts=0), restarts=True, timestamps=WITH),
    kept("T2 ACK without timestamps", NONE, Sent(ACK, ts=None), restarts=True, timestamps=WITH),
    kept("T2 ACK|PSH|URG", NONE, Sent(ACK | PSH | URG), restarts=True, ts_moved=1),
    kept("T2 ACK of nothing sent", NONE, Sent(ACK, ack=1000), restarts=True, ts_moved=1),
    kept("T2 no flags", NONE, Sent(0), restarts=True, ts_moved=1),
    # Nobody listens on the port: an acceptable SYN is acknowledged like one that is not.
    kept("T3 SYN after R", ACKED, Sent(SYN, seq=1)),
    kept("T3 SYN|FIN after R", ACKED, Sent(SYN | FIN, seq=1)),
    kept("T3 SYN, newer TSval", ACKED, Sent(SYN, seq=-5000), timestamps=WITH),
    kept("T4 RST before R", NONE, Sent(RST, seq=-1)),
    kept("T4 RST after R", NONE, Sent(RST, seq=1)),
    kept("T4 RST|ACK in the window", NONE, Sent(RST | ACK, seq=1000)),
    kept("T4 RST far away", NONE, Sent(RST | ACK, seq=HALF)),
    kept("T4 RST, older TSval", NONE, Sent(RST, ts=-1), timestamps=WITH),
    kept("T4 RST|SYN after R", NONE, Sent(RST | SYN, seq=1)),
    kept("T5 FIN|ACK again", ACKED, Sent(FIN | ACK, seq=-1), restarts=True),
    kept("T5 FIN|ACK again, same TSval", ACKED, Sent(FIN | ACK, seq=-1, ts=0), restarts=True, timestamps=WITH),
    kept("T5 FIN|ACK again, no timestamps", ACKED, Sent(FIN | ACK, seq=-1, ts=None), restarts=True, timestamps=WITH),
    kept("T5 FIN|ACK again, old ACK", ACKED, Sent(FIN | ACK, seq=-1, ack=-1), restarts=True),
    kept("T5 FIN|ACK again, wrong ACK", ACKED, Sent(FIN | ACK, seq=-1, ack=HALF), restarts=True),
    kept("T5 data and FIN again", ACKED, Sent(FIN | ACK | PSH, seq=-11, length=10), restarts=True),
    kept("T5 FIN again without ACK", ACKED, Sent(FIN, seq=-1)),
    kept("T5 FIN|ACK at R", ACKED, Sent(FIN | ACK), restarts=True),
    kept("T5 old data", ACKED, Sent(ACK, seq=-10, length=10), restarts=True),
    kept("T5 old data without ACK", ACKED, Sent(0, seq=-10, length=10)),
    kept("T5 data at R", ACKED, Sent(ACK | PSH, length=1), restarts=True),
    kept("T5 data at R without ACK", ACKED, Sent(PSH, length=1)),
    kept("T5 data and FIN at R", ACKED, Sent(ACK | FIN, length=10), restarts=True),
    kept("T5 data after R", ACKED, Sent(ACK, seq=100, length=10), restarts=True),
    kept("T5 ACK before R", ACKED, Sent(ACK, seq=-1), restarts=True),
    kept("T5 ACK after R", ACKED, Sent(ACK, seq=1), restarts=True),
    kept("T5 ACK far away", ACKED, Sent(ACK, seq=HALF), restarts=True),
    kept("T5 ACK beyond the window", ACKED, Sent(ACK, windows=1, seq=1), restarts=True),
    kept("T5 no flags before R", ACKED, Sent(0, seq=-1)),
    kept("T5 no flags after R", ACKED, Sent(0, seq=1)),
    kept("T5 SYN at R", ACKED, Sent(SYN, ts=0)),
    kept("T5 SYN before R", ACKED, Sent(SYN, seq=-1, ts=0)),
    kept("T5 SYN at R without timestamps", ACKED, Sent(SYN, ts=None), timestamps=WITH),
    kept("T5 SYN at R, older TSval", ACKED, Sent(SYN, ts=-1), restarts=True, timestamps=WITH),
    kept("T5 SYN after R, older TSval", ACKED, Sent(SYN, seq=1, ts=-1), restarts=True, timestamps=WITH),
    kept("T5 SYN|ACK before R", ACKED, Sent(SYN | ACK, seq=-1), restarts=True),
    kept("T5 SYN|ACK at R", ACKED, Sent(SYN | ACK), restarts=True),
    kept("T5 SYN|ACK after R", ACKED, Sent(SYN | ACK, seq=1), restarts=True),
    kept("T5 FIN|ACK, older TSval", ACKED, Sent(FIN | ACK, seq=-1, ts=-1), restarts=True, timestamps=WITH),
    kept("T5 FIN, older TSval", ACKED, Sent(FIN, seq=-1, ts=-1), restarts=True, timestamps=WITH),
    kept("T5 data, older TSval", ACKED, Sent(ACK, length=10, ts=-1), restarts=True, timestamps=WITH),
    kept("T5 ACK at R, older TSval", ACKED, Sent(ACK, ts=-1), restarts=True, timestamps=WITH),
    kept("T5 ACK at R, TSval half a circle older", ACKED, Sent(ACK, ts=-HALF + 1), restarts=True, timestamps=WITH),
    kept("T5 no flags at R, older TSval", ACKED, Sent(0, ts=-1), restarts=True, timestamps=WITH),
    # A connection without timestamps does not look at them.
    kept("T5 SYN at R with timestamps", ACKED, Sent(SYN, ts=1000), timestamps=WITHOUT),
    kept("T5 FIN|ACK with timestamps", ACKED, Sent(FIN | ACK, seq=-1, ts=1000), restarts=True, timestamps=WITHOUT),
    kept("T2 ACK with timestamps", NONE, Sent(ACK, ts=1000), restarts=True, timestamps=WITHOUT),
    # T6: TSr moved above by T2 alone, not by a FIN or data with a newer TSval.
    kept("T6 FIN|ACK much later", ACKED, Sent(FIN | ACK, seq=-1, ts=1000), restarts=True, timestamps=WITH),
)

# With net.ipv4.tcp_rfc1337 = 1.
RFC1337_ROWS = (
    kept("T1 RST", NONE, Sent(RST), ts_moved=1),
    kept("T1 RST|ACK", NONE, Sent(RST | ACK), ts_moved=1),
    kept("T1 RST much later", NONE, Sent(RST, ts=1000), ts_moved=1000, timestamps=WITH),
    kept("T4 RST, older TSval", NONE, Sent(RST, ts=-1), timestamps=WITH),
    kept("T4 RST after R", NONE, Sent(RST, seq=1)),
    kept("T5 FIN|ACK again", ACKED, Sent(FIN | ACK, seq=-1), restarts=True),
)
FIN_WAIT2_RFC1337_ROWS = (
    ends("F2 RST", NONE, Sent(RST)),
    ends("F2 RST in the window", NONE, Sent(RST, seq=1000)),
)

FIN_WAIT2_ROWS = (
    waits("F1 ACK before R", ACKED, Sent(ACK, seq=-1)),
    waits("F1 old data", ACKED, Sent(ACK, seq=-10, length=10)),
    waits("F1 old FIN", ACKED, Sent(FIN | ACK, seq=-1)),
    waits("F1 no flags before R", ACKED, Sent(0, seq=-1)),
    waits("F1 RST before R", ACKED, Sent(RST, seq=-1)),
    waits("F1 RST|ACK beyond the window", ACKED, Sent(RST | ACK, windows=1, seq=1)),
    waits("F1 RST, older TSval", ACKED, Sent(RST, ts=-1), WITH),
    waits("F1 ACK beyond the window", ACKED, Sent(ACK, windows=1, seq=1)),
    waits("F1 data at the window's end", ACKED, Sent(ACK, windows=1, length=1)),
    waits("F1 FIN|ACK at the window's end", ACKED, Sent(FIN | ACK, windows=1)),
    waits("F1 ACK far away", ACKED, Sent(ACK, seq=HALF)),
    waits("F1 SYN before R", ACKED, Sent(SYN, seq=-1)),
    waits("F1 SYN far before R", ACKED, Sent(SYN, seq=-5000, ts=1000), WITH),
    waits("F1 ACK at R, older TSval", ACKED, Sent(ACK, ts=-1), WITH),
    waits("F1 data, older TSval", ACKED, Sent(ACK, length=10, ts=-1), WITH),
    waits("F1 FIN|ACK, older TSval", ACKED, Sent(FIN | ACK, ts=-1), WITH),
    waits("F1 SYN at R, older TSval", ACKED, Sent(SYN, ts=-1), WITH),
    ends("F2 RST", NONE, Sent(RST)),
    ends("F2 RST|ACK", NONE, Sent(RST | ACK)),
    ends("F2 RST in the window", NONE, Sent(RST, seq=1)),
    ends("F2 RST before the window's end", NONE, Sent(RST, windows=1, seq=-1)),
    ends("F2 RST at the window's end", NONE, Sent(RST, windows=1)),
    ends("F2 RST, half of it old", NONE, Sent(RST, seq=-5, length=10)),
    ends("F2 RST|SYN", NONE, Sent(RST | SYN)),
    ends("F2 RST without timestamps", NONE, Sent(RST, ts=None), WITH),
    ends("F3 SYN at R", RESET, Sent(SYN)),
    ends("F3 SYN in the window", RESET, Sent(SYN, seq=100)),
    ends("F3 SYN|ACK at R", RESET, Sent(SYN | ACK)),
    ends("F3 SYN|FIN|ACK at R", RESET, Sent(SYN | FIN | ACK)),
    ends("F3 SYN|ACK, wrong ACK", RESET, Sent(SYN | ACK, ack=-1000)),
    ends("F3 SYN at R with data", RESET, Sent(SYN, length=10)),
    waits("F4 SYN before R with data", NONE, Sent(SYN, seq=-5, length=10)),
    waits("F4 ACK", NONE, Sent(ACK)),
    waits("F4 ACK, same TSval", NONE, Sent(ACK, ts=0), WITH),
    waits("F4 ACK much later", NONE, Sent(ACK, ts=1000), WITH),
    waits("F4 ACK in the window", NONE, Sent(ACK, seq=1)),
    waits("F4 ACK at the window's end", NONE, Sent(ACK, windows=1)),
    waits("F4 no flags", NONE, Sent(0)),
    waits("F4 FIN without ACK", NONE, Sent(FIN)),
    waits("F4 data without ACK", NONE, Sent(PSH, length=1)),
    ends("F5 data", RESET, Sent(ACK | PSH, length=1)),
    ends("F5 data, wrong ACK", RESET, Sent(ACK | PSH, length=1, ack=-5)),
    ends("F5 data at the window's last byte", RESET, Sent(ACK, windows=1, seq=-1, length=1)),
    ends("F5 data and FIN", RESET, Sent(ACK | FIN, length=1)),
    ends("F5 FIN after a gap", RESET, Sent(ACK | FIN, seq=1)),
    ends("F5 data, half of it old", RESET, Sent(ACK, seq=-5, length=10)),
    ends("F5 one old byte and one new", RESET, Sent(ACK, seq=-1, length=2)),
    ends("F5 SYN|ACK before R with data", RESET, Sent(SYN | ACK, seq=-5, length=10)),
    Row("F6 FIN|ACK", Sent(FIN | ACK), FIN_ACKED, TIME_WAIT, restarts=True, ts_moved=1),
    Row("F6 FIN|ACK, wrong ACK", Sent(FIN | ACK, ack=1000), FIN_ACKED, TIME_WAIT, restarts=True, ts_moved=1),
    Row("F6 FIN|ACK and old data", Sent(FIN | ACK, -10, 10), FIN_ACKED, TIME_WAIT, restarts=True, ts_moved=1),
    Row("F6 FIN|ACK much later", Sent(FIN | ACK, ts=1000), FIN_ACKED, TIME_WAIT, True, 1000, WITH),
    Row("F6 FIN|ACK without timestamps", Sent(FIN | ACK, ts=None), FIN_ACKED, TIME_WAIT, True, 0, WITH),
)
# fmt: on


def reply_of(row: Row, subject: Subject) -> list[Reply]:
    """What the row's word means."""
    moved = row.ts_moved if subject.timestamps else 0
    replies = {
        ACKED: [subject.acknowledgment()],
        FIN_ACKED: [subject.acknowledgment(1, moved)],
        RESET: [subject.reset(row.sent)],
    }
    return replies.get(row.reply, [])


def assert_row(row: Row, subject: Subject) -> None:
    """The reply, the state, the timestamp and the timer are those of the row."""
    before = subject.remaining()
    assert reply_of(row, subject) == subject.send(row.sent)
    if row.state != GONE:
        assert row.restarts == (subject.remaining() > before + RESTARTED)
    moved = row.ts_moved if subject.timestamps else 0
    assert After(row.state, moved) == subject.after()


def cases(rows: tuple[Row, ...]) -> pytest.MarkDecorator:
    """Each row, on each kind of connection it is for, in each family."""
    each = [(row, ts, family) for row in rows for ts in row.timestamps for family in FAMILIES]
    return pytest.mark.parametrize(
        ("row", "timestamps", "family"),
        each,
        ids=[f"{row.name}, {family}{', timestamps' * ts}" for row, ts, family in each],
    )


@cases(TIME_WAIT_ROWS)
def test_time_wait(duties: Duties, row: Row, timestamps: bool, family: str) -> None:  # noqa: FBT001
    """A session in TIME_WAIT answers, and goes on or ends, by the rules T1 to T6."""
    assert_row(row, duties().aged(TIME_WAIT, family, timestamps=timestamps))


@cases(FIN_WAIT2_ROWS)
def test_fin_wait2(duties: Duties, row: Row, timestamps: bool, family: str) -> None:  # noqa: FBT001
    """A session in FIN_WAIT2 whose application is gone answers, and goes on or ends, by the rules F1 to F6."""
    assert_row(row, duties().aged(FIN_WAIT2, family, timestamps=timestamps))


@cases(RFC1337_ROWS)
def test_time_wait_with_rfc1337(duties: Duties, row: Row, timestamps: bool, family: str) -> None:  # noqa: FBT001
    """With net.ipv4.tcp_rfc1337 a RST does not end TIME_WAIT, and takes no part of its rules but the timestamp."""
    assert_row(row, duties(tcp_rfc1337=1).aged(TIME_WAIT, family, timestamps=timestamps))


@cases(FIN_WAIT2_RFC1337_ROWS)
def test_fin_wait2_with_rfc1337(duties: Duties, row: Row, timestamps: bool, family: str) -> None:  # noqa: FBT001
    """net.ipv4.tcp_rfc1337 does not protect FIN_WAIT2."""
    assert_row(row, duties(tcp_rfc1337=1).aged(FIN_WAIT2, family, timestamps=timestamps))
