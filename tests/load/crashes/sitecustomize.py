"""Kills a program of twctl's at one of its calls that change the host; Python imports this by its name.

Where PYTHONPATH has this folder, and TWCTL_TEST_CRASHES names one, each process notes its changes in that folder's
file `changes`, a line each, before it makes them. At the line whose number stands in the file `kill`, or that has the
text of it, its whole process group is killed instead. Only what leaves the process is looked at, so the product knows
nothing of it: files, the calls of libbpf and libbcc, route netlink requests, numbers in mapped memory.
"""

import ctypes
import fcntl
import mmap
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

Buffer = bytes | bytearray | memoryview | mmap.mmap

FOLDER = os.environ.get("TWCTL_TEST_CRASHES", "")
PLACES = ("/sys/fs/bpf/", "/run/twctl", "/proc/sys/", "/host/proc/sys/")
CALLS = frozenset(
    (
        "bpf_obj_pin",
        "bpf_map_update_elem",
        "bpf_map_delete_elem",
        "bpf_attach_raw_tracepoint",
        "bpf_attach_kfunc",
        "bpf_link_create",
        "bpf_link_update",
        "bpf_link_detach",
    )
)
# linux/rtnetlink.h: RTM_NEWQDISC and so on, for qdiscs and filters.
REQUESTS = {36: "new qdisc", 37: "del qdisc", 44: "new filter", 45: "del filter"}
# Audit events (Python's own table of them), and which argument is the path; each is raised before the deed.
FILES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "open": 0}


def change(what: str) -> None:
    """Note a change that is just to be made, or die."""
    with Path(FOLDER, "changes").open("a+") as changes:
        fcntl.flock(changes, fcntl.LOCK_EX)
        changes.seek(0)
        number = sum(1 for _ in changes) + 1
        changes.write(f"{what}\n")
        changes.flush()
        if _is_the_last(number, what):
            os.killpg(0, signal.SIGKILL)


def _is_the_last(number: int, what: str) -> bool:
    try:
        kill = Path(FOLDER, "kill").read_text()
    except FileNotFoundError:
        return False
    return number == int(kill) if kill.isdigit() else kill in what


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in FILES or (event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    path = arguments[FILES[event]]
    if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(PLACES):
        change(f"{event} {os.fspath(path)}")


def _counted(pointer: type) -> type:
    """A class of foreign functions that notes those of CALLS."""

    class Counted(pointer):  # type: ignore[misc]
        _flags_, _restype_ = pointer._flags_, pointer._restype_  # type: ignore[attr-defined]

        def __call__(self, *arguments: object) -> object:
            if getattr(self, "__name__", "") in CALLS:
                change(f"{self.__name__} {arguments[-1] if self.__name__ == 'bpf_obj_pin' else ''}".strip())
            return super().__call__(*arguments)

    return Counted


def _load(self: ctypes.CDLL, *arguments: object, **options: object) -> None:
    _init(self, *arguments, **options)  # type: ignore[arg-type]
    self._FuncPtr = _counted(self._FuncPtr)


def _sent(self: socket.socket, data: Buffer, *flags: int) -> int:
    if self.family == socket.AF_NETLINK and self.proto == socket.NETLINK_ROUTE:
        kinds, left = [], bytes(data)
        while len(left) >= 16:  # struct nlmsghdr
            length, kind = struct.unpack_from("=IH", left)
            kinds += [REQUESTS[kind]] if kind in REQUESTS else []
            left = left[(length + 3) & ~3 :]
        if kinds:
            change(", ".join(kinds))
    return _send(self, data, *flags)


def _stored(memory: mmap.mmap, at: int, format_: str, number: int) -> None:
    change("mapped memory")
    _store(memory, at, format_, number)


if FOLDER:
    from twctl.table import pinned

    _init, _send, _store = ctypes.CDLL.__init__, socket.socket.send, pinned.store
    ctypes.CDLL.__init__ = _load  # type: ignore[method-assign]
    socket.socket.send = _sent  # type: ignore[method-assign,assignment]
    pinned.store = _stored
    sys.addaudithook(_audit)
