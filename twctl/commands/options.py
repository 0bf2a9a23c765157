"""Options that several commands have, and how what was typed is read: what is wrong is told as wrong usage."""

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from twctl.addresses import Network
from twctl.classes import Class

# readable=False: typer does not look whether they can be read, which is told in our own words.
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", readable=False, help="Configuration (TOML); default /etc/twctl.toml if it exists."
    ),
]
PinsFolder = Annotated[Path | None, typer.Option("--pins", metavar="DIR", readable=False, help="Folder under bpffs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ClassLabel = Annotated[str | None, typer.Option("--class", metavar="CLASS", help="loopback, local or remote.")]
Remote = Annotated[str | None, typer.Option(metavar="CIDR", help="Prefix that the remote address lies in.")]
LocalPort = Annotated[int | None, typer.Option(min=1, max=65535, help="Port on this host.")]


def class_of(label: str | None) -> Class | None:
    """The class that --class names."""
    labels = [each.label for each in Class]
    return Class(labels.index(one_of("--class", label, labels))) if label else None


def one_of(option: str, value: str, allowed: Sequence[str]) -> str:
    """The value of an option that has few."""
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}", param_hint=option)
    return value


def network_of(text: str | None) -> Network | None:
    """The prefix that --remote gives."""
    try:
        return ipaddress.ip_network(text) if text else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--remote") from None
