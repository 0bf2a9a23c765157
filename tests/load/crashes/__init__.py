"""Programs that are killed at one of their calls that change the host: sitecustomize.py has how."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Crashes:
    """What programs that are started with `prefix` change, and where they die. folder: for the files they share."""

    folder: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words before a command. It gets a process group of its own, which dies as a whole."""
        here = Path(__file__).parent
        return ("env", f"PYTHONPATH={here}", f"TWCTL_TEST_CRASHES={self.folder}", "setsid")

    def begin(self, kill: int | str | None = None) -> None:
        """Count from here on. kill: the number of the change at which to die, or a part of what it says."""
        (self.folder / "changes").write_text("")
        if kill is None:
            (self.folder / "kill").unlink(missing_ok=True)
        else:
            (self.folder / "kill").write_text(str(kill))

    def changes(self) -> list[str]:
        """What was changed since; the last one was not, if that was the end."""
        return (self.folder / "changes").read_text().splitlines()
