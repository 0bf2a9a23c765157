"""Each fact that is worth a line, and a host without trouble that has none."""

from typing import Any

import pytest

from tests.daemon.test_page import facts, use
from tests.table.test_looks import look
from twctl.classes import Class
from twctl.daemon.warnings import warnings

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "the loop hangs": ({"healthy": False}, "The daemon hangs: its loop has not gone round for 60 s. Restart it."),
    "connects fail": (
        {"look": look(605.0, no_port=1203)},
        "1,203 connect() calls found no free local port in the last 8 min.",
    ),
    "ports are held": (
        {"uses": [use(), use(time_wait=24000)]},
        "85% of the local ports toward [2001:db8::9]:5432 are held; none is left in 830 s.",
    ),
    "ports will be used up": (
        {"uses": [use(), use(time_wait=14001, seconds_left=599.0)]},
        "50% of the local ports toward [2001:db8::9]:5432 are held; none is left in 596 s.",
    ),
    "no port is left": (
        {"uses": [use(time_wait=28116, seconds_left=2.0)]},
        "100% of the local ports toward [2001:db8::9]:5432 are held; none is left.",
    ),
    "it stays so": (
        {"uses": [use(time_wait=24000, seconds_left=None)]},
        "85% of the local ports toward [2001:db8::9]:5432 are held; those that are let go keep up.",
    ),
    "no guard": ({"guarded_devices": 0}, "No device has the guard, so nothing does TIME_WAIT's duty."),
    "obstacles": (
        {"obstacles": {"nat": 2, "xdp": 1, "tc": 0}, "guarded_devices": 3},
        "The guard is suspended where something is between wire and sockets: 2 nat, 1 xdp.",
    ),
    "namespaces": ({"left_alone": 2}, "Network namespaces that are left alone: 2 (the log says why)."),
    "evictions": (
        {"look": look(605.0, ended_local_evicted=70)},
        "70 sessions were evicted in the last 8 min: [capacity] is too small for class local.",
    ),
    "evictions while guarding": (
        {"mode": "vestigial", "look": look(150.0, ended_local_evicted=70)},
        "70 sessions were evicted before their time in the last minute: [capacity] is too small for class local.",
    ),
    "drift": (
        {"drift": {"missing": 200_000, "stale": 3}},
        "The table differs from the kernel's list: the last comparison mended 200,000 missing, 3 stale sessions.",
    ),
    "losses": (
        {"look": look(605.0, entered_local=1999, dropped_collision=2)},
        "Entries were lost, or kept imperfectly, in the last 8 min: 2 collision.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_has_its_line(name: str) -> None:
    """And no other has one then."""
    changed, expected = CASES[name]
    assert [expected] == warnings(facts(**changed))


def test_a_table_that_is_nearly_full_is_told_before_it_evicts() -> None:
    """Of the class that it is."""
    full = look(605.0)
    object.__setattr__(full, "full", {**full.full, Class.REMOTE: 0.9})
    assert ["The table is 90% full: [capacity] is too small for class remote."] == warnings(facts(look=full))


def test_little_is_no_news() -> None:
    """Below the bounds of the alerts."""
    little = look(605.0, entered_local=2000, dropped_collision=2)
    uses = [use(time_wait=22000)]
    assert [] == warnings(facts(look=little, uses=uses, drift={"missing": 185_000, "stale": 0}, guarded_devices=1))


def test_the_weightiest_comes_first() -> None:
    """What makes connects fail, before what makes numbers wrong."""
    found = warnings(facts(look=look(605.0, no_port=1, dropped_collision=1), obstacles={"nat": 1}))
    assert ["1 connect", "The guard", "Entries w"] == [line[:9] for line in found]
