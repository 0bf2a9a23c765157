"""How long sessions stay toward a destination that is short of ports: the policy, over loads made up and recorded."""

import itertools
import json
import math
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from tests import ROOT
from twctl.modes.port_policy import RECOVERED, SETTLE_SECONDS, Rule, Seen, State, following

# Of each second of a client, by the kernel's own list: sessions that entered TIME_WAIT, live connections,
# and all in TIME_WAIT. A quiet start, waves of up to 90 a second, a burst of 400, and quiet again.
TRACE = ROOT / "tests/traces/entries.json"


class Second(NamedTuple):
    """What was in force after a look, how many ports were held before and after it, and how many there are."""

    seconds: float
    before: int
    after: int


def simulate(load: Iterable[tuple[float, int]], ports: int, rule: Rule) -> list[Second]:
    """Entries and live connections of each second; a look at the end of each, which ends what is too old."""
    state, sessions, found = State(rule.normal, 0.0), deque[tuple[int, int]](), list[Second]()
    entries = 0.0
    for now, (rate, live) in enumerate(load):
        entries += rate
        sessions.append((now, math.floor(entries)))
        entries -= math.floor(entries)
        ended(sessions, now - state.seconds)
        seen = Seen(ports, sum(count for _, count in sessions), live)
        state = following(state, seen, rule, now)
        ended(sessions, now - state.seconds)
        found.append(Second(state.seconds, seen.time_wait + live, sum(count for _, count in sessions) + live))
    return found


def ended(sessions: deque[tuple[int, int]], oldest: float) -> None:
    """They are gone."""
    while sessions and sessions[0][0] <= oldest:
        sessions.popleft()


def changes(found: list[Second]) -> list[tuple[int, float, float]]:
    """When, from what, to what."""
    times = [second.seconds for second in found]
    return [(now, a, b) for now, (a, b) in enumerate(itertools.pairwise(times), 1) if a != b]


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Any that the configuration allows."""
    normal = draw(st.floats(0.1, 60))
    return Rule(draw(st.floats(0.01, 0.9)), normal, draw(st.floats(0.05, 1)) * normal)


PORTS = st.integers(100, 28232)
# of the ports, a second
SHARES = st.floats(0, 0.3)


@given(PORTS, rules(), st.lists(st.tuples(SHARES, st.floats(0, 1)), min_size=1, max_size=300))
def test_the_time_stays_between_floor_and_normal_and_grows_slowly(
    ports: int, rule: Rule, load: list[tuple[float, float]]
) -> None:
    """Whatever comes: it doubles at most, and never before sessions are as old as they may be now, and 5 s more."""
    found = simulate([(rate * ports, int(live * ports)) for rate, live in load], ports, rule)
    assert all(rule.floor <= second.seconds <= rule.normal for second in found)
    last = 0.0
    for now, before, after in changes(found):
        assert after <= 2 * before
        assert after < before or now - last >= before + SETTLE_SECONDS
        last = now


@given(PORTS, rules(), SHARES, st.floats(0, 0.5))
def test_a_steady_load_finds_one_time_and_keeps_it(ports: int, rule: Rule, share: float, live: float) -> None:
    """It only ever becomes shorter, and no longer changes once the load has lasted for a life."""
    found = simulate([(int(share * ports), int(live * ports))] * 300, ports, rule)  # a part of one more is not steady
    made = changes(found)
    assert all(after < before for _, before, after in made)
    assert all(now <= rule.normal + math.log2(rule.normal / rule.floor) + 2 for now, _, _ in made)


@given(PORTS, rules(), st.lists(SHARES, min_size=1, max_size=200))
def test_ports_are_used_up_only_where_the_floor_or_a_single_second_is_too_much(
    ports: int, rule: Rule, load: list[float]
) -> None:
    """A look leaves the threshold free, or the floor is in force, or it will be as soon as halving has led there."""
    found = simulate([(rate * ports, 0) for rate in load], ports, rule)
    halvings = math.ceil(math.log2(rule.normal / rule.floor))
    short = 0
    for second in found:
        low = 1 - second.after / ports < rule.threshold and second.seconds > rule.floor
        short = short + 1 if low else 0
        assert short <= halvings


@given(PORTS, rules(), SHARES, st.integers(1, 100))
def test_all_is_as_it_was_once_the_load_is_over(ports: int, rule: Rule, share: float, seconds: int) -> None:
    """After the sum of the times in between, each with its 5 s, and what the sessions need that are still there."""
    steps = math.ceil(math.log2(rule.normal / rule.floor)) + 1
    after = math.ceil(3 * rule.normal + steps * (SETTLE_SECONDS + 2)) + 5
    found = simulate([(share * ports, 0)] * seconds + [(0, 0)] * after, ports, rule)
    assert rule.normal == found[-1].seconds


def test_noise_does_not_make_it_flap() -> None:
    """A load that goes up and down by a quarter, second by second and minute by minute, keeps the time it has found."""
    load = [(60 * (1 + 0.15 * (-1) ** now + 0.1 * math.sin(now / 10)), 20) for now in range(1200)]
    found = simulate(load, 1409, Rule(0.2, 60, 2))
    assert [(30.0, 15.0), (60.0, 30.0)] == sorted((before, after) for _, before, after in changes(found))
    assert max(second.before for second in found[60:]) < 1409


def test_only_what_would_leave_enough_is_given_back() -> None:
    """Twice the time is twice the sessions: where they would leave less than that, the wait begins anew."""
    rule, settled = Rule(0.2, 60, 2), 15 + SETTLE_SECONDS
    enough = math.floor(1000 * (1 - RECOVERED * rule.threshold) / 2)
    assert State(15, 9) == following(State(15, 0), Seen(1000, enough + 1, 0), rule, 9)
    assert State(15, 0) == following(State(15, 0), Seen(1000, enough, 0), rule, settled - 0.1)
    assert State(30, settled) == following(State(15, 0), Seen(1000, enough, 0), rule, settled)


def test_a_recorded_load_is_let_through_that_would_have_used_the_ports_up() -> None:
    """3207 ports are what it holds by itself; with 1409, of which a fifth is to be free, no second uses them up."""
    trace = [tuple(row) for row in json.loads(TRACE.read_text())]
    load = [(entries, live) for entries, live, _ in trace]
    alone = simulate(load, 10**6, Rule(0.01, 60, 2))
    # Later they end, up to 5 s late: the kernel's timers of this length are that coarse.
    for second, (_, live, time_wait) in list(zip(alone, trace, strict=True))[:60]:
        assert abs(second.after - live - time_wait) <= 8
    assert max(second.before for second in alone) > 3000

    rule = Rule(0.2, 60, 2)
    found = simulate([*load, *[(5, 30)] * 300], 1409, rule)
    assert max(second.before for second in found) < 1409
    assert rule.normal == found[-1].seconds
    made = changes(found)
    down, up = [each for each in made if each[2] < each[1]], [each for each in made if each[2] > each[1]]
    assert len(down) <= 4
    assert max(now for now, _, _ in down) < len(load)
    assert min(second.seconds for second in found) == 60 / 2 ** len(up)


def test_without_a_port_there_is_nothing_to_divide_by() -> None:
    """A range that is reserved as a whole has no headroom."""
    assert 0 == Seen(0, 0, 0).headroom()
