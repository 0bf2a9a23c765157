"""pyroute2's route netlink sockets in any network namespace: for requests, for notifications, for screened dumps.

A thread enters the namespace and opens the socket that pyroute2 then works on. Its own way there (`netns=`) starts a
process for each socket, which takes 25 ms instead of 2, and makes a namespace where there is none.

Open all the time is only what tells of changes: an IPRSocket, which is outside of asyncio, so that the daemon's own
loop can poll it, and takes one descriptor and 9 kB. An IPRoute has an event loop, four descriptors and 17 kB, so one is
opened for a few requests and closed again (0.4 ms). Neither starts a thread. `import pyroute2` adds 11 MB to the
daemon, and so does any single module of it, as the package imports all of itself.
"""

import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from pyroute2 import IPRoute, IPRSocket, NetlinkError
from pyroute2.netlink import NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, nlmsg

from twctl.linux.netns import inside, opened
from twctl.linux.rtnl import POLICY, decode

# A dump fills at most 32 KiB a read (af_netlink.c, netlink_recvmsg); only links with many VFs send more in one message.
BUFFER_BYTES = 1 << 16
# Reads of a list that changes all the time before what was read is taken as it is; notifications tell the rest.
ATTEMPTS = 4
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; parisc and sparc differ and get the ordinary limit

# One for all, of which there may be hundreds: what was received is copied from it before the next is.
_buffer = bytearray(BUFFER_BYTES)


class LostError(Exception):
    """A notification did not fit into the queue or the buffer: what it told has to be read anew."""


@contextmanager
def refusals() -> Iterator[None]:
    """Raises what the kernel refuses as OSError with its errno, as other system calls do."""
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error


class Notifications:
    """What the kernel tells members of multicast groups in one network namespace, undecoded."""

    def __init__(self, sock: IPRSocket) -> None:
        self._sock = sock
        self._fd = sock.socket

    def fileno(self) -> int:
        """Readable when some wait."""
        return int(self._fd.fileno())

    def close(self) -> None:
        """Hear no more."""
        self._sock.close()

    def read(self) -> bytes | None:
        """The next notification, as netlink messages; None where none waits.

        :raises LostError: where some are missing.
        """
        try:
            size = self._fd.recv_into(_buffer, 0, socket.MSG_TRUNC | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise LostError from error
            raise
        if size > BUFFER_BYTES:
            raise LostError
        return bytes(_buffer[:size])


class RouteNetlink:
    """Opens route netlink sockets in a network namespace, the very same also after its name is gone.

    netns: name or path of the namespace, None for the calling thread's own. It and each method raise TwctlError where
    the namespace cannot be entered; the methods raise OSError.
    """

    def __init__(self, netns: str | None) -> None:
        self._handle = None if netns is None else opened(netns)

    def close(self) -> None:
        """Let go of the namespace; what was opened stays open."""
        if self._handle is not None:
            os.close(self._handle)

    def requests(self) -> IPRoute:
        """For requests; use it in a `with`."""
        found = IPRoute(fileno=self._socket(), groups=0, strict_check=True)
        found.register_policy(POLICY)
        return found

    def notifications(self, groups: Iterable[int], receive_bytes: int) -> Notifications:
        """Of multicast groups (RTNLGRP_*). receive_bytes: queue for those that wait."""
        with ExitStack() as undo:
            sock = undo.enter_context(IPRSocket(fileno=self._socket()))
            _set_receive_bytes(sock, receive_bytes)
            sock.bind(groups=sum(1 << group - 1 for group in groups))
            undo.pop_all()
        return Notifications(sock)

    def dumps(self) -> IPRSocket:
        """For `dump`, one after the other; use it in a `with`."""
        return IPRSocket(fileno=self._socket(), strict_check=True)

    def _socket(self) -> int:
        """SOCK_DGRAM, which asyncio insists on."""
        where = None if self._handle is None else f"/proc/self/fd/{self._handle}"
        return inside(where, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE)).detach()


def _set_receive_bytes(sock: IPRSocket, receive_bytes: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, receive_bytes)
    except OSError:  # without CAP_NET_ADMIN as far as net.core.rmem_max allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)


def complete(ask: Callable[[], Iterable[nlmsg]]) -> list[nlmsg]:
    """What a dump gives; asked again, at most ATTEMPTS times, where the list changed meanwhile. Raises OSError."""
    for _ in range(ATTEMPTS):
        with refusals():
            found = list(ask())
        if not any(message["header"]["flags"] & NLM_F_DUMP_INTR for message in found):
            break
    return found


def dump(
    sock: IPRSocket, request: nlmsg, type_: int, select: Callable[[bytes], Iterable[bytes]] = lambda read: (read,)
) -> Iterator[nlmsg]:
    """Ask for a list; yields the messages that `select` picks from what is read, decoded. Raises OSError.

    IPRoute decodes all of it, and takes a read of which nothing is picked for the end. What is not read to its end
    leaves the rest in the socket: close it then.
    """
    with refusals():
        sock.put(request, type_, NLM_F_REQUEST | NLM_F_DUMP)
        while True:
            for raw in select(sock.recv(BUFFER_BYTES)):
                for message in decode(raw):
                    if message["header"]["type"] == NLMSG_DONE:
                        return
                    if message["header"]["error"]:
                        raise message["header"]["error"]
                    yield message
