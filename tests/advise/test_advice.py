"""The words that the rules have in common."""

import dataclasses

import pytest

from tests.advise.test_rules import recorded
from twctl.advise.advice import Advice, endpoint, failures, is_loopback, number, prefix, scarce, unit

[ONE] = recorded("used_up").destinations


@pytest.mark.parametrize(("weight", "word"), [(100, "now"), (90, "now"), (60, "soon"), (20, "better"), (19, "fine")])
def test_urgency_follows_from_the_weight(weight: int, word: str) -> None:
    """In four words."""
    assert word == Advice(weight, "", "", "", "", "").urgency


@pytest.mark.parametrize(("count", "text"), [(0.0, "0"), (0.4, "0.4"), (9.0, "9"), (12.6, "13"), (28232, "28,232")])
def test_numbers_are_to_be_read(count: float, text: str) -> None:
    """Short ones, with thousands apart."""
    assert text == number(count)


def test_destinations_are_named_with_their_namespace() -> None:
    """IPv6 in brackets, and without its zone where a prefix is asked for."""
    far = dataclasses.replace(ONE, remote="fe80::1%2", remote_port=443, netns="blue")
    assert ("[fe80::1%2]:443 (from blue)", "fe80::1/128") == (endpoint(far), prefix(far))
    assert [True, True, False] == [
        is_loopback(dataclasses.replace(ONE, remote=remote)) for remote in ("127.0.0.2", "::1", "10.0.0.1")
    ]


@pytest.mark.parametrize("owner", ["unknown", "other", "/"])
def test_whoever_is_not_known_is_the_program(owner: str) -> None:
    """Else the unit."""
    assert "the program that connects" == unit(dataclasses.replace(ONE, owner=owner))
    assert "web.service" == unit(dataclasses.replace(ONE, owner="web.service"))


def test_failures_are_told_while_they_go_on() -> None:
    """Until a minute after the last."""
    assert "51" in failures(dataclasses.replace(ONE, failed=51, failed_last=59.0, failing_since=80.0))
    assert not failures(dataclasses.replace(ONE, no_port=0.0, failed_last=61.0))


def test_scarce_is_what_fails_first() -> None:
    """Then what is used most; live connections are no scarcity that TIME_WAIT makes."""
    assert scarce(recorded("used_up"))
    assert scarce(recorded("leak")) is None
    assert scarce(recorded("well")) is None
