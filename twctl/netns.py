"""Network namespaces: do something inside one, and what one is known by."""

import ctypes
import fcntl
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
SIOCSIFFLAGS = 0x8914  # linux/sockios.h

_libc = ctypes.CDLL(None, use_errno=True)

Made = TypeVar("Made")


def inside(name: str | None, make: Callable[[], Made]) -> Made:
    """Call `make` in a namespace (None: the calling thread's own) and return what it made.

    Sockets and open files of /proc/thread-self/net stay in the namespace they were made in. A thread of its own goes
    there, so that none has to return.

    :raises TwctlError: if there is no such namespace or it cannot be entered.
    """
    if name is None:
        return make()

    def enter() -> None:
        with (NAMESPACES / name).open() as namespace:
            _checked(_libc.setns(namespace.fileno(), CLONE_NEWNET))

    try:
        return _in_thread(enter, make)
    except OSError as error:
        message = f"cannot enter network namespace {name}: {error}"
        raise TwctlError(message, "'ip netns list' shows the names; run as root") from error


def inside_new(make: Callable[[], Made]) -> Made:
    """Call `make` in a namespace of its own, which goes when nothing made in it is open any more.

    :raises TwctlError: without the right to.
    """
    try:
        return _in_thread(lambda: _checked(_libc.unshare(CLONE_NEWNET)), make)
    except OSError as error:
        raise TwctlError(f"cannot try it in a network namespace of its own: {error}", "run as root") from error


def lo_up() -> None:
    """Set the loopback interface of this thread's namespace up.

    :raises OSError: without the right to.
    """
    request = struct.pack("16sH14x", b"lo", 1)  # struct ifreq with IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, request)


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _in_thread(enter: Callable[[], None], make: Callable[[], Made]) -> Made:
    made: list[Made] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            enter()
            made.append(make())
        except (OSError, TwctlError) as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return made[0]


def cookie(name: str | None) -> int:
    """Return the namespace's cookie: a number that no other namespace has had since boot.

    :raises TwctlError: if the namespace cannot be entered.
    """
    sock = inside(name, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with sock:
        value: bytes = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int(struct.unpack("=Q", value)[0])
