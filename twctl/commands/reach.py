"""Whether a command can reach the table at all: only root can, and `ip netns exec` hides it."""

import os
import shlex
import sys
from pathlib import Path

import typer

from twctl.commands.in_force import InForce, in_force
from twctl.config import config
from twctl.config.config import load
from twctl.errors import TwctlError
from twctl.linux.netns import NAMESPACES
from twctl.table.maps import Table
from twctl.table.pins import mount_of

SYS = Path("/sys")


def not_root() -> TwctlError:
    """What somebody else is told, with the command line to paste."""
    module = Path(sys.argv[0]).name == "__main__.py"
    words = [sys.executable, "-m", "twctl", *sys.argv[1:]] if module else sys.argv
    return TwctlError("not root", f"run it as root: {shlex.join(['sudo', *words])}")


def as_root() -> None:
    """Raise TwctlError for anybody else."""
    if os.geteuid():
        raise not_root()


def in_sight(pins: Path) -> None:
    """Whether pins can be seen from here.

    What is pinned there inside of `ip netns exec` is seen by no other command, and goes with the last process inside:
    also the guard of a daemon that is killed, whose sysctls stay.

    :raises TwctlError: inside of `ip netns exec`, which mounts a new /sys, whose bpffs is not the host's. That one
        bears the namespace's name (iproute2, netns_switch()).
    """
    kind, name = mount_of(SYS)
    if kind == "sysfs" and (NAMESPACES / name).exists() and mount_of(pins.parent)[0] != "bpf":
        hint = f"run twctl outside, which sees every namespace, or with nsenter --net={NAMESPACES / name}"
        raise TwctlError(f"'ip netns exec {name}' hides {pins}", hint)


def pins_of(file: Path | None, pins: Path | None) -> Path:
    """The folder, for a command that changes or follows what is pinned there. Raises TwctlError."""
    as_root()
    found = load(file, {"pins": pins}).config.pins
    in_sight(found)
    return found


def pins_to_release(file: Path | None, pins: Path | None) -> Path:
    """The folder, for `release`: a file that is bad must not keep anything in force. A line says that it is.

    :raises TwctlError: if nothing says which folder it is.
    """
    as_root()
    try:
        found = load(file, {"pins": pins}).config.pins
    except TwctlError as error:
        if file and not file.exists() and not pins:
            raise
        try:
            found = load(Path(os.devnull), {"pins": config.pins_of(file, {"pins": pins})}).config.pins
        except TwctlError:
            raise error from None
        typer.echo(f"twctl: {error}: releasing what is pinned at {found}", err=True)
    in_sight(found)
    return found


def table_of(file: Path | None, pins: Path | None) -> tuple[Table, InForce]:
    """The table, and what is in force. Raises TwctlError."""
    pins_of(file, pins)
    found = in_force(file, {"pins": pins})
    return Table(found.config.pins / "current"), found
