"""The guard beside programs of others on a device: first in, last out, and all of them work."""

import contextlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest

from tests.kernel.test_guard import buckets
from tests.load import counters, foreign, paths, wait_until
from tests.load.clsact import PREFIX
from tests.load.daemon import Daemon, daemon
from tests.load.foreign import CLSACT, TCX
from tests.load.guards import guarded, standing
from tests.load.netns import Link, Namespace, link, namespace
from tests.load.paths import IPV4, IPV6, MAPPED
from tests.load.segments import ACK, FIN, RST, Capture, capture, inject
from twctl.linux import libbpf, tcx
from twctl.table.enrolments import NETNS_WITNESSED, witnessed
from twctl.table.maps import Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 7
LOOK = 40  # s: a look each 10 s
TIMES = "[time_wait]\nlocal = 60\n"
# The guard's form and theirs. Where the kernel has no TCX nobody has it.
FORMS = [(TCX, TCX), (TCX, CLSACT), (CLSACT, CLSACT)]


@pytest.fixture(scope="module")
def programs() -> Iterator[Mapping[str, int]]:
    """Of somebody else."""
    with foreign.loaded() as found:
        yield found


def prefix(form: str) -> tuple[str, ...]:
    """Words before a command that is to find a kernel with or without TCX."""
    if form == TCX and not tcx.is_available():
        pytest.skip("the kernel has no TCX (Linux 6.6)")
    return PREFIX if form == CLSACT else ()


def is_in_place(ns: Namespace, device: str) -> bool:
    """First in, last out."""
    found = standing(ns, device)
    return found["ingress"][0][0] == "twctl_ingress" and found["egress"][-1][0] == "twctl_egress"


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("form", "theirs"), FORMS)
def test_the_guard_is_first_in_and_last_out(
    programs: Mapping[str, int], form: str, theirs: str, *, before: bool
) -> None:
    """Of programs that rewrite, redirect and end it. Sessions have their tuple on the wire, and are answered for."""
    ingress = {name: programs[name] for name in ("around", "rewrite_in", "ends")}
    egress = {"rewrite_out": programs["rewrite_out"]}
    with ExitStack() as stack:
        both = stack.enter_context(link())

        def come() -> None:
            stack.enter_context(foreign.attached(both.client, both.device, theirs, ingress, egress))

        def guard() -> Daemon:
            started = daemon(both.client, mode="vestigial", config=TIMES, prefix=prefix(form))
            return stack.enter_context(started)

        one = in_order(before=before, come=come, guard=guard)
        wait_until(lambda: is_in_place(both.client, both.device), what="first in, last out", timeout=LOOK)
        wait_until(lambda: numbers(both) == [4, 2], what="what was there before has gone")
        wait_until(lambda: is_witnessed(one), what="the guard mends what they do to answers", timeout=LOOK)
        with capture(both.server, both.device) as wire:
            paths.fin_wait2(paths.over_link(both, IPV4), N)
            sessions = one.table()
            assert [each.local_port ^ 1 for each in sessions] == [
                each.wire.local_port for each in sessions if each.wire
            ]
            assert N == len(sessions)
            assert (N, 0, 0) == witnessed(Table(one.pins / "current"), 0)
            assert_answered(both, wire)


def numbers(both: Link) -> list[int]:
    """How many programs there are on each side."""
    return [len(each) for each in standing(both.client, both.device).values()]


def in_order(*, before: bool, come: Callable[[], None], guard: Callable[[], Daemon]) -> Daemon:
    """The others come before the guard or after it."""
    if before:
        come()
    one = guard()
    if not before:
        come()
    return one


def assert_answered(both: Link, wire: Capture) -> None:
    """Each FIN that the server sends again gets an ACK that it knows for its own, and no RST."""
    found = wire.segments()
    fins = [each for each in found if each.source == both.server_ipv4 and each.flags & FIN]
    assert N == len(fins)
    for each in fins:
        inject(both.server, each)
    wait_until(lambda: len(wire.segments()) >= len(found) + 2 * N, what="answers")
    answers = [each for each in wire.segments()[len(found) :] if each.source == both.client_ipv4]
    assert [ACK] * N == [each.flags & (ACK | FIN | RST) for each in answers]
    assert sorted(each.tuple for each in fins) == sorted(each.tuple[2:] + each.tuple[:2] for each in answers)
    assert all(each.intact for each in answers)


@pytest.mark.parametrize(("form", "theirs"), FORMS)
def test_who_lets_packets_out_before_the_guard_suspends_it(programs: Mapping[str, int], form: str, theirs: str) -> None:
    """It misses local SYNs then. The kernel keeps TIME_WAIT sockets until that program has gone."""
    with link() as both, daemon(both.client, mode="vestigial", config=TIMES, prefix=prefix(form)) as one:
        path = paths.over_link(both, IPV4)
        with foreign.attached(both.client, both.device, theirs, {}, {"ends": programs["ends"]}):
            wait_until(lambda: is_witnessed(one), what="seen", timeout=LOOK)
            paths.fin_wait2(path, N)
            assert (0, N, 0) == witnessed(Table(one.pins / "current"), 0)
            wait_until(lambda: buckets(both.client) > 0, what="the kernel's again", timeout=LOOK)
            assert 1 == one.metric("twctl_guard_obstacles", kind="egress")
            paths.fin_wait2(path, N)
            assert N == counters.time_wait_count(both.client)
            assert is_in_place(both.client, both.device)
        wait_until(lambda: buckets(both.client) == 0, what="the guard's again", timeout=2 * LOOK)
        assert 0 == one.metric("twctl_guard_obstacles", kind="egress")


def test_who_lets_packets_on_to_the_guard_changes_nothing(programs: Mapping[str, int]) -> None:
    """Each session has a note, which says what its socket says: it has one tuple."""
    with link() as both:
        passing = foreign.attached(both.client, both.device, TCX, {}, {"passes": programs["passes"]})
        with passing, daemon(both.client, mode="vestigial", config=TIMES, prefix=prefix(TCX)) as one:
            for family in (IPV6, IPV4, MAPPED):
                paths.fin_wait2(paths.over_link(both, family), N)
            assert (3 * N, 0, 0) == witnessed(Table(one.pins / "current"), 0)
            assert [None] * 3 * N == [each.wire for each in one.table()]


def is_witnessed(one: Daemon) -> bool:
    """Whether the probes know that the guard may miss what goes out."""
    with contextlib.closing(Table(one.pins / "current")) as table:
        fd = table.fd("namespaces")
    try:
        (flags,) = libbpf.map_items(fd).values()
    finally:
        os.close(fd)
    return bool(struct.unpack("=I", flags)[0] & NETNS_WITNESSED)


def test_a_device_that_moves_leaves_the_guard_behind() -> None:
    """A link would go with it, and take its segments for the first namespace's; where it comes to there is no guard."""
    with namespace() as ns, namespace() as other, daemon(ns, mode="vestigial", prefix=prefix(TCX)):
        ns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        wait_until(lambda: len(guarded(ns, "veth0")) == len(guarded(ns, "veth1")) == 2, what="guarded")
        ns.ip("link", "set", "veth0", "netns", other.name)
        wait_until(lambda: guarded(other, "veth0") == [], what="it has left the guard")
        assert 2 == len(guarded(ns, "veth1"))
