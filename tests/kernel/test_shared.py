"""What Python reads from the C headers is what the compiler makes of them."""

import os
import sys
from collections.abc import Iterator, Mapping

import pytest

from twctl.classes import Class
from twctl.linux import btf, sockdiag_messages
from twctl.table import fields
from twctl.table.cheader import Struct
from twctl.table.layout import Layout
from twctl.table.shared import CONSTANTS, STRUCTS, bpf_folder
from twctl.table.sources import compile_flags, source

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

# Which program has what stands in guard/actions.h and observe/messages.h.
GUARD_ONLY = {"actions", *(name for name in CONSTANTS if name.startswith("ACTION"))}
OBSERVE_ONLY = {"diag_message", "diag_request", "inbox", "unseen", "outbox", "due", "dues", "settings"} | {
    "INBOX_BYTES",
    "SWEEP_LINES",
    "DUE_SLOTS",
    "DIAG_BY_FAMILY",
    "DIAG_TIMER_TIME_WAIT",
}


def compiles(text: str, required: tuple[str, ...], extra: list[str] | None = None) -> bool:
    """Whether the compiler takes a program."""
    bcc = pytest.importorskip("bcc")
    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    types = btf.Btf()
    sizes = dict.fromkeys(Class, 256)
    flags = compile_flags(Layout({"ipv4": sizes, "ipv6": sizes}), fields.macros(types, required))
    types.close()
    try:
        bcc.BPF(text=text.encode(), cflags=[*flags, *(extra or [])])
    except Exception:  # noqa: BLE001 - bcc raises nothing more precise
        return False
    return True


def observe() -> str:
    """The probes, without what bcc would attach to the host."""
    return source("observe.c").replace(
        "RAW_TRACEPOINT_PROBE(inet_sock_set_state)", "int unused(struct bpf_raw_tracepoint_args *ctx)"
    )


def assertions(constants: Mapping[str, int], structs: Mapping[str, Struct], without: set[str]) -> Iterator[str]:
    """Python's view, as C that compiles only if it is true."""
    for name, value in constants.items():
        if name not in without:
            yield f'_Static_assert({name} == {value}, "{name}");'
    for name, struct in structs.items():
        if name not in without:
            yield f'_Static_assert(sizeof(struct {name}) == {struct.size}, "{name}");'
            for each, field in struct.fields.items():
                where = f"__builtin_offsetof(struct {name}, {each})"
                yield f'_Static_assert({where} == {field.offset}, "{name}.{each}");'
                yield f'_Static_assert(sizeof(((struct {name} *)0)->{each}) == {field.size}, "{name}.{each}");'


def test_the_compiler_agrees_with_every_number_and_layout() -> None:
    """Sizes, offsets, enumerations and constants, in both programs."""
    mine = list(assertions(CONSTANTS, STRUCTS, GUARD_ONLY))
    assert len(mine) > 200
    assert compiles("\n".join([observe(), *mine]), fields.REQUIRED)
    mine = list(assertions(CONSTANTS, STRUCTS, OBSERVE_ONLY))
    assert compiles("\n".join([source("guard.c"), *mine]), fields.GUARD)


@pytest.mark.parametrize(
    ("number", "other"),
    [
        ("#define HORIZON_TICKS 16383", "#define HORIZON_TICKS 16382"),
        ("u32 peer_fin, ts_recent;", "u64 peer_fin, ts_recent;"),
    ],
)
def test_a_number_that_is_changed_on_one_side_fails(number: str, other: str) -> None:
    """As it would if Python had read another header than the compiler."""
    text = observe()
    assert number in text
    mine = list(assertions(CONSTANTS, STRUCTS, GUARD_ONLY))
    assert not compiles("\n".join([text.replace(number, other), *mine]), fields.REQUIRED)


def test_the_messages_of_sock_diag_are_those_that_the_programs_read() -> None:
    """Python has its own view of the kernel's structures (linux/inet_diag.h), and so has C."""
    assert STRUCTS["diag_message"].size == sockdiag_messages.MESSAGE_BYTES
    assert STRUCTS["diag_request"].size == sockdiag_messages.REQUEST_BYTES
    assert CONSTANTS["DIAG_BY_FAMILY"] == sockdiag_messages.SOCK_DIAG_BY_FAMILY
    assert CONSTANTS["DIAG_TIMER_TIME_WAIT"] == sockdiag_messages.TIMER_TIME_WAIT
    raw = bytes(range(STRUCTS["diag_message"].size))
    message = sockdiag_messages.Message._make(sockdiag_messages.MESSAGE.unpack_from(raw, sockdiag_messages.HEADER.size))
    for name in ("local_port", "remote_port", "local", "remote", "cookie"):
        assert raw[STRUCTS["diag_message"].slice(name)] == getattr(message, name), name
    for name in ("family", "state", "timer", "interface", "expires"):
        assert int.from_bytes(raw[STRUCTS["diag_message"].slice(name)], sys.byteorder) == getattr(message, name), name
