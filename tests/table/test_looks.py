"""Counters of one moment, and the rates between two."""

from dataclasses import replace

from twctl.classes import Class
from twctl.table.connects import Searches
from twctl.table.counters import CLOSES, DROPPED, Reason
from twctl.table.looks import Look, rates


def look(at: float, **changed: int) -> Look:
    """A moment in which all counters are 0 but these: name_label=count."""
    counters: dict[tuple[str, ...], int] = {}
    for class_ in Class:
        counters |= dict.fromkeys(((name, class_.label) for name in ("entered", "adopted", "restarted")), 0)
        counters |= dict.fromkeys((("ended", class_.label, reason.name.lower()) for reason in Reason), 0)
    counters |= dict.fromkeys((("closed", how) for how in CLOSES), 0)
    counters |= dict.fromkeys((("dropped", why) for why in (*DROPPED, "nested")), 0)
    counters["no_port",] = 0
    known = {(name,) if name == "no_port" else tuple(name.split("_")): count for name, count in changed.items()}
    return Look(at, counters | known, dict.fromkeys(Class, 1_234_567), dict.fromkeys(Class, 0.5), {})


def test_rates_are_differences_by_time_and_never_negative() -> None:
    """23 in half a second are 46 a second; a number that goes back, and comes back, is 0; what is new has no rate."""
    before = look(10.0, entered_local=100, ended_local_expired=50)
    after = look(10.5, entered_local=123, ended_local_expired=49, guard_absorbed=7).held(before)
    found = rates(before, after)
    assert (46.0, 0.0, 0.0) == (
        found["entered", "local"],
        found["ended", "local", "expired"],
        found["closed", "passive"],
    )
    assert ("guard", "absorbed") not in found
    assert rates(None, after) == {}
    assert rates(after, after) == {}
    back = look(11.0, entered_local=123, ended_local_expired=51).held(after)
    assert (0.0, 2.0) == (rates(after, back)["entered", "local"], rates(after, back)["ended", "local", "expired"])


def test_how_long_searches_took_is_kept_until_others_are_measured() -> None:
    """Of most looks nothing was; and of an outcome that never came nothing is said."""
    first, then = (
        replace(look(at), searches={"found": Searches((made,), seconds), "no_port": Searches((0,), 0.0)})
        for at, made, seconds in ((0, 3, 5.0), (1, 7, 7.0))
    )
    measured = then.held(first)
    assert {"found": 0.5} == measured.took
    assert measured.took == then.held(measured).took
    assert {} == first.held(None).took
