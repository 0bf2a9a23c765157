"""BPF filters on a real interface's clsact qdisc, as `tc` shows them."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from pyroute2 import IPRoute

from tests.load.netns import Namespace, namespace
from twctl.linux import libbpf, tc
from twctl.linux.devices import Device, devices, find_device
from twctl.linux.netlink import RouteNetlink
from twctl.linux.tc import EGRESS, INGRESS, Filter, Program
from twctl.table.shared import bpf_folder

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

LO = 1
CLASS_ID = 1 << 16 | 23


@pytest.fixture(scope="module")
def program() -> Iterator[int]:
    """Descriptor of a program that lets everything pass."""
    import bcc  # noqa: PLC0415 - Debian's, and heavy

    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    loaded = bcc.BPF(text=b"int pass_all(struct __sk_buff *skb) { return 0; }")
    yield int(loaded.load_func(b"pass_all", bcc.BPF.SCHED_CLS).fd)
    loaded.cleanup()


@pytest.fixture
def host() -> Iterator[tuple[Namespace, IPRoute]]:
    """A namespace with lo, and a socket for requests in it."""
    with ExitStack() as stack:
        made = stack.enter_context(namespace())
        netlink = stack.enter_context(closing(RouteNetlink(made.name)))
        yield made, stack.enter_context(netlink.requests())


def shown(ns: Namespace, *words: str) -> list[dict[str, Any]]:
    """What `tc -j` prints."""
    command = ns.command("tc", "-j", *words)
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(json.loads(printed or "[]"))


def placed(program: int, parent: int = INGRESS, name: str = "mine", class_id: int = CLASS_ID) -> Program:
    """At the guard's own place."""
    return Program(Filter(parent, 1, 0x7477, "bpf", name, libbpf.program_id(program), class_id), program)


@pytest.mark.parametrize(("parent", "side"), [(INGRESS, "ingress"), (EGRESS, "egress")])
def test_filter_stands_where_it_was_put(host: tuple[Namespace, IPRoute], program: int, parent: int, side: str) -> None:
    """Priority, handle, direct action, class ID, name and program are those asked for; putting it again is harmless."""
    ns, requests = host
    wanted = placed(program, parent)
    tc.attach(requests, LO, [], [wanted])
    for _ in range(2):
        tc.put_filter(requests, LO, wanted)
        (found,) = (each for each in shown(ns, "filter", "show", "dev", "lo", side) if "options" in each)
        options = found["options"]
        assert (found["pref"], found["protocol"], found["kind"]) == (1, "all", "bpf")
        assert (options["handle"], options["bpf_name"], options["direct-action"]) == ("0x7477", "mine", True)
        assert options["flowid"] == "1:17"
        assert options["prog"]["id"] == libbpf.program_id(program)
        assert tc.filters(requests, LO) == [wanted.place]


def test_only_the_filter_that_was_found_is_removed(host: tuple[Namespace, IPRoute], program: int) -> None:
    """Others on the same side stay, of whatever kind; the qdisc goes on its own."""
    ns, requests = host
    subprocess.run(ns.command("tc", "qdisc", "add", "dev", "lo", "clsact"), check=True)
    other = ("filter", "add", "dev", "lo", "ingress", "pref", "7", "protocol", "ip", "u32", "match", "u32", "0", "0")
    subprocess.run(ns.command("tc", *other, "classid", "1:1"), check=True)
    tc.put_filter(requests, LO, placed(program))
    mine, theirs = tc.filters(requests, LO)[0], tc.filters(requests, LO)[1:]
    assert {each[1:2] + each[3:] for each in theirs} == {(7, "u32", "", 0, 0)}
    tc.remove_filter(requests, LO, mine)
    assert tc.filters(requests, LO) == theirs
    tc.remove_clsact(requests, LO)
    assert (tc.filters(requests, LO), [each["kind"] for each in shown(ns, "qdisc", "show", "dev", "lo")]) == (
        [],
        ["noqueue"],
    )


@pytest.mark.parametrize("before", [True, False])
def test_qdisc_and_filters_are_made_in_one_request(
    host: tuple[Namespace, IPRoute], program: int, *, before: bool
) -> None:
    """The filters tell whether the qdisc was there before; what stands at their place is left alone."""
    ns, requests = host
    if before:
        subprocess.run(ns.command("tc", "qdisc", "add", "dev", "lo", "clsact"), check=True)
    there, made = ([placed(program, side, class_id=number) for side in (INGRESS, EGRESS)] for number in (23, 29))
    tc.attach(requests, LO, there, made)
    assert [each.place for each in (there if before else made)] == tc.filters(requests, LO)
    tc.attach(requests, LO, [placed(program, class_id=31)], [placed(program, class_id=31)])
    assert [each.place for each in (there if before else made)] == tc.filters(requests, LO)


def test_kinds_of_qdiscs_are_told(host: tuple[Namespace, IPRoute], program: int) -> None:
    """Of all interfaces at once; where the device is not there nothing is made, and nothing raised."""
    ns, requests = host
    assert {} == tc.qdisc_kinds(requests)
    ns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    number = {each.name: each.number for each in devices(requests)}["veth0"]
    tc.attach(requests, LO, [], [placed(program)])
    subprocess.run(ns.command("tc", "qdisc", "add", "dev", "veth0", "ingress"), check=True)
    assert {LO: "clsact", number: "ingress"} == tc.qdisc_kinds(requests)
    tc.attach(requests, 999, [placed(program)], [placed(program)])
    assert [] == tc.filters(requests, 999)
    with pytest.raises(OSError, match="No such device"):
        tc.put_filter(requests, 999, placed(program))


def test_devices_are_told_by_type_kind_port_and_xdp(host: tuple[Namespace, IPRoute]) -> None:
    """One that is not there is None."""
    ns, requests = host
    ns.ip("link", "add", "br0", "type", "bridge")
    ns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    ns.ip("link", "set", "veth0", "master", "br0")
    ns.ip("tuntap", "add", "dev", "tun0", "mode", "tun")
    found = {each.name: each for each in devices(requests)}
    assert {name: each[2:6] for name, each in found.items()} == {
        "lo": (772, "", "", False),
        "br0": (1, "bridge", "", False),
        "veth0": (1, "veth", "bridge", False),
        "veth1": (1, "veth", "", False),
        "tun0": (65534, "tun", "", False),
    }
    assert [find_device(requests, each.number) for each in found.values()] == list(found.values())
    assert find_device(requests, 999) is None


def test_xdp_is_seen(host: tuple[Namespace, IPRoute]) -> None:
    """A program on veth, attached by pyroute2."""
    import bcc  # noqa: PLC0415 - Debian's, and heavy

    ns, requests = host
    ns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    loaded = bcc.BPF(text=b"int pass_all(struct xdp_md *context) { return 2; }")
    number = {each.name: each.number for each in devices(requests)}["veth0"]
    requests.link("set", index=number, xdp_fd=loaded.load_func(b"pass_all", bcc.BPF.XDP).fd)
    assert find_device(requests, number) == Device(number, "veth0", 1, "veth", "", xdp=True)
    loaded.cleanup()
