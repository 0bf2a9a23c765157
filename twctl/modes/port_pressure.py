"""While the ports toward a destination run out, TIME_WAIT toward it is shorter than its class's time.

What to do is a pure function of what was seen (port_policy.py). How it is done is mode truncate's way: the kernel is
asked for exactly this socket, and only what it says is TIME_WAIT, and old enough, is destroyed, with that answer's
cookie. Where there are too many sockets for one look (holders.py), each look decides by a part of the ports, and has
what is too old among these destroyed.
"""

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from twctl.addresses import FAMILIES, Address, Endpoint, family_of, host_port
from twctl.config.config import Config
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sockdiag_messages import (
    MESSAGE_BYTES,
    TIMER_TIME_WAIT,
    destroy_request,
    exact_request,
    read_answer,
)
from twctl.linux.tcp import KERNEL_TIME_WAIT, TCP_TIME_WAIT
from twctl.modes.destinations import Destinations
from twctl.modes.enrolled import Enrolled
from twctl.modes.exhaustion import blocked_for
from twctl.modes.holders import Held, Piece, look, short_of_ports
from twctl.modes.port_policy import Rule, Seen, State, following
from twctl.modes.reconcile import INBOX_BYTES
from twctl.modes.truncate import DRAIN_BATCH, TOLERANCE
from twctl.table.counters import Reason
from twctl.table.maps import Table

log = logging.getLogger("twctl")

# So many of the busiest destinations are looked at.
LOOKED = 5
# Questions that are asked at once: their answers have to fit into the socket's buffer (212,992 bytes, 832 each).
ASKED = 64
# The time is shorter toward so many destinations at once: each is looked at every second, and a series in each scrape.
MOST = 20


class Destination(NamedTuple):
    """Ports are held by pairs: an address of this host, and an endpoint elsewhere, in the namespace of an index."""

    netns: int
    local: Address
    remote: Address
    remote_port: int

    def __str__(self) -> str:
        return host_port(self.remote, self.remote_port)


class Condemned(NamedTuple):
    """A session that was over its time (s) when the kernel's list was read."""

    destination: Destination
    local_port: int
    seconds: float

    @property
    def request(self) -> bytes:
        """What asks the kernel for exactly this socket."""
        _, local, remote, remote_port = self.destination
        scope = getattr(remote, "scope_id", None)
        return exact_request((local, self.local_port), (remote, remote_port), int(scope or 0))


class PortPressure:
    """Keeps the time of each destination, and destroys what is over it. The daemon's one thread runs it.

    diags: by index of the namespace, as they are now. condemned: what is still to be destroyed; refused: how many
    sockets the kernel did not destroy.
    """

    def __init__(self, table: Table, diags: Mapping[int, SockDiag], config: Config) -> None:
        self._diags, self._config = diags, config
        self._inbox = table.map("inbox", INBOX_BYTES + MESSAGE_BYTES)
        self._dismiss = table.program("dismiss")
        self._destinations = Destinations(table)
        self._states: dict[Destination, State] = {}
        self._turn = 0
        self._full = False
        self.condemned: deque[Condemned] = deque()
        self.refused = 0

    def seconds(self) -> dict[Destination, float]:
        """Those whose time is not their class's. A scrape's thread asks, too."""
        return {destination: state.seconds for destination, state in self._states.copy().items()}

    def toward(self, netns: int, remote: Endpoint, normal: float) -> float:
        """Seconds that sessions toward a remote endpoint stay, from whichever address of ours: the longest."""
        shortened = [
            s for each, s in self.seconds().items() if (each.netns, each.remote, each.remote_port) == (netns, *remote)
        ]
        return max(shortened, default=normal)

    def look(self, namespaces: Iterable[Enrolled]) -> float:
        """Decide how long sessions stay, and condemn what is over that; returns the CPU time that it took (s)."""
        began, namespaces = time.thread_time(), list(namespaces)
        here = {namespace.index for namespace in namespaces}
        self._states = {each: state for each, state in self._states.items() if each.netns in here}
        busy = self._destinations.look(LOOKED)
        for namespace in namespaces:
            with contextlib.suppress(OSError):
                self._look(namespace, busy.get(namespace.index, {}))
        self._turn += 1
        return time.thread_time() - began

    def _look(self, namespace: Enrolled, busy: Mapping[Endpoint, float]) -> None:
        """At the busiest that can be short of ports, and at those with a shorter time, which is to end."""
        shortened = {
            (each.remote, each.remote_port): math.inf for each in self._states if each.netns == namespace.index
        }
        if not busy and not shortened:
            return
        ports = namespace.ports.range()
        least = (1 - self._config.pressure.port_headroom) * len(ports)
        short, _ = short_of_ports(namespace.sockstat, busy, least)
        remotes, sockets = short_of_ports(namespace.sockstat, shortened | short, 0)
        if remotes:
            rules = {remote: self._rule(namespace, remote) for remote in remotes}
            self._decide(namespace.index, look(namespace.diag, ports, remotes, sockets, self._turn), rules)

    def _rule(self, namespace: Enrolled, remote: Endpoint) -> Rule:
        class_, settings = namespace.routes.explain(remote[0]).class_, self._config.pressure
        normal, floor = self._config.time_wait[class_], settings.floor[class_]
        blocked = blocked_for(*namespace.ports.reuse(), remote[0], normal)
        # Where connect() takes sessions over before they could go, there is nothing to gain.
        return Rule(settings.port_headroom, normal, normal if blocked <= floor else floor, blocked)

    def _decide(self, netns: int, piece: Piece, rules: Mapping[Endpoint, Rule]) -> None:
        pairs = {Destination(netns, local, *remote): held for (local, remote), held in piece.pairs.items()}
        gone = {each: Held() for each in self._states if each.netns == netns and each not in pairs}
        now = time.monotonic()
        for destination, held in (pairs | gone).items():
            rule = rules[destination.remote, destination.remote_port]
            state = self._states.get(destination, State(rule.normal, now))
            counted = min(state.seconds, rule.blocked)
            young = sum(KERNEL_TIME_WAIT - left < counted for left in held.left)
            seen = Seen(piece.ports, young, held.live)
            seconds = self._enforce(destination, state, following(state, seen, rule, now), seen, rule)
            self._condemn(destination, held, seconds)

    def _enforce(self, destination: Destination, before: State, after: State, seen: Seen, rule: Rule) -> float:
        """Remember and log what is in force; returns it (s)."""
        if after.seconds >= rule.normal:
            self._states.pop(destination, None)
        elif destination in self._states or self._has_room(destination):
            self._states[destination] = after
        else:
            return rule.normal
        if after.seconds != before.seconds:
            free = max(0.0, seen.headroom()) * 100
            log.info("time_wait toward %s is %g s now (headroom %.0f %%)", destination, after.seconds, free)
        return after.seconds

    def _has_room(self, destination: Destination) -> bool:
        room = len(self._states) < MOST
        if not room and not self._full:
            log.warning("time_wait toward %s and others stays: it is shorter toward %d already", destination, MOST)
        self._full = not room
        return room

    def _condemn(self, destination: Destination, held: Held, seconds: float) -> None:
        """Where the time is not shorter the walk of the rings (truncate.py) sees to what is due."""
        if destination in self._states:
            old = (port for port, left in zip(held.ports, held.left, strict=True) if KERNEL_TIME_WAIT - left >= seconds)
            self.condemned.extend(Condemned(destination, port, seconds) for port in old)

    def execute(self) -> None:
        """Destroy a batch of what is condemned. To be called where nobody else uses the inbox (Table.exclusive)."""
        batch = [self.condemned.popleft() for _ in range(min(DRAIN_BATCH, len(self.condemned)))]
        for netns in {each.destination.netns for each in batch} & self._diags.keys():
            mine = [each for each in batch if each.destination.netns == netns]
            for first in range(0, len(mine), ASKED):
                self._execute_in(netns, mine[first : first + ASKED])

    def _execute_in(self, netns: int, batch: Sequence[Condemned]) -> None:
        requests = [each.request for each in batch]
        answers = self._diags[netns].ask(requests)
        asked = zip(batch, requests, answers, strict=True)
        self.refused += self._diags[netns].destroy(list(self._orders(asked)))

    def _orders(self, asked: Iterable[tuple[Condemned, bytes, bytes]]) -> Iterator[bytes]:
        """For what is still in TIME_WAIT, and still too old, and had a vestige that this ends: each is counted once."""
        for each, request, raw in asked:
            answer = read_answer(raw)
            if not answer or (answer.state, answer.timer) != (TCP_TIME_WAIT, TIMER_TIME_WAIT):
                continue
            old = KERNEL_TIME_WAIT - answer.left >= each.seconds - TOLERANCE
            if old and self._end(raw, each.destination):
                yield destroy_request(request, answer.cookie)

    def _end(self, raw: bytes, destination: Destination) -> bool:
        """End the vestige of the session that an answer of the kernel's tells of."""
        self._inbox[:MESSAGE_BYTES] = raw[:MESSAGE_BYTES]
        family = FAMILIES.index(family_of(destination.local))
        return self._dismiss.run(family, 0, destination.netns, Reason.TRUNCATED) == 1
