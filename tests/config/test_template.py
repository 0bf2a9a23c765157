"""The configuration file to begin with cannot drift from the configuration."""

import re
import tomllib
from pathlib import Path

from typer.testing import CliRunner

from twctl.commands.cli import app
from twctl.config.config import load
from twctl.config.keys import KEYS
from twctl.config.settings import DEFAULT
from twctl.config.template import ABOUT, EXAMPLES, template


def uncommented() -> str:
    """The file with every key in force."""
    return re.sub(r"^#(?=[a-z0-9_]+ = )", "", template(KEYS), flags=re.MULTILINE)


def leaves(table: dict[str, object], outer: str = "") -> dict[str, object]:
    """Dotted names and values."""
    found: dict[str, object] = {}
    for name, value in table.items():
        found |= leaves(value, f"{outer}{name}.") if isinstance(value, dict) else {f"{outer}{name}": value}
    return found


def test_as_it_is_it_changes_nothing(tmp_path: Path) -> None:
    """Every key comes from the defaults."""
    file = tmp_path / "twctl.toml"
    file.write_text(template(KEYS))
    assert {DEFAULT} == {source for _, _, source in load(file, {}).rows()}


def test_it_has_every_key_with_its_default_and_nothing_else() -> None:
    """Uncommented it is TOML that has all keys; those without a default have an example that is allowed."""
    values = leaves(tomllib.loads(uncommented()))
    assert list(KEYS) == list(values)
    assert {name: key.default for name, key in KEYS.items() if key.default is not None} == {
        name: value for name, value in values.items() if name not in EXAMPLES
    }
    assert all(KEYS[name].parse(value) for name, value in EXAMPLES.items())
    assert {name for name, key in KEYS.items() if key.default is None} == EXAMPLES.keys()


def test_nothing_is_explained_that_does_not_exist() -> None:
    """Each explanation belongs to a key of the top or to a table."""
    assert {outer or name for name in KEYS for outer in (name.rpartition(".")[0],)} == ABOUT.keys()


def test_the_command_prints_it() -> None:
    """`twctl config --template`, without a file being read."""
    done = CliRunner().invoke(app, ["config", "--template", "--config", "/nonexistent"])
    assert (0, template(KEYS)) == (done.exit_code, done.stdout)
