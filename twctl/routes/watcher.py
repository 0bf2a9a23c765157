"""The host's routes, followed live, as the trie that classifies peers.

Memory and time go with the routes that can change a class, not with the routing table: a route through a gateway is
kept only inside an on-link prefix. One read of the table needs to know those prefixes beforehand, so they are guessed
(those of the last read; at first those that the kernel derived from addresses), and the table is read again where one
turns up that was not foreseen. Later a new on-link prefix makes the next `follow` read the table again.
"""

import contextlib
import os
import select
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from pyroute2 import IPRSocket
from pyroute2.netlink import NLM_F_REPLACE, nlmsg
from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_LINK,
    rt_proto,
)

from twctl.addresses import Address, Network, unmapped
from twctl.classes import Class, Classifier, Explanation, Route
from twctl.errors import TwctlError
from twctl.linux.netlink import ATTEMPTS, LostError, RouteNetlink
from twctl.linux.rtnl import RTM_DELNEXTHOP, RTM_NEWNEXTHOP, RTNLGRP_NEXTHOP, decode
from twctl.routes.messages import link_of, nexthop_of, route_of
from twctl.routes.reader import read_objects, read_routes, route_to
from twctl.routes.screen import Screen

GROUPS = (RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, RTNLGRP_NEXTHOP)
# Some 10,000 notifications: what a BGP daemon may send while a million routes are read, which takes 2 s.
RECEIVE_BYTES = 8 << 20
# One `follow` handles at most so many messages, of which one that matters counts for several: 30 ms of work where none
# does, 100 ms where all do. A flood cannot starve the daemon, nor does it have the trie made anew all the time.
BATCH, MATTERS = 8192, 8


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
        self._screen = Screen()
        self._classifier: Classifier | None = None
        with contextlib.ExitStack() as undo:
            self._open(undo, netns, receive_bytes)
            self._read()
            self._resources = undo.pop_all()

    def _open(self, undo: contextlib.ExitStack, netns: str | None, receive_bytes: int) -> None:
        try:
            self._netlink = undo.enter_context(contextlib.closing(RouteNetlink(netns)))
            # Subscribed before anything is read: nothing can change unseen in between.
            notices = self._netlink.notifications(GROUPS, receive_bytes)
            self._notices = undo.enter_context(contextlib.closing(notices))
        except OSError as error:
            message = f"cannot watch the routes of network namespace {netns or '(own)'}: {error}"
            raise TwctlError(message, "ip netns list shows the names; run as root") from error
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
        """Descriptor that is readable when `follow` has something to do."""
        return self._poll.fileno()

    def follow(self) -> bool:
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

    def _classes(self) -> Classifier:
        if self._classifier is None:
            self._classifier = Classifier(self._fib.routes(), self._overrides)
        return self._classifier

    def _read(self) -> None:
        """Read links, nexthop objects and routes anew; notifications that still wait are handled on top of that."""
        try:
            with self._netlink.dumps() as sock:
                self._fib = read_objects(self._netlink, sock)
                if not self._screen.prefixes:
                    self._fib.replace(read_routes(sock, self._fib.screen(), rt_proto["kernel"]))
                    self._screen = self._fib.screen()
                self._read_until_covered(sock)
        except OSError as error:
            raise TwctlError(f"cannot read the routes: {error}", "is rtnetlink allowed in this sandbox?") from error
        self._classifier = None

    def _read_until_covered(self, sock: IPRSocket) -> None:
        for _ in range(ATTEMPTS):
            screen = Screen(self._screen.prefixes, self._fib.screen().onlink_nexthops)
            self._fib.replace(read_routes(sock, screen))
            self._screen = self._fib.screen()
            self._fib.stale = screen.interrupted or not self._screen.prefixes <= screen.prefixes
            if not self._fib.stale:
                break
        self._show_stale()

    def _show_stale(self) -> None:
        """Make fileno readable exactly while a read is due, next to notifications."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._again)
        if self._fib.stale:
            os.eventfd_write(self._again, 1)

    def _handle_waiting(self) -> bool:
        changed, screen = False, self._screen
        screen.seen = 0
        try:
            left = BATCH
            while left > 0 and (data := self._notices.read()):
                left -= 1
                for raw in screen.select(data):
                    left -= MATTERS
                    for message in decode(raw):
                        changed |= self._handle(message)
        except LostError:
            self.changes += screen.seen
            self._recover()
            return True
        self.changes += screen.seen
        if changed:
            self._renew_screen()
        return changed

    def _recover(self) -> None:
        """Read all again. What waits behind the gap may contradict what is read, so it goes first."""
        self.resyncs += 1
        waiting = True
        while waiting:
            with contextlib.suppress(LostError):
                waiting = self._notices.read() is not None
        self._read()

    def _renew_screen(self) -> None:
        screen = self._fib.screen()
        self._fib.stale |= not screen.prefixes <= self._screen.prefixes
        if screen.prefixes != self._screen.prefixes:
            self._fib.forget_outside(screen)
        self._screen = screen
        self._classifier = None
        self._show_stale()

    def _handle(self, message: nlmsg) -> bool:
        type_ = message["header"]["type"]
        if type_ == RTM_NEWROUTE:
            return self._fib.add(route_of(message), replaces=bool(message["header"]["flags"] & NLM_F_REPLACE))
        if type_ == RTM_DELROUTE:
            return self._fib.remove(route_of(message))
        if type_ in (RTM_NEWLINK, RTM_DELLINK) and message["family"] == socket.AF_UNSPEC:
            index, link = link_of(message)
            return self._fib.set_link(index, link) if type_ == RTM_NEWLINK else self._fib.remove_link(index)
        if type_ in (RTM_NEWNEXTHOP, RTM_DELNEXTHOP):
            number, nexthop = nexthop_of(message)
            new = type_ == RTM_NEWNEXTHOP
            return self._fib.set_nexthop(number, nexthop) if new else self._fib.remove_nexthop(number)
        return False

    def _ask_kernel(self, address: Address) -> Route | None:
        try:
            found = route_to(self._netlink, address)
        except OSError as error:
            raise TwctlError(f"cannot look up {address}: {error}", "does this kernel have that family?") from error
        return self._fib.route(found) if found else None
