"""What `twctl config` prints."""

import json
from pathlib import Path

from twctl.commands import config
from twctl.commands.in_force import InForce
from twctl.config.config import from_published, load

NOWHERE = Path("/nowhere/twctl.toml")
OWN = load(None, {"mode": "truncate"}, default_file=NOWHERE)
NEXT = InForce(OWN, daemon=False, from_daemon=False)
RUNNING = InForce(from_published(OWN.published()), daemon=True, from_daemon=True)


def test_without_a_daemon_it_is_what_the_next_start_would_use() -> None:
    """And says so; each value has its source."""
    lines = list(config.lines(NEXT))
    assert "configuration of the next start: no daemon is running" == lines[0]
    assert ["mode", '"truncate"', "command", "line"] == lines[1].split()


def test_with_a_daemon_it_is_what_the_daemon_does() -> None:
    """Its sources are those that it had."""
    lines = list(config.lines(RUNNING))
    assert "configuration from the running daemon" == lines[0]
    assert lines[1].endswith("from the daemon (command line)")
    assert lines[2].endswith("from the daemon (default)")


def test_the_columns_are_below_each_other() -> None:
    """Whatever the longest key is."""
    _, *lines = config.lines(NEXT)
    assert 1 == len({len(line) - len(line[len(line.split()[0]) :].lstrip()) for line in lines})


def test_json_has_value_and_source_by_key() -> None:
    """Of every key."""
    told = json.loads(config.as_json(RUNNING))
    assert {"value": "truncate", "source": "from the daemon (command line)"} == told["mode"]
    assert {"value": 2.0, "source": "from the daemon (default)"} == told["time_wait.loopback"]
    assert OWN.settings.keys() == told.keys()
