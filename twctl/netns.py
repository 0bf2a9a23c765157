"""Network namespaces: do something inside one, and what one is known by."""

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from twctl.errors import TwctlError

NAMESPACES = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # linux/sched.h
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14

Made = TypeVar("Made")


def inside(name: str | None, make: Callable[[], Made]) -> Made:
    """Call `make` in a namespace (None: the calling thread's own) and return what it made.

    Sockets and open files of /proc/thread-self/net stay in the namespace they were made in. A thread of its own goes
    there, so that none has to return.

    :raises TwctlError: if there is no such namespace or it cannot be entered.
    """
    if name is None:
        return make()
    made: list[Made] = []
    errors: list[Exception] = []

    def enter() -> None:
        try:
            with (NAMESPACES / name).open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))  # noqa: TRY301 - one handler
            made.append(make())
        except (OSError, TwctlError) as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if errors:
        if isinstance(errors[0], TwctlError):
            raise errors[0]
        message = f"cannot enter network namespace {name}: {errors[0]}"
        raise TwctlError(message, "'ip netns list' shows the names; run as root") from errors[0]
    return made[0]


def cookie(name: str | None) -> int:
    """Return the namespace's cookie: a number that no other namespace has had since boot.

    :raises TwctlError: if the namespace cannot be entered.
    """
    sock = inside(name, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with sock:
        value: bytes = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int(struct.unpack("=Q", value)[0])
