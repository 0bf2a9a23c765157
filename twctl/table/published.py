"""What the running daemon tells the commands of its configuration, in a pinned map that only user space uses."""

import contextlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twctl.errors import TwctlError
from twctl.table.maps import Table
from twctl.table.pinned import store
from twctl.table.shared import STRUCTS

SETTINGS_BYTES = STRUCTS["settings"].size
_FIELDS = STRUCTS["settings"].fields
_BEGIN, _ROOM = _FIELDS["json"].offset, _FIELDS["json"].size
_SEQUENCE, _LENGTH = _FIELDS["sequence"].offset, _FIELDS["length"].offset
_NUMBER = struct.Struct("=Q")
# A reader that meets the daemon writing looks again so often; the daemon writes for microseconds, once in its life.
TRIES = 100


def publish(table: Table, settings: Mapping[str, object]) -> None:
    """Tell what is in force. table: opened writable. settings: plain values, as JSON takes them.

    :raises TwctlError: if they are longer than the map.
    """
    text = json.dumps(settings, separators=(",", ":")).encode()
    if len(text) > _ROOM:
        message = f"the configuration takes {len(text)} bytes where {_FIELDS['json'].size} have room"
        raise TwctlError(message, "give fewer prefixes in [classes] or fewer names in netns")
    memory = table.map("settings", SETTINGS_BYTES)
    writing = _NUMBER.unpack_from(memory, _SEQUENCE)[0] | 1  # also where a daemon was killed as it wrote
    store(memory, _SEQUENCE, "Q", writing)
    memory[_BEGIN : _BEGIN + len(text)] = text
    store(memory, _LENGTH, "Q", len(text))
    store(memory, _SEQUENCE, "Q", writing + 1)


def known_as(pins: Path) -> set[str]:
    """Names of the folder of the pins: its path here and, where that is another one, the path that a daemon had for it.

    In a container it is another than on the host. Filters and journals are named after it.
    """
    with contextlib.suppress(TwctlError, OSError, ValueError, KeyError, IndexError):
        if told := published(Table(pins / "current")):
            return {str(pins), str(told["pins"][0])}
    return {str(pins)}


def published(table: Table) -> dict[str, Any] | None:
    """What a daemon has told; None: nothing, or it was killed as it wrote."""
    memory = table.map("settings", SETTINGS_BYTES)
    for _ in range(TRIES):
        before = _NUMBER.unpack_from(memory, _SEQUENCE)[0]
        length = _NUMBER.unpack_from(memory, _LENGTH)[0]
        text = memory[_BEGIN : _BEGIN + length]
        if not before % 2 and before == _NUMBER.unpack_from(memory, _SEQUENCE)[0]:
            return dict(json.loads(text)) if length else None
    return None
