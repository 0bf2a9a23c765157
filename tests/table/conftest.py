"""A table over memory of the test in the place of pinned maps."""

import mmap
import os
import sys
import time
from pathlib import Path

import pytest

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.maps import META, RING, Table
from twctl.table.pinned import Pinned

SIZES = {(class_, family): 256 + class_ * 10 + i for class_ in Class for i, family in enumerate(FAMILIES)}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """With rings of different sizes, and nothing in it."""
    memory: dict[str, mmap.mmap] = {}
    enrolled: dict[bytes, bytes] = {}

    def of_name(_self: Pinned, name: str, size: int) -> mmap.mmap:
        return memory.setdefault(name, mmap.mmap(-1, size))

    monkeypatch.setattr(Pinned, "map", of_name)
    monkeypatch.setattr(Pinned, "update", lambda _, _name, key, value: enrolled.update({key: value}))
    monkeypatch.setattr(Pinned, "fd", lambda *_: os.open(os.devnull, os.O_RDONLY))
    monkeypatch.setattr("twctl.linux.libbpf.map_delete", lambda _fd, key: enrolled.pop(key))
    (tmp_path / "maps").mkdir()
    rings = memory["rings"] = mmap.mmap(-1, RING.size * len(SIZES))
    for i, size in enumerate(SIZES.values()):
        rings[i * RING.size : (i + 1) * RING.size] = RING.pack(i, 0, size, 4, *range(32))
    memory["meta"] = mmap.mmap(-1, META.size)
    memory["meta"][META.slice("seed")] = (4711).to_bytes(8, sys.byteorder)
    made = Table(tmp_path, writable=True)
    made.swept(time.monotonic_ns())
    return made
