"""The journal of changed sysctls as a file: JSON, a record for each, written whole or not at all."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twctl.errors import TwctlError


@dataclasses.dataclass(frozen=True)
class Entry:
    """One sysctl that was changed; a record of the journal.

    namespace: its name. before: what it was. written: all that we have written since, the last last: after a crash any
    of them may stand there.
    """

    namespace: str | None
    cookie: int
    name: str
    before: int
    written: tuple[int, ...]


def read(path: Path) -> list[Entry]:
    """All records, in the order in which the sysctls were set. Raises FileNotFoundError.

    :raises TwctlError: if it was not written by us.
    """
    try:
        return [_entry(**each) for each in json.loads(path.read_text())]
    except (ValueError, TypeError) as error:
        hint = "put sysctls back by hand as docs/troubleshooting.md says, then remove it"
        raise TwctlError(f"the journal of changed sysctls, {path}, is damaged", hint) from error


def write(path: Path, entries: Sequence[Entry]) -> None:
    """Take the place of what is there. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = part_of(path)
    with part.open("w") as file:
        json.dump([dataclasses.asdict(each) for each in entries], file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def part_of(path: Path) -> Path:
    """What is written before it takes the place of the journal; a crash may leave it."""
    return path.with_suffix(".part")


def _entry(written: int | Sequence[int], **others: Any) -> Entry:  # noqa: ANN401 - the fields of Entry
    """One that an earlier version wrote has one number for what was written."""
    return Entry(written=(written,) if isinstance(written, int) else tuple(written), **others)
