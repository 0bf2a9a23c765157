"""What the rules say of snapshots that were taken of real scenes (tests/kernel/test_scenes.py, test_advise.py)."""

import pytest

from tests import ROOT
from tests.docs.pages import anchors
from twctl.advise.advice import PAGE
from twctl.advise.rules import RULES, Rule, advise
from twctl.advise.snapshot import Snapshot, from_json

FOLDER = ROOT / "tests/advise"
SNAPSHOTS = sorted(each.stem for each in FOLDER.glob("*.json"))
# Which rules fire in each scene, the heaviest first; no other does.
SAID = {
    "after_truncate": ["ports_used_up", "keep_alive", "reuse_helps", "mode_fits", "no_daemon"],
    "after_vestigial": ["ports_used_up", "keep_alive", "reuse_helps", "mode_fits", "no_daemon"],
    "alone": ["no_daemon"],
    "bound": ["ports_bound"],
    "buckets": ["buckets_overflow", "keep_alive"],
    "close_wait": ["connections_leak"],
    "conntrack": ["conntrack_full"],
    "drained": [],
    "evicting": ["keep_alive", "table_too_small"],
    "guarding": [],
    "idle": [],
    "leak": ["connections_leak"],
    "loopback": ["loopback"],
    "no_timestamps": ["ports_used_up", "reuse_needs_timestamps", "mode_fits"],
    "peer_closes": ["peer_closes_first"],
    "reused": ["keep_alive"],
    "searching": ["ports_used_up", "search_is_long", "keep_alive", "reuse_helps", "mode_fits"],
    "server_closes": ["server_closes_first"],
    "suspended": ["guard_suspended"],
    "translated": ["translation_used_up"],
    "unbound": [],
    "unclosed": ["peers_have_closed"],
    "used_up": ["ports_used_up", "keep_alive", "reuse_helps", "mode_fits"],
    "well": [],
}


def recorded(name: str) -> Snapshot:
    """One of them."""
    return from_json((FOLDER / f"{name}.json").read_text())


def test_each_snapshot_is_judged() -> None:
    """And none lies there unused."""
    assert sorted(SAID) == SNAPSHOTS


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_the_rules_that_fire_are_those_of_the_scene(name: str) -> None:
    """And the others must not."""
    snapshot = recorded(name)
    fired = {rule.__name__: said.weight for rule in RULES if (said := rule(snapshot))}
    assert SAID[name] == sorted(fired, key=lambda rule: -fired[rule])


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_the_heaviest_is_said_first_and_something_always(name: str) -> None:
    """Where no rule fires, that all is well."""
    said = advise(recorded(name))
    assert sorted((each.weight for each in said), reverse=True) == [each.weight for each in said]
    assert bool(SAID[name]) == (said[0].anchor != "all-is-well")


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_each_advice_is_whole_and_has_its_section(name: str) -> None:
    """Numbers in the evidence, and a heading that its anchor leads to."""
    for each in advise(recorded(name)):
        assert all((each.what, each.remedy, each.gain))
        assert any(letter.isdigit() for letter in each.evidence)
        assert each.anchor in anchors(ROOT / PAGE)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule.__name__))
def test_each_rule_has_a_scene_in_which_it_fires_and_one_in_which_not(rule: Rule) -> None:
    """But for those that no machine of tests should be brought to: test_host.py and test_own.py have them."""
    outcomes = {rule(recorded(name)) is not None for name in SNAPSHOTS}
    assert outcomes == ({False} if rule.__name__ in {"orphans_overflow", "entries_lost"} else {False, True})
