"""Where `twctl top` is shown: a terminal that is as before when it ends, or plain text."""

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

from rich.console import Console
from rich.text import Text

from twctl.commands.screen import Choice, Line, block, screen
from twctl.commands.top import TableView, View

FALLBACK = os.terminal_size((80, 24))
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
SIGNALS = (*ENDS, signal.SIGTSTP, signal.SIGWINCH)


def is_terminal() -> bool:
    """Whether standard output can show a screen."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in {"", "dumb", "unknown"}


def plain(table: TableView, choice: Choice, interval: float, count: int | None) -> None:
    """Print a block of lines each interval, the first after one, so that there are rates."""
    size = os.get_terminal_size(sys.stdout.fileno()) if sys.stdout.isatty() else FALLBACK
    with contextlib.suppress(KeyboardInterrupt):
        table.view(interval)
        for _ in _ticks(interval, count):
            sys.stdout.write(block(table.view(interval), choice, size.columns or FALLBACK.columns))
            sys.stdout.flush()


def _ticks(interval: float, count: int | None) -> Iterator[None]:
    """Yield after each interval."""
    due = time.monotonic()
    for _ in iter(int, 1) if count is None else range(count):
        due = max(due + interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        yield


class Terminal:
    """The alternate screen, keys as they are pressed, and signals as if they were keys; on leaving all is as before."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._keys = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._kept: list[Any] | None = None

    def __enter__(self) -> Self:
        self._signals, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake_before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._handlers = {each: signal.signal(each, _noted) for each in SIGNALS}
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        for each, handler in self._handlers.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(self._wake_before)
        os.close(self._signals)
        os.close(self._wake)

    def _open(self) -> None:
        if self._keys is not None:
            self._kept = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._console.set_alt_screen(enable=True)
        self._console.show_cursor(show=False)

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone needs nothing
            self._console.show_cursor(show=True)
            self._console.set_alt_screen(enable=False)
        with contextlib.suppress(OSError, termios.error):
            if self._keys is not None and self._kept:
                termios.tcsetattr(self._keys, termios.TCSADRAIN, self._kept)

    def suspend(self) -> None:
        """Stop as Ctrl-Z asks, with the terminal as it was before; return when told to go on."""
        self._close()
        signal.raise_signal(signal.SIGSTOP)
        self._open()

    def draw(self, view: View, choice: Choice) -> None:
        """Show a view."""
        size = os.get_terminal_size(sys.stdout.fileno())
        columns, rows = size if all(size) else FALLBACK
        self._console.size = (columns, rows)  # else it asks the environment first, which does not know of a resize
        text = Text("\n", no_wrap=True, overflow="crop", end="").join(
            _text(line) for line in screen(view, choice, columns, rows)
        )
        self._console.update_screen(text)

    def ready(self) -> bool:
        """Whether there is a key or a signal."""
        return bool(self._select(0))

    def _select(self, timeout: float | None) -> list[int]:
        return select.select([fd for fd in (self._signals, self._keys) if fd is not None], [], [], timeout)[0]

    def events(self, timeout: float | None) -> list[str | signal.Signals]:
        """Keys and signals, as soon as there are some; none after `timeout` seconds."""
        events: list[str | signal.Signals] = []
        for fd in self._select(timeout):
            with contextlib.suppress(BlockingIOError):
                found = os.read(fd, 64)
                if fd == self._signals:
                    events += map(signal.Signals, found)
                elif not found:
                    self._keys = None  # end of file: there will be no keys
                elif not found.startswith(b"\x1b"):  # arrows and the like
                    events += found.decode(errors="replace")
        return events


def _noted(_signal: int, _frame: FrameType | None) -> None:
    """Do nothing: the number goes to the pipe of set_wakeup_fd."""


def _text(line: Line) -> Text:
    return Text.assemble(*line, no_wrap=True, overflow="crop")


def live(table: TableView, choice: Choice, interval: float, count: int | None) -> None:
    """Show a screen each interval, until a key or a signal says that it is enough."""
    with Terminal() as terminal:
        for _ in iter(int, 1) if count is None else range(count):
            due = time.monotonic() + interval
            view = table.view(interval, terminal.ready)
            chosen = _shown(terminal, view, choice, due)
            if chosen is None:
                return
            choice = chosen


def _shown(terminal: Terminal, view: View, choice: Choice, due: float) -> Choice | None:
    """Show a view until it is due to be replaced, as keys change what is chosen; None: the user has seen enough."""
    terminal.draw(view, choice)
    while (left := due - time.monotonic()) > 0 or choice.paused:
        events = terminal.events(None if choice.paused else left)
        for event in events:
            if event in {"q", *ENDS}:
                return None
            if event is signal.SIGTSTP:
                terminal.suspend()
            elif isinstance(event, str):
                choice = choice.after(event)
        if events:
            terminal.draw(view, choice)
    return choice
