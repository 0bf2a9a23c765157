"""The page's text: what comes from outside is escaped, what is private is told to nobody else, numbers read well."""

import dataclasses
import html
import ipaddress
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.table.test_looks import look
from twctl.classes import Class
from twctl.daemon.facts import Facts
from twctl.daemon.page import HEADERS, MODES, page
from twctl.modes.headroom import Use
from twctl.table.looks import rates
from twctl.table.maps import MODES as MODES_OF_TABLE

HELD = "50% of 28,232 local ports: 14,000 TIME_WAIT, 116 live, 60 more a second; none is left in 830 s"
EVIL = """<script>alert("1")</script>&amp;'><img src=//x>"""


def use(**changed: Any) -> Use:  # noqa: ANN401 - as dataclasses.replace
    """A destination half of whose ports are held."""
    host, remote = ipaddress.ip_address("10.0.0.5"), ipaddress.ip_address("2001:db8::9")
    made = Use("blue", host, remote, 5432, 28232, 14000, 116, 60.4, 833.0)
    return dataclasses.replace(made, **changed)


def facts(**changed: Any) -> Facts:  # noqa: ANN401
    """Those of a host without trouble."""
    before, now = look(600.0), look(605.0, entered_local=617, ended_remote_expired=2)
    made = Facts(
        private=True,
        healthy=True,
        mode="observe",
        look=now,
        earlier=look(140.0),
        rates=rates(before, now),
        time_wait=dict.fromkeys(Class, 60.0),
        kernel_sockets=3703701,
        uses=[use()],
        uses_age=3.0,
        owners=[("checkout.service, uid 33", 1841)],
        obstacles={},
        guarded_devices=None,
        left_alone=0,
        drift={"missing": 0, "stale": 0},
    )
    return dataclasses.replace(made, **changed)


def text(markup: str) -> str:
    """What is read, a line for each element."""
    words = re.sub(r"<style>.*?</style>|</(td|th|b|code|a)>", " ", markup, flags=re.DOTALL)
    return html.unescape(
        re.sub(r" +", " ", re.sub(r"<[^>]*>", "", re.sub(r"</?(tr|p|li|h1|h2|meter)[^>]*>", "\n", words)))
    )


class Parser(HTMLParser):
    """Which elements there are, whether each ends, and which attributes they have."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self._open: list[str] = []
        self.feed(markup)
        assert [] == self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note it."""
        self.tags.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """It is the last one's that began."""
        assert tag == self._open.pop()


def test_sessions_and_rates_stand_by_class() -> None:
    """As a person reads numbers: 617 in five seconds are 123 a second, two are 0.4; 0 is 0."""
    lines = [line.strip() for line in text(page(facts())).splitlines()]
    for expected in (
        "class sessions entered/s ended/s full time",
        "loopback 1,234,567 0 0 50% 60 s",
        "local 1,234,567 123 0 50% 60 s",
        "remote 1,234,567 0 0.4 50% 60 s",
        "all 3,703,701 123 0.4",
        "The kernel has 3,703,701 TIME_WAIT sockets.",
        "[2001:db8::9]:5432 from 10.0.0.5, network namespace blue",
        HELD,
        "checkout.service, uid 33 1,841",
        "Nothing to warn of.",
    ):
        assert expected in lines


def test_what_is_not_known_is_not_told_as_0() -> None:
    """Rates before there is an earlier look; sockets of a kernel that cannot be asked; ports that nobody looks at."""
    shown = text(page(facts(rates={}, kernel_sockets=None, uses=None, owners=[])))
    for expected in ("local 1,234,567 - - 50%", "an unknown number of", "[blame] destinations is 0", "None has"):
        assert expected in shown
    assert "no destination 5% of the local ports" in text(page(facts(uses=[])))


@pytest.mark.parametrize("mode", MODES_OF_TABLE)
def test_every_mode_is_named_and_explained(mode: str) -> None:
    """At the top."""
    assert f"Mode {mode} {MODES[mode]}." in text(page(facts(mode=mode)))


def test_owners_and_addresses_are_hidden_from_others() -> None:
    """Also in warnings; the numbers are there, and why the names are not."""
    trouble = facts(private=False, uses=[use(time_wait=28000)])
    shown = page(trouble)
    assert [] == [each for each in ("checkout", "10.0.0.5", "2001:db8", "5432", "blue") if each in shown]
    assert "100% of the local ports toward a destination are held" in text(shown)
    assert 2 == text(shown).count("are told only")
    assert "toward [2001:db8::9]:5432" in text(page(dataclasses.replace(trouble, private=True)))


def test_what_comes_from_outside_is_escaped() -> None:
    """The names of owners, namespaces and obstacles: every element ends, and there is none that is not the page's."""
    plain = Parser(page(facts(uses=[use(time_wait=28000)], obstacles={"nat": 1})))
    evil = page(facts(owners=[(EVIL, 1)], uses=[use(netns=EVIL, time_wait=28000)], obstacles={EVIL: 1}))
    found = Parser(evil)
    assert (plain.tags, plain.attributes) == (found.tags, found.attributes)
    assert EVIL not in evil
    assert 3 == evil.count("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;amp;&#x27;&gt;&lt;img src=//x&gt;")


def test_nothing_runs_and_nothing_is_fetched() -> None:
    """No script, picture or font; links stay here; the style is the one that the header allows."""
    found = Parser(page(facts()))
    assert set() == found.tags & {"script", "img", "link", "iframe", "object", "form"}
    assert {"/metrics", "/healthy"} == {value for name, value in found.attributes if name in {"href", "src"}}
    assert not any(name == "style" or name.startswith("on") for name, _ in found.attributes)
    policy = dict(HEADERS)["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
