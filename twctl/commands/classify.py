"""What `twctl classify` prints: how near a peer is, and what decides it."""

from collections.abc import Mapping

from twctl.addresses import Address
from twctl.classes import Explanation
from twctl.config.config import Config
from twctl.routes.watcher import RouteWatcher


def explain(peer: Address, config: Config, netns: str | None) -> Explanation:
    """Ask the routes of a network namespace (None: our own), with the overrides of the configuration.

    :raises TwctlError: if the namespace cannot be entered or its routes cannot be read.
    """
    with RouteWatcher(config.classes, netns) as routes:
        return routes.explain(peer)


def facts(peer: Address, found: Explanation) -> dict[str, str | None]:
    """Plain values, as `twctl classify --json` prints them; None: there is none."""
    return {
        "address": str(peer),
        "class": found.class_.label,
        "prefix": str(found.prefix) if found.prefix else None,
        "source": found.source,
        "interface": found.interface,
        "gateway": str(found.gateway) if found.gateway else None,
    }


def text(facts: Mapping[str, str | None]) -> str:
    """A line for each fact."""
    return "\n".join(f"{name:<10} {value or '-'}" for name, value in facts.items())
