"""The configuration that a daemon tells the commands: through a pinned map."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load.daemon import Daemon, daemon
from tests.load.netns import namespace
from twctl.errors import TwctlError
from twctl.table.maps import Table
from twctl.table.published import SETTINGS_BYTES, publish, published

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)


@pytest.fixture(scope="module")
def one() -> Iterator[Daemon]:
    """A daemon."""
    with namespace() as ns, daemon(ns) as made:
        yield made


def current(one: Daemon) -> Path:
    """Its pins."""
    return one.pins / "current"


def test_a_daemon_tells_each_key_with_value_and_source(one: Daemon) -> None:
    """From its start on."""
    told = published(Table(current(one)))
    assert told is not None
    assert ["observe", str(one.folder / "twctl.toml")] == told["mode"]


def test_what_is_told_later_replaces_what_was_told_before(one: Daemon) -> None:
    """Also where it is shorter."""
    table = Table(current(one), writable=True)
    for settings in ({"a": ["x" * 1009, "default"]}, {"b": [None, "default"]}):
        publish(table, settings)
        assert settings == published(Table(current(one)))


def test_half_of_it_is_never_taken_for_the_whole(one: Daemon) -> None:
    """A daemon that was killed as it wrote has told nothing; the next one has."""
    table = Table(current(one), writable=True)
    publish(table, {"a": [1, "default"]})
    memory = table.map("settings", SETTINGS_BYTES)
    memory[0] |= 1
    assert published(Table(current(one))) is None
    publish(table, {"a": [2, "default"]})
    assert {"a": [2, "default"]} == published(Table(current(one)))


def test_what_has_no_room_is_an_error_and_changes_nothing(one: Daemon) -> None:
    """It says what to leave out."""
    table = Table(current(one), writable=True)
    publish(table, {"a": [1, "default"]})
    with pytest.raises(TwctlError, match="fewer prefixes"):
        publish(table, {"a": ["x" * SETTINGS_BYTES, "default"]})
    assert {"a": [1, "default"]} == published(Table(current(one)))
