"""Mode vestigial on the real kernel, in brief: the kernel keeps no socket, and the guard answers in its place."""

import os
import struct

import pytest

from tests.load import counters, wait_until
from tests.load.closes import run
from tests.load.daemon import Daemon, daemon
from tests.load.netns import namespace
from tests.load.peer import tun_peer
from tests.load.programs import Programs
from tests.load.scripts import scripted
from tests.load.segments import ACK, FIN, RST
from twctl.linux import libbpf
from twctl.table.maps import Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23


def acknowledged(one: Daemon) -> float:
    """Segments that the guard answered; a slow machine sends FINs over lo twice, too."""
    return one.metric("twctl_guard_segments_total", action="acknowledged")


@pytest.mark.vm
def test_closes_leave_vestiges_and_no_sockets_and_a_late_fin_is_acknowledged(probe: str) -> None:
    """23 closes over lo, 23 over a device: 46 vestiges, no kernel socket; a FIN that comes again gets its ACK."""
    life = "[time_wait]\nloopback = 60\nlocal = 60\n"
    with (
        namespace({"net.ipv4.tcp_rfc1337": 1}) as ns,
        tun_peer(ns) as peer,
        daemon(ns, probe=probe, mode="vestigial", config=life) as one,
    ):
        assert ns.sysctl("net.ipv4.tcp_max_tw_buckets") == "0"
        run(ns, "--count", str(N), "--close", "client", "--inline", "--threads", "1")
        sessions = scripted(peer, "fin_wait2", N)
        assert (2 * N, 0) == (len(one.table()), counters.time_wait_count(ns))
        resets, before = counters.tcp(ns)["OutRsts"], acknowledged(one)
        for session in sessions:
            assert session.seen
            connection = peer.connection(session.server.tuple)
            connection.send(FIN | ACK, seq=session.seen.rcv_nxt - 1, ack=session.seen.snd_nxt)
            answer = connection.expect(ACK)
            assert (session.seen.snd_nxt, session.seen.rcv_nxt) == (answer.seq, answer.ack)
        assert resets == counters.tcp(ns)["OutRsts"]
        assert N == acknowledged(one) - before
        assert one.stop() == 0
        assert ns.sysctl("net.ipv4.tcp_max_tw_buckets") != "0"


PENDING = 4096  # parts of the notes, by their key


def test_between_socket_and_vestige_no_segment_is_answered(probe: str) -> None:
    """Who closes first is noted: where the socket is gone already and the vestige not yet there, a segment is lost."""
    with (
        namespace() as ns,
        tun_peer(ns) as peer,
        daemon(ns, probe=probe, mode="vestigial") as one,
    ):
        table = Table(one.pins / "current", writable=True)
        closing = table.fd("closing")
        pending = memoryview(table.map("pending", PENDING * 8)).cast("Q")
        sock, connection = peer.dial("ipv4")
        assert {} == libbpf.map_items(closing)
        sock.close()
        connection.expect(FIN | ACK)
        notes = libbpf.map_items(closing)
        [part] = [struct.unpack("=Q", key)[0] % PENDING for key in notes]
        assert (1, 1) == (pending[part], sum(pending))
        connection.send(ACK, ack=connection.rcv_nxt - 1)  # led to its socket
        connection.send(RST | ACK)
        wait_until(lambda: libbpf.map_items(closing) == {}, what="the connection is gone, and its note")
        assert 0 == sum(pending)
        connection.send(ACK)
        assert [RST] == [each.flags for each in peer.received(connection)]
        for key, value in notes.items():
            libbpf.map_update(closing, key, value)
        pending[part] = 1
        connection.send(ACK)
        assert [] == peer.received(connection)
        assert 1 == one.metric("twctl_guard_segments_total", action="raced")
        os.close(closing)


# A bit for each note after which a FIN waits: none; nothing was led there yet; this CPU led there; another one;
# long ago; no socket was found. What is noted of the next segment is one more.
OVERTAKING = r"""
ALWAYS_INLINE bool waits(struct work *w, u64 note)
{
    u64 key = w->hash;

    closing.update(&key, &note);
    return follows_on_another_cpu(w);
}

int overtaking(struct __sk_buff *skb)
{
    struct work *w = work_of(WORKER_GUARD);
    u64 here = time_and_cpu(), there = here ^ 1, key = 23, *note;
    u32 found = 0;

    if (!w)
        return 1001;
    w->hash = key;
    note_delivery(w);
    found |= follows_on_another_cpu(w);
    found |= waits(w, NOTE_SOCKET) << 1;
    found |= waits(w, NOTE_SOCKET | here) << 2;
    found |= waits(w, NOTE_SOCKET | (there - 2 * OVERTAKING_NANOSECONDS / 256 * 256)) << 4;
    found |= waits(w, tick_now()) << 5;
    note_delivery(w);
    found |= follows_on_another_cpu(w) << 5;
    found |= waits(w, NOTE_SOCKET | there) << 3;
    note_delivery(w);
    note = closing.lookup(&key);
    if (!note)
        return 1002;
    return found | (*note - (NOTE_SOCKET | here) < 1000000 && !((*note ^ here) & NOTE_CPU)) << 6;
}
"""


def test_a_fin_waits_for_the_vestige_where_another_cpu_has_just_led_a_segment_to_the_socket() -> None:
    """Only there: it would find the socket locked, then closed."""
    assert 1 << 3 | 1 << 6 == Programs(OVERTAKING, 256, "guard.c").result("overtaking")
