"""BPF programs on a network device as TCX links (Linux 6.6): in order, without a qdisc, pinned."""

import contextlib
import functools
import os
import struct
import sys
from pathlib import Path

from twctl.linux import libbpf
from twctl.linux.capabilities import Capability, in_force
from twctl.linux.libbpf import Link
from twctl.linux.tc import EGRESS, INGRESS

# linux/bpf.h: BPF_TCX_INGRESS and BPF_TCX_EGRESS, by the side's number in TC.
PLACES = {INGRESS: 46, EGRESS: 47}
# BPF_F_BEFORE, BPF_F_AFTER: of no other program, and so of all.
FIRST, LAST = 1 << 3, 1 << 4
LO = 1  # the number of lo in each namespace

# BPF's instructions (linux/bpf.h, linux/bpf_common.h), and where struct __sk_buff has tc_classid.
_STORE_WORD, _LOAD_WIDE, _MOVE, _CALL, _EXIT = 0x62, 0x18, 0xB7, 0x85, 0x95
_MAP_BY_DESCRIPTOR, _TAIL_CALL, _TC_CLASSID = 1, 12, 72
_NEXT = -1  # TCX_NEXT


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, _nibbles(target, source), offset, value)


def _nibbles(target: int, source: int) -> int:
    """Two registers in a byte: the compiler's bit fields begin at the end that the machine's words begin at."""
    return target | source << 4 if sys.byteorder == "little" else target << 4 | source


_PASS = _instruction(_MOVE, 0, value=_NEXT) + _instruction(_EXIT)


def _label(class_id: int, array: int, element: int) -> bytes:
    """Instructions: have the class ID that a filter would give, and go on with a program of the array."""
    return (
        _instruction(_STORE_WORD, 1, offset=_TC_CLASSID, value=class_id)
        + _instruction(_LOAD_WIDE, 2, _MAP_BY_DESCRIPTOR, value=array)
        + _instruction(0)
        + _instruction(_MOVE, 3, value=element)
        + _instruction(_CALL, value=_TAIL_CALL)
        + _PASS
    )


def load_label(name: str, class_id: int, array: int, element: int) -> int:
    """Load a program that goes on with one of an array, which finds this class ID; returns its descriptor.

    Raises OSError.
    """
    with in_force(Capability.BPF):
        return libbpf.classifier(name, _label(class_id, array, element))


@functools.cache
def is_available() -> bool:
    """Whether the kernel takes TCX links: a program that does nothing is attached to lo, for a moment."""
    with contextlib.ExitStack() as opened, contextlib.suppress(OSError), in_force(Capability.BPF):
        program = libbpf.classifier("twctl_nothing", _PASS)
        opened.callback(os.close, program)
        link = libbpf.link_create(program, LO, PLACES[INGRESS], LAST)
        opened.callback(os.close, link)
        return True
    return False


def put(program: int, device: int, side: int, folder: Path, name: str) -> Path:
    """Attach a program to a device: first of all that come in, or last of all that go out. Raises OSError.

    The link is pinned in the folder as name and its number; who is killed before that has done nothing.
    """
    link = libbpf.link_create(program, device, PLACES[side], FIRST if side == INGRESS else LAST)
    try:
        pin = folder / f"{name}-{libbpf.link(link).number}"
        libbpf.obj_pin(link, pin)
    finally:
        os.close(link)
    return pin


def exchange(pin: Path, program: int) -> None:
    """Put another program in the place of the one of a pinned link. Raises OSError."""
    link = libbpf.obj_get(pin)
    try:
        libbpf.link_update(link, program)
    finally:
        os.close(link)


def find(pin: Path) -> Link | None:
    """What a pinned link says; None: there is none, or its device has gone."""
    with contextlib.suppress(FileNotFoundError):
        fd = libbpf.obj_get(pin)
        try:
            found = libbpf.link(fd)
        finally:
            os.close(fd)
        return found if found.device else None
    return None


def remove(pin: Path) -> None:
    """Take a pinned link away, with its pin; harmless where it is gone already. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        link = libbpf.obj_get(pin)
        try:
            libbpf.link_detach(link)
        finally:
            os.close(link)
        pin.unlink()
