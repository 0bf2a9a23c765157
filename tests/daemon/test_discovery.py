"""Network namespaces that are left alone, over namespaces that are a stand-in."""

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from twctl.config.config import load
from twctl.daemon import discovery
from twctl.daemon.discovery import AGAIN_SECONDS, LOOK_SECONDS, Discovery
from twctl.daemon.namespaces import Namespaces
from twctl.errors import TwctlError
from twctl.linux import netns
from twctl.modes.obstacles import Obstacle

LIFE = 7.0


class Standin:
    """Namespaces of which none has joined. keeps: how often `keep` was asked; error: what it raises."""

    def __init__(self) -> None:
        self.keeps = 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def is_enrolled(self, _name: str | None) -> bool:
        """See Namespaces."""
        return False

    def longest_life(self) -> float:
        """See Namespaces."""
        return LIFE

    def keep(self, _staying: Collection[int] = ()) -> list[str]:
        """See Namespaces."""
        self.keeps += 1
        if self.error:
            raise self.error
        return []


class Host:
    """One namespace, the daemon's own, with obstacles. now: monotonic, s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.namespaces, self.now, self.obstacles = Standin(), 0.0, [Obstacle("ipsec", "1 IPsec policies")]
        monkeypatch.setattr(discovery, "obstacles", lambda _name: self.obstacles)
        monkeypatch.setattr(netns, "present", dict)
        monkeypatch.setattr(discovery, "time", SimpleNamespace(monotonic=lambda: self.now))
        config = load(None, {"mode": "vestigial", "all_netns": True}, default_file=Path("/none")).config
        self.discovery = Discovery(cast("Namespaces", self.namespaces), config, lambda _joined: None)
        self.discovery.start()

    def later(self, seconds: float) -> None:
        """The next look, after so long."""
        self.now += seconds
        self.discovery.run()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Where nothing can join."""
    made = Host(monkeypatch)
    yield made
    made.discovery.close()


def test_a_kind_of_obstacle_is_said_once(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """Not each time that there is one more of it; another kind is."""
    caplog.clear()
    for text in ("2 IPsec policies", "3 IPsec policies"):
        host.obstacles = [Obstacle("ipsec", text)]
        host.later(2 * LOOK_SECONDS)
    assert [] == caplog.messages
    host.obstacles += [Obstacle("xdp", "XDP on eth0")]
    host.later(2 * LOOK_SECONDS)
    (message,) = caplog.messages
    assert message.startswith("network namespace (own) is left alone: 3 IPsec policies; XDP on eth0")


@pytest.mark.parametrize("error", [TwctlError("not put back", "release it"), OSError("it has gone")])
def test_what_was_left_is_given_up_later_where_it_cannot_be_yet(
    host: Host, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """The daemon goes on; the reason is told each time."""
    caplog.set_level(logging.WARNING)
    assert 1 == host.namespaces.keeps
    host.namespaces.error = error
    host.later(LIFE + 1)
    host.later(LOOK_SECONDS)
    assert (2, [str(error)]) == (host.namespaces.keeps, caplog.messages[-1:])
    host.namespaces.error = None
    host.later(AGAIN_SECONDS + 1)
    host.later(AGAIN_SECONDS + 1)
    assert 3 == host.namespaces.keeps
