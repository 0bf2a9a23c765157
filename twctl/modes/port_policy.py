"""How long sessions stay toward a destination that is short of ports: `following` decides, by what was seen alone."""

import dataclasses
from typing import NamedTuple

from twctl.linux.tcp import KERNEL_TIME_WAIT

# The time becomes longer only where that is foreseen to leave this much more than the threshold.
RECOVERED = 1.5
# And only once all sessions are as old as the time now lets them be, and so many seconds more.
SETTLE_SECONDS = 5.0


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
