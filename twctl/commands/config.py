"""What `twctl config` prints: every value in force, with its source."""

import json
from collections.abc import Iterator

from twctl.commands.in_force import InForce


def lines(found: InForce) -> Iterator[str]:
    """Where the configuration is from, then a line for each key."""
    yield f"configuration {found.source}"
    rows = [(name, json.dumps(value), source) for name, value, source in found.effective.rows()]
    longest = max(len(name) for name, _, _ in rows)
    for name, value, source in rows:
        yield f"{name:<{longest}} {value:<21} {source}"


def as_json(found: InForce) -> str:
    """Value and source by dotted key."""
    return json.dumps({name: {"value": value, "source": source} for name, value, source in found.effective.rows()})
