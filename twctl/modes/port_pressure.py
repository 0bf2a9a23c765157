"""While the ports toward a destination run out, TIME_WAIT toward it is shorter than its class's time.

What to do is a pure function of what was seen (`following`). How it is done is mode truncate's way: the kernel is asked
for exactly this socket, and only what it says is TIME_WAIT, and old enough, is destroyed, with that answer's cookie.
"""

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from twctl.addresses import FAMILIES, Address, Endpoint, family_of, host_port
from twctl.linux.ports import Ports
from twctl.linux.sockdiag import TIMER_TIME_WAIT, Held, SockDiag, exact_request
from twctl.linux.tcp import KERNEL_TIME_WAIT, TCP_TIME_WAIT
from twctl.modes.reconcile import INBOX_BYTES, MESSAGE_BYTES
from twctl.modes.truncate import DRAIN_BATCH, TOLERANCE, destroy_request, parse
from twctl.table.counters import Reason
from twctl.table.maps import Table

log = logging.getLogger("twctl")

# The time becomes longer only where that is foreseen to leave this much more than the threshold.
RECOVERED = 1.5
# And only once all sessions are as old as the time now lets them be, and so many seconds more.
SETTLE_SECONDS = 5.0
# Questions that are asked at once: their answers have to fit into the socket's buffer (212,992 bytes, 832 each).
ASKED = 64
# So many destinations are shrunk at the same time; each is looked at every second, and a series in each scrape.
MOST = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """What holds for a destination.

    threshold: share of the ports that is to be free; normal, floor: seconds at other times, and at least; blocked:
    seconds after which tcp_tw_reuse lets connect() take a session's port all the same.
    """

    threshold: float
    normal: float
    floor: float
    blocked: float = KERNEL_TIME_WAIT


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """Seconds in force, and since when (monotonic) nothing has spoken against longer ones."""

    seconds: float
    since: float


class Seen(NamedTuple):
    """Ports toward a destination: how many there are, and how many sessions in TIME_WAIT and live connections hold."""

    ports: int
    time_wait: int
    live: int

    def headroom(self, growth: float = 1.0) -> float:
        """Share that is free, if there were `growth` times as many sessions in TIME_WAIT."""
        return 1 - (self.time_wait * growth + self.live) / self.ports if self.ports else 0.0


def following(state: State, seen: Seen, rule: Rule, now: float) -> State:
    """Return what is to be in force now.

    Below the threshold the time is halved, as far as the floor, at each look: what is over it goes at once. It is
    doubled again where twice as long, and so at a steady rate twice as many sessions, would leave RECOVERED times the
    threshold free, and has so for as long as sessions stay. So a steady load finds one time, and keeps it.
    """
    if seen.headroom() < rule.threshold:
        return State(max(rule.floor, min(state.seconds, rule.normal) / 2), now)
    if state.seconds >= rule.normal:
        return State(rule.normal, now)
    longer = min(rule.normal, state.seconds * 2)
    enough = min(RECOVERED * rule.threshold, (1 + rule.threshold) / 2)
    if seen.headroom(longer / state.seconds) < enough:
        return State(state.seconds, now)
    if now - state.since < state.seconds + SETTLE_SECONDS:
        return state
    return State(longer, now)


class Destination(NamedTuple):
    """Ports are held by pairs: an address of this host, and an endpoint elsewhere, in the namespace of an index."""

    netns: int
    local: Address
    remote: Address
    remote_port: int

    def __str__(self) -> str:
        return host_port(self.remote, self.remote_port)


@dataclasses.dataclass(frozen=True, slots=True)
class Condemned:
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

    condemned: what is still to be destroyed.
    """

    def __init__(self, table: Table, diags: Mapping[int, SockDiag]) -> None:
        self._diags = diags
        self._inbox = table.map("inbox", INBOX_BYTES + MESSAGE_BYTES)
        self._dismiss = table.program("dismiss")
        self._states: dict[Destination, State] = {}
        self._full = False
        self.condemned: deque[Condemned] = deque()
        self.refused = 0

    def seconds(self) -> dict[Destination, float]:
        """Those whose time is not their class's. A scrape's thread asks, too."""
        return {destination: state.seconds for destination, state in self._states.copy().items()}

    def toward(self, netns: int, remote: Endpoint, normal: float) -> float:
        """Seconds that sessions toward a remote endpoint stay, from whichever address of ours: the longest."""
        shrunk = [
            s for each, s in self.seconds().items() if (each.netns, each.remote, each.remote_port) == (netns, *remote)
        ]
        return max(shrunk, default=normal)

    def keep(self, indexes: Iterable[int]) -> None:
        """Forget the destinations of namespaces that have left."""
        here = set(indexes)
        self._states = {each: state for each, state in self._states.items() if each.netns in here}

    def remotes(self, netns: int) -> set[Endpoint]:
        """What is shrunk, from the namespace of an index: it has to be seen to recover."""
        return {(each.remote, each.remote_port) for each in self._states if each.netns == netns}

    def look(self, netns: int, found: Iterable[Held], ports: Ports, rules: Mapping[Endpoint, Rule]) -> None:
        """Decide how long sessions toward remote endpoints stay, by all that they hold; condemn what is over."""
        pairs: dict[Destination, list[Held]] = {each: [] for each in self._states if each.netns == netns}
        for held in found:
            if held.local_port in ports and held.remote in rules:
                pairs.setdefault(Destination(netns, held.local, *held.remote), []).append(held)
        now = time.monotonic()
        for destination, mine in pairs.items():
            rule = rules[destination.remote, destination.remote_port]
            state = self._states.get(destination, State(rule.normal, now))
            counted = min(state.seconds, rule.blocked)
            young = sum(held.left is not None and KERNEL_TIME_WAIT - held.left < counted for held in mine)
            seen = Seen(len(ports), young, sum(held.left is None for held in mine))
            seconds = self._enforce(destination, state, following(state, seen, rule, now), seen, rule)
            self._condemn(destination, mine, seconds)

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
            log.warning("time_wait toward %s and others stays: %d destinations are shrunk already", destination, MOST)
        self._full = not room
        return room

    def _condemn(self, destination: Destination, found: Iterable[Held], seconds: float) -> None:
        """Of a destination that is not shrunk the walk of the rings (truncate.py) sees to what is due."""
        if destination in self._states:
            old = (held for held in found if held.left is not None and KERNEL_TIME_WAIT - held.left >= seconds)
            self.condemned.extend(Condemned(destination, held.local_port, seconds) for held in old)

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
            answer = parse(raw)
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
