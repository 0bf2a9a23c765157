"""Network namespaces: do something inside one, what one is known by, and which ones have a name.

A name is a file on which a namespace is mounted. It keeps the namespace, and so does every socket and file that was
opened inside: who opens some has to close them when the name goes. Namespaces without a name can only be found among
the processes of the host (/proc/PID/ns/net), by who has the right to look at them all.
"""

import contextlib
import fcntl
import itertools
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from twctl.errors import TwctlError
from twctl.linux.capabilities import Capability, in_force, permitted
from twctl.linux.libc import checked, libc

# ip-netns(8), containerd (cni-...), CRI-O and Podman put theirs here: these are known by their bare name.
NAMESPACES = Path("/run/netns")
# Docker: these are known by their path, as others may have the same name.
FOLDERS = (NAMESPACES, Path("/run/docker/netns"))
OWN = Path("/proc/self/ns/net")
CLONE_NEWNET = 0x40000000  # linux/sched.h
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14
SIOCSIFFLAGS = 0x8914  # linux/sockios.h
PROC_PID_INIT_INO = 0xEFFFFFFC  # linux/proc_ns.h: inode of the first process ID namespace


Made = TypeVar("Made")


def inside(netns: str | None, make: Callable[[], Made]) -> Made:
    """Call `make` in a namespace (name or path; None: the calling thread's own) and return what it made.

    Sockets and open files of /proc/thread-self/net stay in the namespace they were made in. A thread of its own goes
    there, so that none has to return.

    :raises TwctlError: if there is no such namespace or it cannot be entered.
    """
    if netns is None:
        return make()

    def enter() -> None:
        with path(netns).open() as namespace, in_force(Capability.SYS_ADMIN):
            checked(libc.setns(namespace.fileno(), CLONE_NEWNET))

    try:
        return _in_thread(enter, make)
    except OSError as error:
        raise _unreachable(netns, error) from error


def attempt_inside(netns: str | None, attempt: Callable[[], Made]) -> Made:
    """As `inside`; an OSError of what is called is raised as it is.

    :raises TwctlError: if there is no such namespace or it cannot be entered.
    """

    def caught() -> Made | OSError:
        try:
            return attempt()
        except OSError as error:
            return error

    made = inside(netns, caught)
    if isinstance(made, OSError):
        raise made
    return made


def opened(netns: str | None) -> int:
    """Return a descriptor that keeps the namespace; /proc/self/fd/N leads there also when the name is gone.

    :raises TwctlError: if there is no such namespace.
    """
    try:
        return os.open(path(netns), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreachable(netns, error) from error


def _unreachable(netns: str | None, error: OSError) -> TwctlError:
    message = f"cannot enter network namespace {netns or '(own)'}: {error}"
    return TwctlError(message, "'ip netns list' shows the names; run as root")


def path(netns: str | None) -> Path:
    """Return the file that is the namespace (None: the main thread's own)."""
    return OWN if netns is None else NAMESPACES / netns


def inode(netns: str | None) -> int:
    """Return the number by which a namespace is told from those that live at the same time; 0 if there is none."""
    try:
        status = path(netns).stat()
    except OSError:
        return 0
    return status.st_ino if status.st_dev == OWN.stat().st_dev else 0


def inside_new(make: Callable[[], Made]) -> Made:
    """Call `make` in a namespace of its own, which goes when nothing made in it is open any more.

    :raises TwctlError: without the right to.
    """

    def enter() -> None:
        with in_force(Capability.SYS_ADMIN):
            checked(libc.unshare(CLONE_NEWNET))

    try:
        return _in_thread(enter, make)
    except OSError as error:
        raise TwctlError(f"cannot try it in a network namespace of its own: {error}", "run as root") from error


def lo_up() -> None:
    """Set the loopback interface of this thread's namespace up.

    :raises OSError: without the right to.
    """
    request = struct.pack("16sH14x", b"lo", 1)  # struct ifreq with IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, request)


def _in_thread(enter: Callable[[], None], make: Callable[[], Made]) -> Made:
    made: list[Made] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            enter()
            made.append(make())
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return made[0]


def cookie(netns: str | None) -> int:
    """Return the namespace's cookie: a number that no other namespace has had since boot.

    :raises TwctlError: if the namespace cannot be entered.
    """
    sock = inside(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with sock:
        value: bytes = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int(struct.unpack("=Q", value)[0])


def present() -> dict[str, int]:
    """Every namespace that has a name, but for our own, with its inode number; of several names of one, the first.

    An inode number may be used again once the namespace is gone.
    """
    found: dict[int, str] = {0: "", inode(None): ""}  # a file that was just made, or is about to go, is none
    for folder in FOLDERS:
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            name = file.name if folder == NAMESPACES else str(file)
            if name.isprintable():
                found.setdefault(inode(name), name)
    return {name: number for number, name in found.items() if name}


def reachable() -> Iterator[str | None]:
    """A path to every namespace that this process may be able to enter: those with a name, and those of all processes.

    Its own comes first, as None. A path leads there until the next one is asked for. Those of processes that may not be
    looked at, or that are on another process ID namespace's side, are not found.
    """
    names = (file for folder in FOLDERS if folder.is_dir() for file in sorted(folder.iterdir()))
    own = OWN.stat()
    seen, device = {own.st_ino}, own.st_dev
    yield None
    for file in itertools.chain(names, Path("/proc").glob("[0-9]*/ns/net")):
        with contextlib.ExitStack() as opened_one, contextlib.suppress(OSError):  # just gone, or not to be looked at
            handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            opened_one.callback(os.close, handle)
            status = os.fstat(handle)
            if status.st_dev == device and status.st_ino not in seen:
                seen.add(status.st_ino)
                yield f"/proc/self/fd/{handle}"


def entered() -> Iterator[tuple[str | None, int]]:
    """What `reachable` finds and this process can enter, with its cookie."""
    for where in reachable():
        with contextlib.suppress(TwctlError):
            yield where, cookie(where)


@contextlib.contextmanager
def paths(cookies: Collection[int]) -> Iterator[Mapping[int, str | None]]:
    """Paths to those of these namespaces that can be entered (None: our own); they lead there until the block ends."""
    found: dict[int, str | None] = {}
    with contextlib.ExitStack() as kept:
        for where, number in entered() if cookies else ():
            if number in cookies and number not in found:
                handle = opened(where)
                kept.callback(os.close, handle)
                found[number] = where and f"/proc/self/fd/{handle}"
        yield found


def sees_all() -> bool:
    """Whether `reachable` finds the namespace of each process of the machine."""
    first = Path("/proc/self/ns/pid").stat().st_ino == PROC_PID_INIT_INO
    return first and permitted(Capability.SYS_ADMIN) and permitted(Capability.SYS_PTRACE)


def sees_names_beside(netns: str) -> bool:
    """Whether a namespace of this name would be found here: a container may neither have the folder nor the right."""
    return permitted(Capability.SYS_ADMIN) and path(netns).parent.is_dir()


class Mounts:
    """Tells that something was mounted or unmounted here, as names of namespaces are (proc(5), /proc/PID/mountinfo).

    Not inotify: `ip netns add` makes the file before there is a namespace on it, and to mount is no event of a folder.
    """

    def __init__(self) -> None:
        self._file = Path("/proc/self/mountinfo").open()  # noqa: SIM115 - as long as this object
        # The file itself is always readable: only what is out of band tells of changes.
        self._poll = select.epoll()
        self._poll.register(self._file, select.EPOLLPRI)

    def fileno(self) -> int:
        """Readable when something has changed."""
        return self._poll.fileno()

    def clear(self) -> None:
        """Take note of it: readable again only after the next change."""
        self._poll.poll(0)

    def close(self) -> None:
        """Hear no more."""
        self._poll.close()
        self._file.close()
