"""How the words after an option are read."""

import ipaddress

import pytest
import typer

from twctl.classes import Class
from twctl.commands.options import class_of, namespace_of, network_of, one_of


def test_what_is_not_given_is_nothing() -> None:
    """So that a filter lets everything through."""
    assert (None, None, None) == (class_of(None), network_of(None), namespace_of(None))


def test_what_is_given_is_read() -> None:
    """An address alone is a prefix, too."""
    assert Class.LOCAL == class_of("local")
    assert ipaddress.ip_network("10.0.0.0/8") == network_of("10.0.0.0/8")
    assert ipaddress.ip_network("fd00::1/128") == network_of("fd00::1")
    assert ipaddress.ip_network("192.0.2.0/24") == network_of("::ffff:192.0.2.0/120")
    assert ipaddress.ip_network("::/0") == network_of("::/0")
    assert "blue" == namespace_of("blue")
    assert "name" == one_of("--sort", "name", ["size", "name"])


@pytest.mark.parametrize(
    "call",
    [
        lambda: class_of("near"),
        lambda: class_of(""),
        lambda: network_of("10.0.0.1/8"),
        lambda: network_of(""),
        lambda: network_of("fe80::1%eth0"),
        lambda: namespace_of(""),
        lambda: namespace_of("../../etc/passwd"),
        lambda: one_of("--sort", "x", ["size", "name"]),
    ],
)
def test_what_cannot_be_is_wrong_usage(call) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
    """Which exits with 2."""
    with pytest.raises(typer.BadParameter):
        call()
