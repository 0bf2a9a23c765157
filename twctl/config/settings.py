"""Settings of any program: a table of keys, filled from layers (defaults, a TOML file, the command line).

Knows nothing of what the keys mean; that is config.py. Every refusal names the layer, the key and what is allowed.
"""

import difflib
import enum
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twctl.errors import TwctlError, UsageError

DEFAULT, COMMAND_LINE = "default", "command line"  # layers
_SHOWN = 100  # characters of a key, value or reason, so that a message stays one readable line


@dataclass(frozen=True)
class Key:
    """What may be set.

    default: as in a file, None: unset. parse: gives the value, raises ValueError with a reason or without.
    allowed: str, shown where a value is refused. shared: one value may stand for the whole table of this key.
    """

    default: object
    parse: Callable[[object], object]
    allowed: str
    shared: bool = False


@dataclass(frozen=True)
class Setting:
    """A value as its key's `parse` gave it (None: unset) and where it is from (str): "default" or a layer's name."""

    value: Any
    source: str


def read_toml(file: Path) -> dict[str, object]:
    """The tables of a TOML file. Raises TwctlError where it cannot be read or is not TOML."""
    try:
        if not (file.is_file() or file.is_dir() or file.samefile(os.devnull)):  # a pipe would be waited for
            raise TwctlError(f"{file}: cannot be read: it is no regular file", "give a TOML file")
        return tomllib.loads(file.read_bytes().decode())
    except PermissionError as error:
        raise TwctlError(f"{file}: cannot be read: {error.strerror}", "give one that you can read") from None
    except OSError as error:
        raise TwctlError(f"{file}: cannot be read: {error.strerror}", "give a TOML file that exists") from None
    # ValueError: also text that is not UTF-8 and numbers of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise TwctlError(f"{file}: not TOML: {_short(str(error))}", "correct the file, see https://toml.io") from None


def settle(keys: Mapping[str, Key], layers: Sequence[tuple[str, Mapping[str, object]]]) -> dict[str, Setting]:
    """Every key with its value and source; a later layer (name, nested tables) wins.

    keys: by dotted name. Raises TwctlError for unknown keys and refused values.
    """
    settled = {
        name: Setting(None if key.default is None else key.parse(key.default), DEFAULT) for name, key in keys.items()
    }
    for source, tables in layers:
        for written, value in _written(keys, source, tables):
            for name in _meant(keys, written):
                settled[name] = Setting(_parse(keys[name], source, written, value), source)
    return settled


def refusal(source: str, name: str, value: object, hint: str) -> TwctlError:
    """The error for a value that cannot be. source: layer; name: dotted key; hint: what may be."""
    kind = UsageError if source == COMMAND_LINE else TwctlError
    return kind(f"{source}: {_short(name)} = {_shown(value)} is not valid", hint)


def plain(value: object) -> object:
    """A setting's value in types that JSON has: None, int, float, str or a list of str."""
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return value if value is None or isinstance(value, int | float) else str(value)


def number(*ranges: tuple[float, float]) -> Callable[[object], float]:
    """Takes int and float inside one of the ranges (both ends included)."""

    def parse(value: object) -> float:
        # bool is an int in Python, not in TOML; NaN is in no range.
        match value:
            case bool():
                raise ValueError
            case int() | float() if any(low <= value <= high for low, high in ranges):
                return float(value)
            case _:
                raise ValueError

    return parse


def choice(kind: type[enum.StrEnum]) -> Callable[[object], enum.StrEnum]:
    """Takes the values of an enumeration."""

    def parse(value: object) -> enum.StrEnum:
        if value not in list(kind):
            raise ValueError
        return kind(text(value))

    return parse


def list_of(parse: Callable[[object], object]) -> Callable[[object], tuple[object, ...]]:
    """Takes lists of what `parse` takes. A value twice is the same value: its first place counts."""

    def parse_all(value: object) -> tuple[object, ...]:
        match value:
            case [*items]:
                return tuple(dict.fromkeys(parse(item) for item in items))
            case _:
                raise ValueError

    return parse_all


def text(value: object) -> str:
    """Takes str without control characters."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError
    return value


def absolute_path(value: object) -> Path:
    """Takes absolute paths: a daemon's working directory means nothing to whoever wrote the file."""
    if not text(value).startswith("/"):
        raise ValueError
    return Path(text(value))


def _written(
    keys: Mapping[str, Key], source: str, table: Mapping[str, object], outer: str = ""
) -> Iterator[tuple[str, object]]:
    """Dotted names as they stand in a layer, with their values: whole tables only where one value stands for all."""
    for part, value in table.items():
        # A quoted part stays quoted, so that "a.b" is not taken for a key b in table a.
        name = outer + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part))
        inner = _meant(keys, name)
        if not inner:
            raise _unknown(keys, source, name, outer)
        if name in keys or (not isinstance(value, dict) and keys[inner[0]].shared):
            yield name, value
        elif isinstance(value, dict):
            yield from _written(keys, source, value, f"{name}.")
        else:
            raise refusal(source, name, value, f"allowed: a table of {_parts(keys, f'{name}.')}")


def _meant(keys: Mapping[str, Key], written: str) -> list[str]:
    return [name for name in keys if name == written or name.startswith(f"{written}.")]


def _parts(keys: Mapping[str, Key], outer: str) -> str:
    inside = (name.removeprefix(outer).partition(".")[0] for name in keys if name.startswith(outer))
    return ", ".join(dict.fromkeys(inside))


def _unknown(keys: Mapping[str, Key], source: str, name: str, outer: str) -> TwctlError:
    similar = difflib.get_close_matches(_short(name), keys, n=1)
    guess = f"did you mean {similar[0]}? " if similar else ""
    return TwctlError(f"{source}: unknown key {_short(name)}", f"{guess}allowed: {_parts(keys, outer)}")


def _parse(key: Key, source: str, name: str, value: object) -> object:
    try:
        return key.parse(value)
    except ValueError as error:
        reason = f"{_short(str(error))}; " if str(error) else ""
        raise refusal(source, name, value, f"{reason}allowed: {key.allowed}") from None


def _shown(value: object) -> str:
    try:
        return _short(json.dumps(plain(value) if isinstance(value, Path) else value, default=str))
    # Numbers of thousands of digits, tables thousands deep.
    except (ValueError, RecursionError):
        return "a value too large to show"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
