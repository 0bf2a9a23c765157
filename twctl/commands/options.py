"""Options that several commands have, and how what was typed is read: what is wrong is told as wrong usage."""

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from twctl import __version__
from twctl.addresses import FAMILIES, Network
from twctl.classes import Class
from twctl.config.keys import namespace_name

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
Family = Annotated[str | None, typer.Option(metavar="FAMILY", help="ipv4 or ipv6.")]
OwnerName = Annotated[str | None, typer.Option("--owner", metavar="NAME", help="Owner, as 'twctl blame' names it.")]
LocalPort = Annotated[int | None, typer.Option(min=1, max=65535, help="Port on this host.")]

MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # IPv4 addresses as sockets of IPv6 have them


def _print_version(asked: bool) -> None:  # noqa: FBT001 - a callback of Typer
    if asked:
        typer.echo(f"twctl {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")]


def class_of(label: str | None) -> Class | None:
    """The class that --class names."""
    labels = [each.label for each in Class]
    return Class(labels.index(one_of("--class", label, labels))) if label is not None else None


def family_of(label: str | None) -> str | None:
    """The family that --family names."""
    return one_of("--family", label, FAMILIES) if label is not None else None


def one_of(option: str, value: str, allowed: Sequence[str]) -> str:
    """The value of an option that has few."""
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}", param_hint=option)
    return value


def namespace_of(name: str | None) -> str | None:
    """The name that --netns gives."""
    try:
        return None if name is None else namespace_name(name)
    except ValueError:
        raise typer.BadParameter(f"{name!r} is no name under /run/netns", param_hint="--netns") from None


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address that is given."""
    if "%" in text:  # the kernel is asked without a device
        raise typer.BadParameter(f"{text!r} names a device: give the address alone", param_hint="ADDRESS")
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="ADDRESS") from None


def network_of(text: str | None) -> Network | None:
    """The prefix that --remote gives; a mapped one (::ffff:192.0.2.1) is IPv4, as its sessions are."""
    if text is None:
        return None
    if "%" in text:  # ipaddress would take it, and nobody look at the device
        raise typer.BadParameter(f"{text!r} names a device: give the prefix alone", param_hint="--remote")
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--remote") from None
    if not isinstance(network, ipaddress.IPv6Network) or not network.subnet_of(MAPPED):
        return network
    return ipaddress.IPv4Network((network.network_address.packed[-4:], network.prefixlen - MAPPED.prefixlen))
