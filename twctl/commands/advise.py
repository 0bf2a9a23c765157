"""What `twctl advise` prints: what is wrong and what to do about it, most important first."""

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Sequence

from twctl.advise.advice import BETTER, PAGE, Advice
from twctl.advise.rules import advise
from twctl.advise.snapshot import Snapshot, as_plain
from twctl.advise.take import take
from twctl.commands.in_force import InForce
from twctl.table.maps import Table

WIDTH = 80
MARGIN = 10  # columns of the words at the left


def report(table: Table, found: InForce, *, json_: bool) -> Iterator[str]:
    """Take the snapshot, and say what the rules say.

    :raises TwctlError: where the namespaces of the table cannot be entered.
    """
    snapshot = take(table, found.config.time_wait, daemon=found.daemon)
    said = advise(snapshot)
    yield from [as_json(said, snapshot)] if json_ else lines(said)


def as_json(said: Sequence[Advice], snapshot: Snapshot) -> str:
    """One object: the advice in its order, and the snapshot that it is given on."""
    rows = [{"urgency": each.urgency, **dataclasses.asdict(each), "page": f"{PAGE}#{each.anchor}"} for each in said]
    return json.dumps({"advice": rows, "snapshot": as_plain(snapshot)})


def lines(said: Sequence[Advice]) -> Iterator[str]:
    """At most 80 columns wide; only what cannot be broken is longer."""
    urgent = sum(each.weight >= BETTER for each in said)
    if not urgent:
        yield from ["Nothing has to be done.", ""]
    for i, each in enumerate(said):
        if i:
            yield ""
        yield from _wrapped(f"{each.urgency}:", each.what)
        yield from _wrapped("seen", each.evidence)
        yield from _wrapped("do", each.remedy)
        yield from _wrapped("brings", each.gain)
        yield from _wrapped("read", f"{PAGE}#{each.anchor}")


def _wrapped(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{name:<{MARGIN}}",
        subsequent_indent=" " * MARGIN,
        break_long_words=False,
        break_on_hyphens=False,
    )
