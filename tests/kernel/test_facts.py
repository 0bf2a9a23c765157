"""The landing page of the real daemon: what it tells of real sessions, to whom, and how a browser shows it."""

import contextlib
import dataclasses
import ipaddress
import os
import re
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.registry import CollectorRegistry

from tests.daemon.test_page import facts, text, use
from tests.kernel.test_headroom import QUIET, client
from tests.load import wait_until
from tests.load.chromium import Chromium, chromium
from tests.load.daemon import Daemon, daemon
from tests.load.netns import Link, link
from tests.load.paths import over_link
from twctl.config.keys import Listen
from twctl.daemon.page import page
from twctl.daemon.server import Listener, Server

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

SESSIONS = 401  # toward one port of the peer, of 1,009 local ports
PHONE, DESKTOP = 360, 1280


@dataclasses.dataclass(frozen=True)
class Shown:
    """A daemon whose sessions go to one destination."""

    one: Daemon
    destination: str

    def page(self, host: str = "127.0.0.1") -> str:
        """The page, asked for by this name."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.one.port}/", headers={"Host": host})
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - the URL is ours
            found: bytes = answer.read()
        return found.decode()


@pytest.fixture(scope="module")
def ends() -> Iterator[Link]:
    """Where the sessions are."""
    with link(QUIET) as made:
        yield made


@pytest.fixture(scope="module")
def shown(ends: Link) -> Iterator[Shown]:
    """It has looked at the ports and has had a second look at the counters."""
    with daemon(ends.client) as one, client(over_link(ends), 1) as each:
        for _ in range(SESSIONS):
            each.connect(closes=True)
        made = Shown(one, f"10.77.0.2:{each.address[1]}")
        all_of_them = f": {SESSIONS} TIME_WAIT"
        wait_until(lambda: all_of_them in made.page(), what="the ports have been looked at", timeout=30)
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    """One for all tests."""
    with chromium() as made:
        yield made


def test_it_tells_of_sessions_destinations_and_owners(shown: Shown) -> None:
    """As the metrics do."""
    told = text(shown.page())
    assert "Mode observe shows TIME_WAIT" in told
    assert re.search(rf"^ ?local {SESSIONS} [\d.,]+ [\d.,]+ 1% 60 s", told, re.MULTILINE)
    assert f"{shown.destination} from 10.77.0.1, network namespace twl-" in told
    assert f"40% of 1,009 local ports: {SESSIONS} TIME_WAIT, 0 live" in told
    assert re.search(rf", uid 0 {SESSIONS}\b", told)
    assert "Nothing to warn of." in told


def test_by_a_strange_name_it_tells_neither_owners_nor_addresses(shown: Shown) -> None:
    """Which is what a script of the web would ask by. The numbers are the same."""
    told = text(shown.page("evil.example"))
    assert f"40% of 1,009 local ports: {SESSIONS} TIME_WAIT" in told
    assert [] == [each for each in ("10.77.0", "twl-", "uid 0") if each in told]


def test_rates_are_there_as_soon_as_sessions_begin(shown: Shown, ends: Link) -> None:
    """Nobody has to load the page twice."""
    with client(over_link(ends), 1) as each:
        for _ in range(97):
            each.connect(closes=True)
    found = re.search(r"^ ?local [\d,]+ ([\d.,]+) ", text(shown.page()), re.MULTILINE)
    assert found
    assert float(found[1].replace(",", "")) > 0


@pytest.mark.parametrize("width", [320, PHONE, DESKTOP])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_all_of_it_and_asks_for_nothing_else(
    shown: Shown, browser: Chromium, width: int, *, dark: bool
) -> None:
    """Nothing is beside the window of a phone or a desktop; nothing is fetched, and nothing refused by the policy."""
    url = f"http://127.0.0.1:{shown.one.port}/"
    found = browser.visit(url, width, dark=dark)
    assert width == found.width
    assert [url] == found.requests
    assert [] == found.complaints
    assert shown.destination in found.text


@pytest.mark.parametrize("width", [320, PHONE, DESKTOP])
def test_the_longest_names_and_numbers_fit_too(browser: Chromium, width: int) -> None:
    """Addresses of IPv6 in full, a cgroup's path, a hundred thousand entries a second."""
    address = ipaddress.ip_address("2001:db8:1111:2222:3333:4444:5555:6666")
    long = facts(
        uses=[use(local=address, remote=address, netns="cni-" + "0" * 60)],
        owners=[("kubepods-besteffort-pod" + "0" * 200, 2**40)],
        rates={(name, "local"): 123456.7 for name in ("entered", "ended")},
    )
    with contextlib.closing(Listener(Listen("127.0.0.1", 0), None)) as listener:
        server = Server(listener, CollectorRegistry(), lambda: True, lambda _: page(long))
        with contextlib.closing(server):
            assert width == browser.visit(f"http://127.0.0.1:{listener.port}/", width).width


def test_dark_is_dark(shown: Shown, browser: Chromium) -> None:
    """The two schemes differ."""
    url = f"http://127.0.0.1:{shown.one.port}/"
    assert browser.visit(url, PHONE).png != browser.visit(url, PHONE, dark=True).png
