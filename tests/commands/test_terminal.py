"""`twctl top` where there is no terminal, and what counts as one."""

import sys
from typing import cast

import pytest

from twctl.commands import terminal
from twctl.commands.screen import Choice
from twctl.commands.top import TableView, View


class FakeView:
    """A pinned table that is gone, looked at again and again."""

    def __init__(self) -> None:
        self.looks = 0

    def view(self, _interval: float) -> View:
        """Nothing but why there is nothing."""
        self.looks += 1
        return View(0.0, f"no table, look {self.looks}")


def test_plain_text_is_a_block_each_interval(capsys: pytest.CaptureFixture[str]) -> None:
    """The first look is not shown: without an earlier one there are no rates."""
    view = FakeView()
    terminal.plain(cast("TableView", view), Choice(), 0.0, 3)
    shown = [line for line in capsys.readouterr().out.splitlines() if "look" in line]
    assert shown == ["no table, look 2", "no table, look 3", "no table, look 4"]


@pytest.mark.parametrize(("name", "expected"), [("xterm", True), ("dumb", False), ("", False), (None, False)])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_text(
    monkeypatch: pytest.MonkeyPatch, name: str | None, *, expected: bool
) -> None:
    """TERM says what it can do."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("TERM", raising=False)
    if name is not None:
        monkeypatch.setenv("TERM", name)
    assert expected == terminal.is_terminal()


def test_what_goes_into_a_file_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever TERM says."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    monkeypatch.setenv("TERM", "xterm")
    assert not terminal.is_terminal()
