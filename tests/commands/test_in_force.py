"""Whose configuration a command goes by; tests/kernel/test_in_force.py asks a real daemon."""

from pathlib import Path

from twctl.commands.in_force import InForce, in_force
from twctl.config.config import load

NOWHERE = Path("/nowhere/twctl.toml")


def test_without_a_daemon_it_is_the_caller_s_own(tmp_path: Path) -> None:
    """Nothing is pinned there."""
    file = tmp_path / "twctl.toml"
    file.write_text("[time_wait]\nlocal = 7\n")
    found = in_force(file, {"pins": str(tmp_path / "pins")})
    assert (False, False) == (found.daemon, found.from_daemon)
    assert tmp_path / "pins" == found.config.pins
    assert "of the next start: no daemon is running" == found.source


def test_a_daemon_that_does_not_tell_is_told_of() -> None:
    """One of an earlier version, for example."""
    own = load(None, {}, default_file=NOWHERE)
    assert "of the next start: the daemon's own cannot be read" == InForce(own, daemon=True, from_daemon=False).source
