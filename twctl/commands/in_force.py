"""What is in force: the running daemon's own configuration or, without one, what the next start would use."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from twctl.config.config import Config, Effective, from_published, load
from twctl.errors import TwctlError
from twctl.table.maps import Table
from twctl.table.pins import Pins
from twctl.table.published import published


@dataclasses.dataclass(frozen=True, slots=True)
class InForce:
    """daemon: bool, whether one runs at these pins; from_daemon: bool, whether it told the configuration itself.

    A daemon of another version may run whose configuration cannot be read: then it is the caller's own.
    """

    effective: Effective
    daemon: bool
    from_daemon: bool

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.effective.config

    @property
    def source(self) -> str:
        """Where the configuration is from, as a line for people to read (str)."""
        if self.from_daemon:
            return "from the running daemon"
        what = "of the next start"
        return f"{what}: the daemon's own cannot be read" if self.daemon else f"{what}: no daemon is running"


def in_force(file: Path | None, options: Mapping[str, object]) -> InForce:
    """Ask the daemon that uses the pins which the caller's file and options name.

    file: the caller's configuration file (None: the default). options: the caller's, by key.

    :raises TwctlError: if the caller's own configuration is bad.
    """
    own = load(file, options)
    if not Pins(own.config.pins).locked():
        return InForce(own, daemon=False, from_daemon=False)
    published = _published(own.config.pins)
    return InForce(published or own, daemon=True, from_daemon=published is not None)


def _published(pins: Path) -> Effective | None:
    with contextlib.suppress(TwctlError, OSError, ValueError, KeyError):
        if told := published(Table(pins / "current")):
            return from_published(told)
    return None
