"""Which clsact qdiscs the guard made, in a file that survives a crash: only those are taken away again."""

import json
from collections.abc import Sequence
from pathlib import Path

from twctl.linux.sysctl import FOLDER


class Qdiscs:
    """Cookie of the namespace and number of the interface of each. pins: the folder of all tables."""

    def __init__(self, pins: Path) -> None:
        self._path = FOLDER / f"{pins.name}.qdiscs.json"

    def _load(self) -> list[list[int]]:
        return list(json.loads(self._path.read_text())) if self._path.exists() else []

    def made(self, cookie: int, device: int) -> bool:
        """Whether the guard made the qdisc of this interface."""
        return [cookie, device] in self._load()

    def note(self, cookie: int, device: int) -> None:
        """Remember one."""
        if not self.made(cookie, device):
            self._save([*self._load(), [cookie, device]])

    def forget(self, cookie: int) -> None:
        """Forget those of a namespace."""
        self._save([each for each in self._load() if each[0] != cookie])

    def _save(self, made: Sequence[Sequence[int]]) -> None:
        if not made:
            self._path.unlink(missing_ok=True)
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(made))
        part.replace(self._path)
