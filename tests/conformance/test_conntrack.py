"""conntrack's entry of a connection outlives its session, or predates it, or goes before: the peer does not notice."""

from collections.abc import Iterator

import pytest

from tests.load import wait_until
from tests.load.duty import NO_VESTIGIAL, STOCK, TIME_WAIT, VESTIGIAL, Reply, Sent, Subject
from tests.load.paths import IPV4, IPV6
from tests.load.scripts import SCRIPTS
from tests.load.segments import ACK, FIN, PSH, RST, SYN
from tests.load.translations import TRANSLATIONS, TranslatedDuty, entries, forget, translated_duties, translated_duty

pytestmark = [
    pytest.mark.alone("it waits for replies"),
    pytest.mark.skipif(NO_VESTIGIAL is not None, reason=f"{NO_VESTIGIAL}"),
]

FAMILIES = (IPV4, IPV6)
# One for each thing that conntrack does: the destination, the source, both, either with ports of its own choice.
DIALLED = ("service", "masquerade", "dnat and snat", "kube-proxy service")
SERVED = ("redirect", "dnat to a local socket", "mesh inbound")
FIN_AGAIN = Sent(FIN | ACK, seq=-1)
# No limit of ACKs, so that each answer is comparable.
SETTING = {"net.ipv4.tcp_invalid_ratelimit": 0}
# Ways into TIME_WAIT, with the full socket in FIN_WAIT2 that mode vestigial keeps.
WAYS = ("fin_wait2", "orphan_late_fin", "close_late_fin", "fin_with_ack", "orphan_fin_with_ack", "simultaneous")


@pytest.fixture(scope="module")
def guarded() -> Iterator[dict[str, TranslatedDuty]]:
    """A namespace for each translation."""
    asked = {name: TRANSLATIONS[name] for name in (*DIALLED, *SERVED, "tproxy")}
    with translated_duties(VESTIGIAL, asked, SETTING) as made:
        yield made


@pytest.fixture(scope="module")
def both(
    request: pytest.FixtureRequest, guarded: dict[str, TranslatedDuty]
) -> Iterator[tuple[TranslatedDuty, TranslatedDuty]]:
    """A stock host and a guarded one, with the translation that a test asks for."""
    with translated_duty(STOCK, TRANSLATIONS[request.param], SETTING) as stock:
        yield stock, guarded[request.param]


def answers(subject: Subject, sent: Sent = FIN_AGAIN) -> list[Reply]:
    """What the peer gets, its own session's or not."""
    replies = subject.send(sent)
    assert [] == subject.duty.peer.strays()
    return replies


# ---- an entry that goes before the session ----


@pytest.mark.parametrize("both", [*DIALLED, *SERVED], indirect=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_session_answers_without_an_entry_of_conntrack(both: tuple[TranslatedDuty, ...], family: str) -> None:
    """It was deleted: a stock host does not know its own session by the tuple on the wire, and resets the peer."""
    for duty in both:
        subject = duty.session(TIME_WAIT, family)
        forget(duty, subject)
        found = answers(subject)
        if duty.watch:
            assert [subject.acknowledgment()] == found
        else:
            assert all(one.flags & RST for one in found)
        assert duty.fires(subject)


@pytest.mark.parametrize("both", [*DIALLED, *SERVED], indirect=True)
def test_a_session_answers_when_the_entry_s_time_is_up(both: tuple[TranslatedDuty, ...]) -> None:
    """Conntrack's own time for TIME_WAIT is shorter than that of the session."""
    _, guarded = both
    guarded.ns.sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", 1)
    subject = guarded.session()
    guarded.ns.sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", 120)
    assert entries(guarded, subject)
    wait_until(lambda: not entries(guarded, subject), what="conntrack forgets")
    assert [subject.acknowledgment()] == answers(subject)


# ---- an entry that is older than the session ----


@pytest.mark.parametrize("both", DIALLED, indirect=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_entry_may_be_older_than_the_session(both: tuple[TranslatedDuty, ...], family: str) -> None:
    """The peer's RST ended the first session; the second has the application's tuple of the first."""
    for duty in both:
        first = duty.session(TIME_WAIT, family)
        assert [] == first.send(Sent(RST))
        assert duty.fires(first) is None
        assert entries(duty, first)
        local, port, *_ = duty.ends(first.connection)
        second = duty.again(first, family)
        assert (local, port) == duty.ends(second.connection)[:2]
        assert [second.acknowledgment()] == answers(second)
        assert [second.acknowledgment()] == answers(second, Sent(ACK | PSH, seq=-10, length=10))


@pytest.mark.parametrize("both", DIALLED, indirect=True)
def test_an_entry_that_outlives_the_session_lets_a_new_one_begin(both: tuple[TranslatedDuty, ...]) -> None:
    """The host uses the tuple again while the session lasts: its SYN goes out, and the new connection works."""
    _, guarded = both
    first = guarded.session()
    second = guarded.again(first)
    assert guarded.ends(first.connection) == guarded.ends(second.connection)
    assert [second.acknowledgment()] == answers(second)


# ---- ways into TIME_WAIT ----


@pytest.mark.parametrize("both", [*DIALLED, *SERVED], indirect=True)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_into_time_wait_is_known_by_its_wire(both: tuple[TranslatedDuty, ...], way: str, family: str) -> None:
    """FINs that cross, one that carries the other's ACK, a peer that is slow to close: a FIN again is acknowledged."""
    for duty in both:
        sock, connection = duty.open(family)
        with sock:
            SCRIPTS[way][0](sock, connection)
        subject = duty.subject(connection)
        assert [subject.acknowledgment()] == answers(subject)


# ---- a new connection in the place of a session ----


@pytest.mark.parametrize("both", [*SERVED, "tproxy"], indirect=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_syn_finds_the_listener(both: tuple[TranslatedDuty, ...], family: str) -> None:
    """An acceptable one ends the session and is accepted by the socket that listens; another is acknowledged."""
    for duty in both:
        with duty.served(family) as (subject, listener):
            if not duty.translation.same:  # of a transparent proxy any is
                assert [subject.acknowledgment()] == answers(subject, Sent(SYN, seq=-5000, ts=0))
            (reply,) = subject.segments(subject.packet(Sent(SYN, seq=70_000)))
            assert reply.has(SYN | ACK)
            assert duty.fires(subject) is None
            # Linux takes it only if it echoes the SYN|ACK's own timestamp, which may be a millisecond after the last.
            told = Sent(ACK | PSH, seq=70_001, length=3)
            subject.segments(subject.packet(told, ack=reply.end, tsecr=reply.tsval or 0))
            with listener.accept()[0] as accepted:
                assert accepted.recv(3) == b"xxx"
