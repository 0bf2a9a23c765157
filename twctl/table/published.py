"""What the running daemon tells the commands of its configuration, in a pinned map that only user space uses."""

import json
import struct
from collections.abc import Mapping
from typing import Any

from twctl.errors import TwctlError
from twctl.table.maps import Table

SETTINGS_BYTES = 65536  # struct settings (bpf/vestige.h)
_SEQUENCE, _LENGTH = struct.Struct("=Q"), struct.Struct("=Q")
_JSON = _SEQUENCE.size + _LENGTH.size  # where the text begins
# A reader that meets the daemon writing looks again so often; the daemon writes for microseconds, once in its life.
TRIES = 100


def publish(table: Table, settings: Mapping[str, object]) -> None:
    """Tell what is in force. table: opened writable. settings: plain values, as JSON takes them.

    :raises TwctlError: if they are longer than the map.
    """
    text = json.dumps(settings, separators=(",", ":")).encode()
    if len(text) > SETTINGS_BYTES - _JSON:
        message = f"the configuration takes {len(text)} bytes where {SETTINGS_BYTES - _JSON} have room"
        raise TwctlError(message, "give fewer prefixes in [classes] or fewer names in netns")
    memory = table.map("settings", SETTINGS_BYTES)
    writing = _SEQUENCE.unpack_from(memory)[0] | 1  # also where a daemon was killed as it wrote
    _SEQUENCE.pack_into(memory, 0, writing)
    memory[_JSON : _JSON + len(text)] = text
    _LENGTH.pack_into(memory, _SEQUENCE.size, len(text))
    _SEQUENCE.pack_into(memory, 0, writing + 1)


def published(table: Table) -> dict[str, Any] | None:
    """What a daemon has told; None: nothing, or it was killed as it wrote."""
    memory = table.map("settings", SETTINGS_BYTES)
    for _ in range(TRIES):
        before = _SEQUENCE.unpack_from(memory)[0]
        length = _LENGTH.unpack_from(memory, _SEQUENCE.size)[0]
        text = memory[_JSON : _JSON + length]
        if not before % 2 and before == _SEQUENCE.unpack_from(memory)[0]:
            return dict(json.loads(text)) if length else None
    return None
