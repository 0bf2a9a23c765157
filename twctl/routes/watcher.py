"""The host's routes, followed live, as the trie that classifies peers.

Memory and time go with the routes that can change a class, not with the routing table: a route through a gateway is
kept only inside an on-link prefix. One read of the table needs to know those prefixes beforehand, so they are guessed
(those of the last read; at first those that the kernel derived from addresses), and the table is read again where one
turns up that was not foreseen. Later a new on-link prefix makes the next `drain` read the table again.
"""

import contextlib
import errno
import os
import select
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from twctl.addresses import Address, Network, unmapped
from twctl.classes import Class, Classifier, Explanation, Route
from twctl.errors import TwctlError
from twctl.linux import netlink
from twctl.routes import messages as rtnetlink
from twctl.routes.fib import Fib
from twctl.routes.messages import RouteMessage, Screen

with netlink.part_of("pyroute2"):
    from pyroute2.netlink import NLM_F_REPLACE
    from pyroute2.netlink.rtnl import (
        RTM_DELLINK,
        RTM_DELROUTE,
        RTM_GETLINK,
        RTM_GETROUTE,
        RTM_NEWLINK,
        RTM_NEWROUTE,
        RTNLGRP_IPV4_ROUTE,
        RTNLGRP_IPV6_ROUTE,
        RTNLGRP_LINK,
        rt_proto,
    )

FAMILIES = (socket.AF_INET, socket.AF_INET6)
GROUPS = (RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, rtnetlink.RTNLGRP_NEXTHOP)
# Some 10,000 notifications: what a BGP daemon may send while a million routes are read, which takes 2 s.
RECEIVE_BYTES = 8 << 20
# One drain handles at most this many messages, about 30 ms of work, so that a flood cannot starve the daemon.
BATCH = 8192
# One for all watchers, of which a daemon may have hundreds: what was received is handled before the next is.
_BUFFER = bytearray(netlink.BUFFER_BYTES)
_NO_SUCH_FAMILY = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT)
_NO_SUCH_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)


class RouteWatcher:
    """Follows the routes of a network namespace.

    overrides: prefix to class. netns: name under /run/netns, None for the calling thread's own namespace.
    receive_bytes: queue for notifications in bytes. Raises TwctlError where the namespace or its routes cannot be read.

    changes: notifications read so far, about routes, links and nexthop objects, whether they mattered or not.
    resyncs: full reads after a notification was lost.
    """

    def __init__(
        self, overrides: Mapping[Network, Class], netns: str | None = None, receive_bytes: int = RECEIVE_BYTES
    ) -> None:
        self.changes = 0
        self.resyncs = 0
        self._overrides = dict(overrides)
        self._buffer = _BUFFER
        self._screen = Screen()
        self._classifier: Classifier | None = None
        with contextlib.ExitStack() as undo:
            self._open(undo, netns, receive_bytes)
            self._read()
            self._resources = undo.pop_all()

    def _open(self, undo: contextlib.ExitStack, netns: str | None, receive_bytes: int) -> None:
        try:
            # Subscribed before anything is read: nothing can change unseen in between.
            self._notices = undo.enter_context(netlink.open_socket(netns, GROUPS, receive_bytes))
            self._questions = undo.enter_context(netlink.open_socket(netns))
        except OSError as error:
            message = f"cannot watch the routes of network namespace {netns or '(own)'}: {error}"
            raise TwctlError(message, "ip netns list shows the names; run as root") from error
        self._notices.settimeout(0)
        self._again = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        undo.callback(os.close, self._again)
        self._poll = undo.enter_context(select.epoll())
        self._poll.register(self._notices.fileno(), select.EPOLLIN)
        self._poll.register(self._again, select.EPOLLIN)

    def close(self) -> None:
        """Close the sockets; the watcher cannot be used afterwards."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Descriptor that is readable when `drain` has something to do."""
        return self._poll.fileno()

    def drain(self) -> bool:
        """Handle the notifications that wait, without waiting for more. True if the trie may have changed.

        A table of a million routes takes seconds to read again, so that is left to the next call (`fileno` is readable
        at once): what is known already reaches the trie before. Raises TwctlError.
        """
        reread = self._fib.stale
        if reread:
            self._read()
        return self._handle_waiting() or reread

    def trie(self) -> dict[Network, Class]:
        """The smallest set of prefixes that classifies every address; no match is remote."""
        return self._classes().trie()

    def explain(self, address: Address) -> Explanation:
        """Class of an address, what decided it, and the interface and gateway (None: on-link) that lead there.

        Where no kept route decides, the kernel is asked for the route. Raises TwctlError if it cannot be asked.
        """
        known = self._classes().explain(address)
        if known.source in ("route", "address"):
            return known
        route = self._ask_kernel(unmapped(address))
        if route is None:
            return known
        if known.source == "no route":
            return Explanation(known.class_, route.prefix, "route", route.interface, route.gateway)
        return Explanation(known.class_, known.prefix, known.source, route.interface, route.gateway)

    def replace_overrides(self, overrides: Mapping[Network, Class]) -> None:
        """Take other overrides, as after a reload of the configuration."""
        self._overrides = dict(overrides)
        self._classifier = None

    def _classes(self) -> Classifier:
        if self._classifier is None:
            self._classifier = Classifier(self._fib.routes(), self._overrides)
        return self._classifier

    def _read(self) -> None:
        """Read links, nexthop objects and routes anew; notifications that still wait are handled on top of that."""
        try:
            self._fib = self._read_objects()
            if not self._screen.prefixes:
                self._fib.replace(self._read_routes(self._fib.screen(), rt_proto["kernel"]))
                self._screen = self._fib.screen()
            self._read_until_covered()
        except OSError as error:
            raise TwctlError(f"cannot read the routes: {error}", "is rtnetlink allowed in this sandbox?") from error
        self._classifier = None

    def _read_until_covered(self) -> None:
        for _ in range(netlink.ATTEMPTS):
            screen = Screen(self._screen.prefixes, self._fib.screen().onlink_nexthops)
            self._fib.replace(self._read_routes(screen))
            self._screen = self._fib.screen()
            self._fib.stale = screen.interrupted or not self._screen.prefixes <= screen.prefixes
            if not self._fib.stale:
                break
        self._show_stale()

    def _read_objects(self) -> Fib:
        links = netlink.dump(self._questions, RTM_GETLINK, rtnetlink.link_request(), rtnetlink.decode_link)
        request, decode = rtnetlink.nexthop_request(), rtnetlink.decode_nexthop
        nexthops = netlink.dump(self._questions, rtnetlink.RTM_GETNEXTHOP, request, decode)
        return Fib({index: link for _, index, link in links}, dict(nexthops))

    def _read_routes(self, screen: Screen, protocol: int = 0) -> list[RouteMessage]:
        routes: list[RouteMessage] = []
        for family in FAMILIES:
            try:
                routes += rtnetlink.routes_of(self._questions, family, screen, protocol)
            except OSError as error:
                if error.errno not in _NO_SUCH_FAMILY:
                    raise
        return routes

    def _show_stale(self) -> None:
        """Make fileno readable exactly while a read is due, next to notifications."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._again)
        if self._fib.stale:
            os.eventfd_write(self._again, 1)

    def _handle_waiting(self) -> bool:
        changed, screen = False, self._screen
        screen.seen = 0
        for _ in range(BATCH):
            try:
                size = self._receive()
            except BlockingIOError:
                break
            if size is None:
                self.changes += screen.seen
                self._recover()
                return True
            for message in screen.select(self._buffer, size):
                changed |= self._handle(message)
        self.changes += screen.seen
        if changed:
            self._renew_screen()
        return changed

    def _receive(self) -> int | None:
        """Bytes of the next notification; None where one was lost. Raises BlockingIOError where none waits."""
        try:
            size = self._notices.recv_into(self._buffer, 0, socket.MSG_TRUNC)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return None
            raise
        return size if size <= len(self._buffer) else None

    def _recover(self) -> None:
        """Read all again. What waits behind the gap may contradict what is read, so it goes first."""
        self.resyncs += 1
        with contextlib.suppress(BlockingIOError):
            while True:
                self._receive()
        self._read()

    def _renew_screen(self) -> None:
        screen = self._fib.screen()
        self._fib.stale |= not screen.prefixes <= self._screen.prefixes
        if screen.prefixes != self._screen.prefixes:
            self._fib.forget_outside(screen)
        self._screen = screen
        self._classifier = None
        self._show_stale()

    def _handle(self, message: netlink.Message) -> bool:
        if message.type == RTM_NEWROUTE:
            route = rtnetlink.decode_route(self._buffer, message)
            return self._fib.add(route, replaces=bool(message.flags & NLM_F_REPLACE))
        if message.type == RTM_DELROUTE:
            return self._fib.remove(rtnetlink.decode_route(self._buffer, message))
        if message.type in (RTM_NEWLINK, RTM_DELLINK):
            family, index, link = rtnetlink.decode_link(self._buffer, message)
            if family != socket.AF_UNSPEC:
                return False
            return self._fib.set_link(index, link) if message.type == RTM_NEWLINK else self._fib.remove_link(index)
        if message.type in (rtnetlink.RTM_NEWNEXTHOP, rtnetlink.RTM_DELNEXTHOP):
            number, nexthop = rtnetlink.decode_nexthop(self._buffer, message)
            new = message.type == rtnetlink.RTM_NEWNEXTHOP
            return self._fib.set_nexthop(number, nexthop) if new else self._fib.remove_nexthop(number)
        return False

    def _ask_kernel(self, address: Address) -> Route | None:
        request = rtnetlink.match_request(address)
        try:
            answers = netlink.ask(self._questions, RTM_GETROUTE, request, netlink.messages, dump=False)
            found = [rtnetlink.decode_route(buffer, message) for buffer, message in answers]
        except OSError as error:
            if error.errno in _NO_SUCH_ROUTE:
                return None
            raise TwctlError(f"cannot look up {address}: {error}", "does this kernel have that family?") from error
        return self._fib.route(found[0]) if found else None
