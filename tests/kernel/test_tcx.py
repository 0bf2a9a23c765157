"""TCX links on a real device: their order, their pins, and what becomes of them."""

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load.guards import standing
from tests.load.netns import Namespace, namespace
from twctl.linux import libbpf, tcx
from twctl.linux.netns import inside
from twctl.linux.tc import EGRESS, INGRESS
from twctl.table.shared import bpf_folder

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
        reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
    ),
    pytest.mark.skipif(not tcx.is_available(), reason="the kernel has no TCX (Linux 6.6)"),
]

CLASS_ID, CLASSIFIED = 4099, 0x77
TEXT = b"int classified(struct __sk_buff *skb) { skb->mark = skb->tc_classid; return 0x77; }"


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """A namespace with lo."""
    with namespace() as made:
        yield made


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of pins."""
    made = Path(f"/sys/fs/bpf/twctl-test-{os.getpid()}-tcx")
    made.mkdir(mode=0o700)
    yield made
    for pin in made.iterdir():
        pin.unlink()
    made.rmdir()


@pytest.fixture
def array() -> Iterator[int]:
    """Descriptor of an empty one."""
    made = libbpf.program_array("test", 2)
    yield made
    os.close(made)


def names(ns: Namespace, side: str) -> list[str]:
    """Of what is on lo, in order."""
    return [name for name, _ in standing(ns, "lo")[side]]


def put(ns: Namespace, array: int, folder: Path, side: int, name: str) -> Path:
    """A label with this name on lo."""
    label = tcx.load_label(name, CLASS_ID, array, 0)
    try:
        return inside(ns.name, lambda: tcx.put(label, tcx.LO, side, folder, name))
    finally:
        os.close(label)


def test_the_newest_is_first_in_and_last_out(ns: Namespace, array: int, folder: Path) -> None:
    """Of three on each side; what is taken away leaves the others in their order."""
    pins = [[put(ns, array, folder, side, f"p{i}") for i in range(3)] for side in (INGRESS, EGRESS)]
    assert (["p2", "p1", "p0"], ["p0", "p1", "p2"]) == (names(ns, "ingress"), names(ns, "egress"))
    for _ in range(2):
        tcx.remove(pins[0][1])
        tcx.remove(pins[1][1])
    assert (["p2", "p0"], ["p0", "p2"]) == (names(ns, "ingress"), names(ns, "egress"))


def test_another_program_takes_the_same_place(ns: Namespace, array: int, folder: Path) -> None:
    """In the middle of others it stays there."""
    pins = [put(ns, array, folder, INGRESS, f"p{i}") for i in range(3)]
    label = tcx.load_label("other", CLASS_ID, array, 1)
    tcx.exchange(pins[1], label)
    os.close(label)
    assert ["p2", "other", "p0"] == names(ns, "ingress")


def test_a_link_knows_its_device_as_long_as_that_is_there(array: int, folder: Path) -> None:
    """Afterwards it is as good as none; so is a pin that is not there."""
    with namespace() as ns:
        pin = put(ns, array, folder, EGRESS, "mine")
        found = tcx.find(pin)
        assert found
        assert (tcx.LO, tcx.PLACES[EGRESS]) == (found.device, found.place)
        assert str(found.number) == pin.name.rpartition("-")[2]
        tcx.remove(pin)
        assert tcx.find(pin) is None
        ns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        label = tcx.load_label("mine", CLASS_ID, array, 0)
        pin = inside(ns.name, lambda: tcx.put(label, 2, INGRESS, folder, "mine"))
        os.close(label)
        assert tcx.find(pin)
        ns.ip("link", "del", "veth0")
        assert tcx.find(pin) is None
        tcx.remove(pin)


def test_a_label_goes_on_with_a_program_that_finds_the_class_id(array: int) -> None:
    """Where the array leads nowhere the packet passes."""
    import bcc  # noqa: PLC0415 - Debian's, and heavy

    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    loaded = bcc.BPF(text=TEXT)
    label = tcx.load_label("label", CLASS_ID, array, 1)
    assert 0xFFFFFFFF == result(label)[0]
    program = loaded.load_func(b"classified", bcc.BPF.SCHED_CLS).fd
    libbpf.map_update(array, struct.pack("=I", 1), struct.pack("=i", program))
    assert (CLASSIFIED, CLASS_ID) == result(label)
    os.close(label)
    loaded.cleanup()


def result(program: int) -> tuple[int, int]:
    """What a program returns for a packet, and the mark that it leaves."""
    packet, context = ctypes.create_string_buffer(64), ctypes.create_string_buffer(192)
    options = libbpf.TestRun(
        sz=ctypes.sizeof(libbpf.TestRun),
        data_in=ctypes.addressof(packet),
        data_size_in=64,
        ctx_out=ctypes.addressof(context),
        ctx_size_out=192,
        repeat=1,
    )
    assert 0 == libbpf.libbpf().bpf_prog_test_run_opts(program, ctypes.byref(options))
    return int(options.retval), int(struct.unpack_from("=I", context.raw, 8)[0])  # struct __sk_buff.mark
