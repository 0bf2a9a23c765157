"""What a session in TIME_WAIT, or in FIN_WAIT2 after close(), answers to each kind of segment, and what becomes of it.

The rules are those of tcp_timewait_state_process() (net/ipv4/tcp_minisocks.c), numbered: T for TIME_WAIT, F for
FIN_WAIT2, A for the acknowledgment. The stock kernel passes every test here, so a guard that passes equals it.
"""

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import pytest

from tests.load import wait_until
from tests.load.duty import (
    AGED,
    FIN_WAIT2,
    GONE,
    TIME_WAIT,
    After,
    Duty,
    Reply,
    Sent,
    Subject,
)
from tests.load.paths import IPV4, IPV6, MAPPED
from tests.load.peer import Connection
from tests.load.scripts import SCRIPTS
from tests.load.segments import ACK, FIN, PSH, RST, SYN, URG, Segment, after, build

Duties = Callable[..., Duty]
N = 23
FAMILIES = (IPV4, IPV6, MAPPED)
LINGER2 = (socket.IPPROTO_TCP, socket.TCP_LINGER2)
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


def turns(name: str, sent: Sent, *, ts_moved: int = 1, timestamps: tuple[bool, ...] = ANY) -> Row:
    """The session goes from FIN_WAIT2 to TIME_WAIT, and its time begins anew."""
    return Row(name, sent, FIN_ACKED, TIME_WAIT, restarts=True, ts_moved=ts_moved, timestamps=timestamps)


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
    turns("F6 FIN|ACK", Sent(FIN | ACK)),
    turns("F6 FIN|ACK, wrong ACK", Sent(FIN | ACK, ack=1000)),
    turns("F6 FIN|ACK and old data", Sent(FIN | ACK, seq=-10, length=10)),
    turns("F6 FIN|ACK much later", Sent(FIN | ACK, ts=1000), ts_moved=1000, timestamps=WITH),
    turns("F6 FIN|ACK without timestamps", Sent(FIN | ACK, ts=None), ts_moved=0, timestamps=WITH),
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
    """The reply, the state and the timestamp are those of the row."""
    assert reply_of(row, subject) == subject.send(row.sent)
    moved = row.ts_moved if subject.timestamps else 0
    assert After(row.state, moved) == subject.after()


def assert_timed_row(row: Row, subject: Subject) -> None:
    """The same, and the timer too is that of the row."""
    before = subject.fires()
    assert_row(row, subject)
    if row.state != GONE:
        assert row.restarts == subject.restarted(before)


def cases(rows: tuple[Row, ...]) -> pytest.MarkDecorator:
    """Each row, on each kind of connection it is for, in each family."""
    each = [(row, ts, family) for row in rows for ts in row.timestamps for family in FAMILIES]
    return pytest.mark.parametrize(
        ("row", "timestamps", "family"),
        each,
        ids=[f"{row.name}, {family}{', timestamps' * ts}" for row, ts, family in each],
    )


@cases(TIME_WAIT_ROWS)
def test_time_wait(duties: Duties, row: Row, family: str, *, timestamps: bool) -> None:
    """A session in TIME_WAIT answers, and goes on or ends, by the rules T1 to T6."""
    assert_timed_row(row, duties().aged(TIME_WAIT, family, timestamps=timestamps))


@cases(FIN_WAIT2_ROWS)
def test_fin_wait2(duties: Duties, row: Row, family: str, *, timestamps: bool) -> None:
    """A session in FIN_WAIT2 whose application is gone answers, and goes on or ends, by the rules F1 to F6."""
    assert_timed_row(row, duties().aged(FIN_WAIT2, family, timestamps=timestamps))


@cases(RFC1337_ROWS)
def test_time_wait_with_rfc1337(duties: Duties, row: Row, family: str, *, timestamps: bool) -> None:
    """With net.ipv4.tcp_rfc1337 a RST does not end TIME_WAIT, and takes no part of its rules but the timestamp."""
    assert_timed_row(row, duties(tcp_rfc1337=1).aged(TIME_WAIT, family, timestamps=timestamps))


@cases(FIN_WAIT2_RFC1337_ROWS)
def test_fin_wait2_with_rfc1337(duties: Duties, row: Row, family: str, *, timestamps: bool) -> None:
    """net.ipv4.tcp_rfc1337 does not protect FIN_WAIT2."""
    assert_timed_row(row, duties(tcp_rfc1337=1).aged(FIN_WAIT2, family, timestamps=timestamps))


@pytest.mark.parametrize("r", [0, 5, 2**32 - 5, HALF])
@pytest.mark.parametrize("ts_recent", [1, 2**32 - 2, HALF])
def test_sequence_numbers_and_timestamps_wrap(
    duties: Duties, monkeypatch: pytest.MonkeyPatch, r: int, ts_recent: int
) -> None:
    """The rules hold wherever R and TSr stand in their circles of 2^32."""
    duty = duties()
    monkeypatch.setattr(duty.peer, "clock", lambda: ts_recent)
    for row in TIME_WAIT_ROWS + FIN_WAIT2_ROWS:
        for timestamps in row.timestamps:
            state = TIME_WAIT if row in TIME_WAIT_ROWS else FIN_WAIT2
            taken = 2 if state == TIME_WAIT else 1  # the peer's SYN, and its FIN
            subject = duty.session(state, timestamps=timestamps, isn=(r - taken) % 2**32)
            assert r == subject.seen.rcv_nxt
            assert_row(row, subject)


def test_a_session_that_left_fin_wait2_follows_the_rules_of_time_wait(duties: Duties) -> None:
    """After the peer's FIN its repetition is acknowledged, an old RST ignored, and the RST at the new R obeyed."""
    subject = duties().session(FIN_WAIT2)
    assert [subject.acknowledgment(1, 1)] == subject.send(Sent(FIN | ACK))
    assert [subject.acknowledgment(1, 1)] == subject.send(Sent(FIN | ACK))
    assert [subject.acknowledgment(1, 1)] == subject.send(Sent(ACK | PSH, seq=1, length=10))
    assert [] == subject.send(Sent(RST))
    assert After(TIME_WAIT, 1) == subject.after()
    assert [] == subject.send(Sent(RST, seq=1))
    assert After(GONE) == subject.after()


def test_fin_wait2_ends_silently(duties: Duties) -> None:
    """F7: when its time is over nothing is sent, and the session is no more."""
    subject = duties().session(FIN_WAIT2, prepare=partial(set_option, LINGER2, 1))
    assert After(FIN_WAIT2) == subject.after()
    assert subject.connection.silent(0.9)
    assert After(FIN_WAIT2) == subject.after()
    wait_until(lambda: subject.after().state == GONE, what="the timer fires")
    assert 1 <= subject.age < 2


# ---- reopening: the SYN of T3, with a listener ----

# fmt: off
SYN_ROWS = (
    ("after R", Sent(SYN, seq=1), True, ANY),
    ("just less than half a circle after R", Sent(SYN, seq=HALF - 1, ts=0), True, WITH),
    ("half a circle after R", Sent(SYN, seq=HALF, ts=0), True, WITH),
    ("half a circle after R", Sent(SYN, seq=HALF), True, WITHOUT),
    ("just over half a circle after R", Sent(SYN, seq=HALF + 1, ts=0), False, WITH),
    ("just over half a circle after R", Sent(SYN, seq=HALF + 1), False, WITHOUT),
    ("after R, same TSval", Sent(SYN, seq=1, ts=0), True, WITH),
    ("after R without timestamps", Sent(SYN, seq=1, ts=None), True, WITH),
    ("after R, older TSval", Sent(SYN, seq=1, ts=-1), False, WITH),
    ("at R, newer TSval", Sent(SYN, ts=1), True, WITH),
    ("before R, newer TSval", Sent(SYN, seq=-5000, ts=1), True, WITH),
    ("before R, TSval half a circle newer", Sent(SYN, seq=-5000, ts=HALF - 1), True, WITH),
    ("before R, TSval just half a circle away", Sent(SYN, seq=-5000, ts=HALF), True, WITH),
    ("before R, same TSval", Sent(SYN, seq=-5000, ts=0), False, WITH),
    ("at R, same TSval", Sent(SYN, ts=0), False, WITH),
    ("at R", Sent(SYN), False, WITHOUT),
    ("before R", Sent(SYN, seq=-1), False, WITHOUT),
    ("at R with timestamps that the connection had not", Sent(SYN, ts=1000), False, WITHOUT),
    ("after R with timestamps that the connection had not", Sent(SYN, seq=1, ts=1000), True, WITHOUT),
    ("after R with data", Sent(SYN, seq=1, length=10), True, ANY),
    ("after R with ECN", Sent(SYN | 0xC0, seq=1), True, ANY),
    ("after R with PSH and URG", Sent(SYN | PSH | URG, seq=1), True, ANY),
    ("after R with ACK", Sent(SYN | ACK, seq=1), False, ANY),
)
# fmt: on


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("sent", "accepted", "timestamps"),
    [(sent, accepted, ts) for _, sent, accepted, each in SYN_ROWS for ts in each],
    ids=[f"{name}{', timestamps' * ts}" for name, _, _, each in SYN_ROWS for ts in each],
)
def test_a_syn_reaches_the_listener_only_if_it_is_newer(
    duties: Duties, sent: Sent, family: str, *, accepted: bool, timestamps: bool
) -> None:
    """T3: by SEQ or by TSval. What is not newer is acknowledged, and the session stays."""
    with duties().served(family, timestamps=timestamps) as (subject, _listener):
        syn = subject.segment(sent)
        if not accepted:
            assert [subject.acknowledgment()] == subject.send(sent)
            assert After(TIME_WAIT) == subject.after()
            return
        (reply,) = subject.segments(build(syn))
        assert (SYN | ACK, (syn.seq + 1) % 2**32) == (reply.flags & ~0x40, reply.ack)
        # RFC 9293, MUST-8: the new sequence numbers begin after all that the old connection used
        assert after(reply.seq, subject.seen.snd_nxt)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reopened_connection_carries_bytes(duties: Duties, family: str) -> None:
    """After the SYN of T3 the tuple is the new connection's: nobody answers for the old one, nor counts its ACKs."""
    with duties().served(family) as (subject, listener):
        assert [[subject.acknowledgment()], []] == [subject.send(ELSEWHERE) for _ in range(2)]
        again = subject.connection
        again.send(SYN, seq=subject.seen.rcv_nxt + 1)
        again.expect(SYN | ACK)
        again.snd_nxt = subject.seen.rcv_nxt + 2
        again.send(ACK)
        with listener.accept()[0] as sock:
            for _ in range(N):
                again.send(ACK | PSH, b"to the kernel")
                assert sock.recv(64) == b"to the kernel"
                sock.sendall(b"to the peer")
                while again.expect(ACK).payload != b"to the peer":
                    pass
                again.send(ACK)
            SCRIPTS["fin_wait2"][0](sock, again)
        anew = replace(subject, seen=again.seen())
        assert [[anew.acknowledgment()], []] == [anew.send(ELSEWHERE) for _ in range(2)]
        assert [anew.acknowledgment()] == anew.send(Sent(FIN | ACK, seq=-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_syn_with_fin_ends_the_session_for_nothing(duties: Duties, family: str) -> None:
    """T3 does not look at the FIN bit, and a listener drops such a SYN: no reply, and no session."""
    with duties().served(family) as (subject, _listener):
        assert [] == subject.send(Sent(SYN | FIN, seq=1))
        assert After(GONE) == subject.after()


@pytest.mark.parametrize("rfc1337", [0, 1])
def test_an_old_session_heals_itself(duties: Duties, rfc1337: int) -> None:
    """A peer resets what acknowledges its SYN, and its next SYN goes through; not so with rfc1337."""
    with duties(tcp_rfc1337=rfc1337, tcp_invalid_ratelimit=0).served(timestamps=False) as (subject, _listener):
        syn = Sent(SYN, seq=-5000)
        assert [subject.acknowledgment()] == subject.send(syn)
        assert [] == subject.send(Sent(RST))
        (reply,) = subject.segments(build(subject.segment(syn)))
        assert (ACK if rfc1337 else SYN | ACK) == reply.flags


# ---- the limit of ACKs ----

ELSEWHERE = Sent(ACK, seq=-1)  # an ACK that is answered by an ACK, which the limit is for
# Rows of the tables above, by whether their ACK is limited.
LIMITED = {
    TIME_WAIT: (
        *("T5 ACK before R", "T5 ACK after R", "T5 no flags before R", "T5 SYN at R", "T5 SYN|ACK at R"),
        *("T5 SYN at R, older TSval", "T5 ACK at R, older TSval", "T5 no flags at R, older TSval"),
    ),
    FIN_WAIT2: (
        *("F1 ACK before R", "F1 no flags before R", "F1 RST before R", "F1 RST|ACK beyond the window"),
        *("F1 RST, older TSval", "F1 SYN before R", "F1 ACK at R, older TSval", "F1 SYN at R, older TSval"),
    ),
}
UNLIMITED = {
    TIME_WAIT: (
        *("T3 SYN after R", "T3 SYN, newer TSval", "T5 FIN|ACK again", "T5 FIN again without ACK", "T5 old data"),
        *("T5 old data without ACK", "T5 data at R", "T5 data and FIN at R", "T5 FIN|ACK, older TSval"),
        *("T5 data, older TSval",),
    ),
    FIN_WAIT2: (
        *("F1 old data", "F1 old FIN", "F1 data at the window's end", "F1 data, older TSval"),
        *("F1 FIN|ACK, older TSval", "F6 FIN|ACK", "F6 FIN|ACK and old data"),
    ),
}
ROWS = {row.name: row for row in TIME_WAIT_ROWS + FIN_WAIT2_ROWS}


def named(rows: Mapping[str, tuple[str, ...]]) -> pytest.MarkDecorator:
    """Each of the rows with these names, and the state that it is for."""
    return pytest.mark.parametrize(("state", "name"), [(state, name) for state in rows for name in rows[state]])


@named(LIMITED)
@pytest.mark.parametrize("family", FAMILIES)
def test_acks_of_empty_segments_and_syns_share_one_limit(duties: Duties, state: str, name: str, family: str) -> None:
    """Of 23 in a row one is answered, whatever the others are, and none soon after an ACK of another kind."""
    row = ROWS[name]
    subject = duties().session(state, family)
    replies = [subject.send(row.sent) for _ in range(N)]
    assert [[subject.acknowledgment()], *[[]] * (N - 1)] == replies
    assert [] == subject.send(ELSEWHERE)
    subject = duties().session(state, family)
    assert [subject.acknowledgment()] == subject.send(ELSEWHERE)
    assert [] == subject.send(row.sent)


@named(UNLIMITED)
@pytest.mark.parametrize("family", FAMILIES)
def test_acks_of_data_and_fin_have_no_limit(duties: Duties, state: str, name: str, family: str) -> None:
    """All of 23 are answered, also soon after an ACK that was limited, and they do not count for the limit."""
    row = ROWS[name]
    subject = duties().session(state, family)
    replies = [subject.send(row.sent) for _ in range(N)]
    assert [reply_of(row, subject)] * N == replies
    assert replies[-1] == subject.send(ELSEWHERE)
    assert [] == subject.send(ELSEWHERE)
    subject = duties().session(state, family)
    assert [subject.acknowledgment()] == subject.send(ELSEWHERE)
    assert reply_of(row, subject) == subject.send(row.sent)


@named({state: LIMITED[state] + UNLIMITED[state] for state in LIMITED})
def test_without_a_limit_all_are_answered(duties: Duties, state: str, name: str) -> None:
    """net.ipv4.tcp_invalid_ratelimit = 0 lets all 23 ACKs out."""
    subject = duties(tcp_invalid_ratelimit=0).session(state)
    assert [reply_of(ROWS[name], subject)] * N == [subject.send(ROWS[name].sent) for _ in range(N)]


@pytest.mark.parametrize(("milliseconds", "setting"), [(500, {}), (100, {"tcp_invalid_ratelimit": 100})])
@pytest.mark.parametrize("state", [TIME_WAIT, FIN_WAIT2])
def test_the_limit_is_for_a_time(duties: Duties, state: str, milliseconds: int, setting: dict[str, int]) -> None:
    """After net.ipv4.tcp_invalid_ratelimit (500 ms) the next one is answered, and not before."""
    subject = duties(**setting).session(state)
    sent = [time.monotonic()]
    assert [subject.acknowledgment()] == subject.send(ELSEWHERE)
    first = time.monotonic()

    def is_answered() -> bool:
        sent.append(time.monotonic())
        return bool(subject.send(ELSEWHERE))

    wait_until(is_answered, what="the next ACK")
    # jiffies: 4 ms or 10
    assert milliseconds / 1000 - 0.01 <= time.monotonic() - sent[0]
    assert sent[-2] - first < milliseconds / 1000 + 0.05


def test_the_limit_goes_with_the_session_into_time_wait(duties: Duties) -> None:
    """An ACK that FIN_WAIT2 has sent counts after the FIN too."""
    subject = duties().session(FIN_WAIT2)
    assert [subject.acknowledgment()] == subject.send(ELSEWHERE)
    assert [subject.acknowledgment(1, 1)] == subject.send(Sent(FIN | ACK))
    assert [] == subject.send(Sent(ACK, seq=-1))


def test_a_suppressed_ack_restarts_the_timer(duties: Duties) -> None:
    """The limit is asked last: what it holds back has restarted TIME_WAIT."""
    subject = duties(tcp_invalid_ratelimit=60_000).session()  # however late a busy machine sends the second
    assert [subject.acknowledgment()] == subject.send(ELSEWHERE)
    time.sleep(AGED)
    before = subject.fires()
    assert [] == subject.send(ELSEWHERE)
    assert subject.restarted(before)


# ---- the ACK and the RST that are sent ----


def fin_again(subject: Subject, **header: int) -> Segment:
    """The ACK of a repeated FIN, as it was on the wire. `header`: of the FIN's packet."""
    (reply,) = subject.segments(build(replace(subject.segment(Sent(FIN | ACK, seq=-1)), **header)))  # type: ignore[arg-type]
    return reply


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("state", [TIME_WAIT, FIN_WAIT2])
def test_the_timestamp_is_the_connection_s_clock(duties: Duties, state: str, family: str) -> None:
    """A2: TSval goes on from the connection's own: milliseconds, with the same offset."""
    subject = duties().aged(state, family)
    first, second = fin_again(subject), fin_again(subject)
    for reply in (first, second):
        assert reply.tsval is not None
        assert subject.seen.ts_offset is not None
        drift = (reply.tsval - reply.monotonic_ns // 1_000_000 - subject.seen.ts_offset + HALF) % 2**32 - HALF
        assert abs(drift) <= 50  # of a busy machine: clock and segment are not read at once
    assert 0 <= ((second.tsval or 0) - (first.tsval or 0)) % 2**32 <= 50


def test_no_timestamp_is_sent_while_ts_recent_is_0(duties: Duties, monkeypatch: pytest.MonkeyPatch) -> None:
    """A2: an agreed option is left out when there is nothing to echo, and is back when there is."""
    duty = duties()
    monkeypatch.setattr(duty.peer, "clock", lambda: 0)
    subject = duty.session()
    assert 0 == subject.seen.ts_recent
    plain = replace(subject.acknowledgment(), tsecr=None, options=0)
    assert [plain] == subject.send(Sent(FIN | ACK, seq=-1, ts=0))
    # 0 is not a TSr to be older than: no PAWS
    assert [] == subject.send(Sent(ACK, ts=-5))
    assert [subject.acknowledgment(ts_moved=-5)] == subject.send(Sent(FIN | ACK, seq=-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_window_is_the_last_that_was_announced(duties: Duties, family: str) -> None:
    """A1: unread data makes it smaller, and nothing makes it larger again."""

    def unread(_sock: socket.socket, connection: Connection) -> None:
        for _ in range(N):
            connection.send(ACK | PSH, b"unread" * 200)
        wait_until(lambda: duty.peer.received(connection) and connection.segments[-1].ack == connection.snd_nxt)

    duty = duties()
    subject, fresh = duty.session(family=family, prepare=unread), duty.session(family=family)
    assert [subject.acknowledgment()] == subject.send(Sent(FIN | ACK, seq=-1))
    assert subject.seen.window < fresh.seen.window


HOPS = {IPV4: (socket.IPPROTO_IP, socket.IP_TTL), IPV6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)}
TRAFFIC_CLASS = {IPV4: (socket.IPPROTO_IP, socket.IP_TOS), IPV6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)}


def set_option(option: tuple[int, int], value: int, sock: socket.socket, _connection: Connection) -> None:
    """What an application does before it closes."""
    sock.setsockopt(*option, value)


@pytest.mark.parametrize("family", [IPV4, IPV6])
@pytest.mark.parametrize("state", [TIME_WAIT, FIN_WAIT2])
def test_the_hop_limit_is_the_route_s(duties: Duties, state: str, family: str) -> None:
    """A3: neither the one that the socket had set nor that of the segment."""
    subject = duties().session(state, family, prepare=partial(set_option, HOPS[family], 33))
    assert 33 == subject.connection.segments[-1 if state == TIME_WAIT else -2].ttl
    assert 64 == fin_again(subject, ttl=17).ttl


@pytest.mark.parametrize("state", [TIME_WAIT, FIN_WAIT2])
def test_df_and_identification_do_not_depend_on_the_segment(duties: Duties, state: str) -> None:
    """A3: DF is set and the identification 0."""
    subject = duties().session(state)
    reply = fin_again(subject, identification=4711, dont_fragment=False)
    assert (True, 0) == (reply.dont_fragment, reply.identification)


@pytest.mark.parametrize("family", [IPV4, IPV6])
@pytest.mark.parametrize("state", [TIME_WAIT, FIN_WAIT2])
@pytest.mark.parametrize("tos", [0x00, 0x20, 0xB8])
def test_an_ack_has_the_traffic_class_of_the_socket(duties: Duties, state: str, family: str, tos: int) -> None:
    """A3: as the application had set it, whatever the segment has."""
    subject = duties().session(state, family, prepare=partial(set_option, TRAFFIC_CLASS[family], tos))
    assert [tos] * 4 == [fin_again(subject, tos=other).tos for other in (0x00, 0x03, 0x48, 0xBB)]


@pytest.mark.parametrize("family", [IPV4, IPV6])
@pytest.mark.parametrize("tos", [0x00, 0xB8, 0xBB])
def test_a_rst_has_the_traffic_class_of_the_segment(duties: Duties, family: str, tos: int) -> None:
    """It is that of the segment, without ECN, and not the socket's."""
    subject = duties().session(FIN_WAIT2, family, prepare=partial(set_option, TRAFFIC_CLASS[family], 0x20))
    (reply,) = subject.segments(build(replace(subject.segment(Sent(ACK, length=1)), tos=tos)))
    assert (RST, tos & 0xFC) == (reply.flags, reply.tos)


@pytest.mark.parametrize("state", [TIME_WAIT, FIN_WAIT2])
def test_the_flow_label_is_the_connection_s(duties: Duties, state: str) -> None:
    """A3: one label for the whole life, in the ACK, and in the RST that ends FIN_WAIT2."""
    subject = duties().session(state, IPV6)
    label = subject.connection.segments[-2].flow_label or subject.connection.segments[-1].flow_label
    assert 0 != label
    assert [label] * 2 == [fin_again(subject, flow_label=other).flow_label for other in (0, 0x12345)]
    assert [label] == [one.flow_label for one in subject.segments(build(subject.segment(Sent(ACK, length=1))))]
