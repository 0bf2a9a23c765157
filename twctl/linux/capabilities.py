"""What this process may do: given up for good, or in force only while it is needed (capabilities(7)).

A thread has those that were in force when it began. What is out of force stays permitted and can be brought back.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from twctl.linux import libbpf
from twctl.linux.libc import checked, libc

VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words for each set, the lower one first
PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_ABOUT = "capabilities"


class Capability(IntEnum):
    """Numbers of linux/capability.h."""

    DAC_READ_SEARCH = 2  # a configuration, TLS files or a checkout that belong to somebody else
    NET_BIND_SERVICE = 10  # a port for the metrics below 1024
    NET_ADMIN = 12
    SYS_PTRACE = 19  # the namespaces of others' processes
    SYS_ADMIN = 21  # entering network namespaces, mounting bpffs
    SYS_RESOURCE = 24  # PSI triggers, more descriptors
    PERFMON = 38  # programs that read kernel memory
    BPF = 39


# Out of force but for a start, or for the moment in which a namespace is entered.
RARE = (Capability.SYS_ADMIN, Capability.SYS_RESOURCE, Capability.PERFMON, Capability.BPF)


class Sets(NamedTuple):
    """Capabilities of a thread, a bit for each."""

    effective: int
    permitted: int
    inheritable: int


def keep(*capabilities: Capability) -> None:
    """Give up all others for good: no program that this process becomes or starts gets them back.

    Of the process's threads, the calling one and those that it begins: call it while there is no other.
    """
    # Or root would have all of them again after execve(2).
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(each) for each in (1, 0, 0, 0))), _ABOUT)
    kept = _bits(*capabilities)
    _change(lambda now: Sets(now.effective & kept, now.permitted & kept, 0))


def permitted(capability: Capability) -> bool:
    """Whether it is in force or can be brought into force."""
    return bool(_sets().permitted & _bits(capability))


def lower(pinned: Path) -> None:
    """Put the rare ones out of force in this thread. pinned: any pinned map, to try whether it can still be opened.

    Before Linux 5.19 bpf(2) does nothing without CAP_BPF where unprivileged BPF is disabled: there CAP_BPF stays.
    """
    _force(lambda now: now.effective & ~_bits(*RARE))
    try:
        os.close(libbpf.obj_get(pinned))
    except PermissionError:
        _force(lambda now: now.effective | _bits(Capability.BPF))


def restore() -> None:
    """Bring the rare ones into force again, as far as they are permitted."""
    _force(lambda now: now.effective | _bits(*RARE))


@contextlib.contextmanager
def in_force(capability: Capability) -> Iterator[None]:
    """Have one in force in this thread until the end of the block, where it is permitted."""
    before = _sets().effective
    _force(lambda now: now.effective | _bits(capability))
    try:
        yield
    finally:
        _force(lambda _: before)


def _bits(*capabilities: Capability) -> int:
    return sum(1 << capability for capability in capabilities)


def _force(effective: Callable[[Sets], int]) -> None:
    _change(lambda now: now._replace(effective=effective(now) & now.permitted))


def _change(change: Callable[[Sets], Sets]) -> None:
    now = _sets()
    then = change(now)
    if then != now:
        words = (ctypes.c_uint32 * (2 * len(then)))(
            *(each & 0xFFFFFFFF for each in then), *(each >> 32 for each in then)
        )
        checked(libc.capset(_header(), words), _ABOUT)


def _sets() -> Sets:
    """Those of this thread."""
    words = (ctypes.c_uint32 * (2 * len(Sets._fields)))()
    checked(libc.capget(_header(), words), _ABOUT)
    half = len(Sets._fields)
    return Sets(*(words[which] | words[which + half] << 32 for which in range(half)))


def _header() -> "ctypes.Array[ctypes.c_uint32]":
    return (ctypes.c_uint32 * 2)(VERSION_3, 0)
