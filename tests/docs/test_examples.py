"""What the pages show of output is what the commands print: the same lines, whatever the numbers in them."""

import os
import re

import pytest

from tests.docs.examples import Pace, examples
from tests.docs.pages import blocks

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

# What differs from one machine, or one moment, to the next.
VARIABLE = (
    (r"(?<=draining under pressure:).*", ""),
    (r"(?<=^guard:).*", ""),
    (r"(tracepoint|fentry) probe", "probe"),
    (r"\b(TIME_WAIT|FIN_WAIT2)(?= \d+\.\d+)", "STATE"),
    (r"\bread\b.*", "read"),
    (r"for ever", "0 s"),
    (r"[+-]?\d[\d.,:]*", "0"),
)


def shapes(text: str) -> set[str]:
    """Lines without numbers, and without what a kernel or host allows."""
    lines = [line for line in text.splitlines() if not line.startswith("twctl: fentry is not available")]
    found = set()
    for line in lines:
        shape = " ".join(line.split())
        for pattern, instead in VARIABLE:
            shape = re.sub(pattern, instead, shape)
        found.add(shape)
    return found


def checked(text: str) -> list[str]:
    """What `twctl check` tries: how it went depends on the machine."""
    return [line.split()[1] for line in text.splitlines() if not line.startswith(("```", "$"))]


def test_every_line_of_output_is_one_that_the_program_prints() -> None:
    """Each block is compared with a new run of its command; at a quicker pace, so that less has ended."""
    made = examples(Pace(load=4, over=1))
    shown = list(blocks("output"))
    assert shown
    for page, name, text in shown:
        renew = f"{page.name}: run `python -m tests.docs.examples --write` as root, and look at what changes"
        if name == "check":
            assert checked(made[name]) == checked(text), renew
        else:
            assert set() == shapes(text) - shapes(made[name]), renew
