"""Capabilities that only a start needs, and that are out of force afterwards (capabilities(7)).

They stay permitted, because a reload may have to load again. A thread keeps those that were in force when it began.
"""

import ctypes
import os
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

from twctl.linux import libbpf

VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words for each set, the lower one first
SETS = 3  # effective, permitted, inheritable


class Capability(IntEnum):
    """Numbers of linux/capability.h."""

    SYS_RESOURCE = 24  # PSI triggers, more descriptors
    PERFMON = 38  # programs that read kernel memory
    BPF = 39


def lower(pinned: Path) -> None:
    """Put them out of force in this thread. pinned: any map that is pinned, to try whether it can still be opened.

    Before Linux 5.19 bpf(2) does nothing without CAP_BPF where unprivileged BPF is disabled: there CAP_BPF stays.
    """
    _change(lambda effective, _: effective & ~_bits(*Capability))
    try:
        os.close(libbpf.obj_get(pinned))
    except PermissionError:
        _change(lambda effective, permitted: effective | _bits(Capability.BPF) & permitted)


def restore() -> None:
    """Bring those that are permitted into force again."""
    _change(lambda effective, permitted: effective | _bits(*Capability) & permitted)


def _bits(*capabilities: Capability) -> int:
    return sum(1 << capability for capability in capabilities)


def _change(effective: Callable[[int, int], int]) -> None:
    """Set the effective capabilities. effective: gives them, from the effective and the permitted ones."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, words = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * (2 * SETS))()
    _checked(libc.capget(header, words))
    now, permitted = (words[which] | words[which + SETS] << 32 for which in (0, 1))
    then = effective(now, permitted)
    if then == now:
        return
    words[0], words[SETS] = then & 0xFFFFFFFF, then >> 32
    _checked(libc.capset(header, words))


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "capabilities")
