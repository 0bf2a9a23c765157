"""The guard's filters on a device: whose they are, what they remember, and which devices need them."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from tests.load.netns import Namespace, namespace
from twctl.errors import TwctlError
from twctl.linux import libbpf, tc
from twctl.linux.devices import Device, find_device
from twctl.linux.netlink import RouteNetlink
from twctl.linux.tc import EGRESS, INGRESS, Filter
from twctl.modes.filters import NAMES, QDISC_MADE, Filters, Ours, Sides, any_left, needs_guard, owner, remove_all
from twctl.table.shared import bpf_folder

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

LO = 1
PINS = "/sys/fs/bpf/twctl"
OURS = Ours(frozenset((PINS,)), frozenset(), Path("/nowhere"))


@pytest.fixture(scope="module")
def versions() -> Iterator[list[Sides]]:
    """Two guards, each a program that lets everything pass."""
    import bcc  # noqa: PLC0415 - Debian's, and heavy

    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    loaded = [bcc.BPF(text=b"int pass_all(struct __sk_buff *skb) { return 0; }") for _ in range(2)]
    descriptors = [each.load_func(b"pass_all", bcc.BPF.SCHED_CLS).fd for each in loaded]
    yield [Sides(dict.fromkeys(NAMES, libbpf.program_id(fd)), dict.fromkeys(NAMES, fd)) for fd in descriptors]
    for each in loaded:
        each.cleanup()


@pytest.fixture
def host() -> Iterator[tuple[Namespace, IPRoute, Device]]:
    """A namespace, a socket for requests in it, and its lo."""
    with ExitStack() as stack:
        made = stack.enter_context(namespace())
        requests = stack.enter_context(stack.enter_context(closing(RouteNetlink(made.name))).requests())
        lo = find_device(requests, LO)
        assert lo
        yield made, requests, lo


def names(requests: IPRoute) -> list[str]:
    """Of the filters on lo."""
    return [each.name for each in tc.filters(requests, LO)]


def run(ns: Namespace, *words: str) -> None:
    """`tc` inside."""
    subprocess.run(ns.command("tc", *words), check=True)


def test_filters_say_whose_they_are(host: tuple[Namespace, IPRoute, Device], versions: list[Sides]) -> None:
    """Another twctl's are neither replaced nor removed; by all names of our own folder, ours are found."""
    _, requests, lo = host
    Filters("/bpf/other", OURS, 3, versions[0]).attach(requests, lo)
    assert [f"{name} /bpf/other" for name in NAMES.values()] == names(requests)
    with pytest.raises(TwctlError, match="lo has the guard of another twctl, which pins at /bpf/other"):
        Filters(PINS, OURS, 3, versions[1]).mend(requests, lo)
    remove_all(requests, OURS)
    assert 2 == len(names(requests))
    assert 2 == Filters(PINS, OURS._replace(names=OURS.names | {"/bpf/other"}), 3, versions[1]).mend(requests, lo)
    assert [f"{name} {PINS}" for name in NAMES.values()] == names(requests)
    remove_all(requests, OURS)
    assert [] == names(requests)


def test_an_earlier_version_takes_its_leave(host: tuple[Namespace, IPRoute, Device], versions: list[Sides]) -> None:
    """Its filters do not say whose they are, but their programs do; where ours are put they are replaced."""
    _, requests, lo = host
    place = [Filter(side, 1, 0x7477, "bpf", name, 0, 1 << 16 | 3) for side, name in NAMES.items()]
    programs = [tc.Program(each, versions[0].descriptors[INGRESS]) for each in place]
    earlier = OURS._replace(programs=frozenset(versions[0].ids.values()))
    tc.attach(requests, LO, [], programs)
    assert ["", ""] == [owner(each) for each in tc.filters(requests, LO)]
    remove_all(requests, OURS)
    assert (2, True, False) == (len(names(requests)), any_left(requests, earlier), any_left(requests, OURS))
    assert 2 == Filters(PINS, OURS, 3, versions[1]).mend(requests, lo)
    assert ([PINS, PINS], True) == ([owner(each) for each in tc.filters(requests, LO)], any_left(requests, OURS))
    remove_all(requests, OURS)
    tc.attach(requests, LO, programs, [])
    remove_all(requests, earlier)
    assert [] == names(requests)


@pytest.mark.parametrize("ours", [True, False])
def test_whose_qdisc_it_is_outlives_versions_and_losses(
    host: tuple[Namespace, IPRoute, Device], versions: list[Sides], *, ours: bool
) -> None:
    """A filter tells its successor and its neighbour; only a qdisc that was made for the guard goes with it."""
    ns, requests, lo = host
    if not ours:
        run(ns, "qdisc", "add", "dev", "lo", "clsact")
    filters = Filters(PINS, OURS, 3, versions[0])
    filters.attach(requests, lo)
    assert 0 == filters.mend(requests, lo)
    run(ns, "filter", "del", "dev", "lo", "ingress")
    assert 1 == filters.mend(requests, lo)
    filters = Filters(PINS, OURS, 3, versions[1])
    assert 2 == filters.mend(requests, lo)
    assert {(3 + 1) << 4 | 0b0011} == {each.class_id & 0xFFFF for each in tc.filters(requests, LO)}
    assert {ours} == {bool(each.class_id & QDISC_MADE) for each in tc.filters(requests, LO)}
    remove_all(requests, OURS)
    assert ({} if ours else {LO: "clsact"}) == tc.qdisc_kinds(requests)


def test_a_qdisc_that_others_use_by_now_stays(host: tuple[Namespace, IPRoute, Device], versions: list[Sides]) -> None:
    """With what they have on it."""
    ns, requests, lo = host
    Filters(PINS, OURS, 3, versions[0]).attach(requests, lo)
    rule = ("pref", "7", "protocol", "ip", "u32", "match", "u32", "0", "0", "classid", "1:1")
    run(ns, "filter", "add", "dev", "lo", "egress", *rule)
    remove_all(requests, OURS)
    assert {(EGRESS, "u32")} == {(each.parent, each.kind) for each in tc.filters(requests, LO)}
    assert {LO: "clsact"} == tc.qdisc_kinds(requests)


def test_a_qdisc_without_a_way_out_is_refused(host: tuple[Namespace, IPRoute, Device], versions: list[Sides]) -> None:
    """`ingress` stands at the same place and takes filters of both sides; nothing of ours stays on it."""
    ns, requests, lo = host
    run(ns, "qdisc", "add", "dev", "lo", "ingress")
    filters = Filters(PINS, OURS, 3, versions[0])
    filters.attach(requests, lo)
    with pytest.raises(FileExistsError, match="its qdisc ingress"):
        filters.mend(requests, lo)
    assert ([], {LO: "ingress"}) == (names(requests), tc.qdisc_kinds(requests))


def test_a_device_needs_the_guard_where_tcp_passes_it_last() -> None:
    """Ports leave it to their master, CAN has no TCP; what may have, and cannot be read, is refused."""
    for type_, port_of, needed in ((1, "", True), (65534, "", True), (1, "bridge", False), (280, "", False)):
        assert needed == needs_guard(Device(7, "eth7", type_, "", port_of, xdp=False))
    for type_ in (32, 24, 65535):
        with pytest.raises(TwctlError, match=f"cannot read what passes eth7: it is of type {type_}"):
            needs_guard(Device(7, "eth7", type_, "", "", xdp=False))
