"""Settings of any program, with a table of keys of a test's own."""

from pathlib import Path

import pytest

from twctl.config.settings import DEFAULT, Key, number, plain, read_toml, settle
from twctl.errors import TwctlError

KEYS = {
    "size": Key(3, number((1, 9)), "1 to 9"),
    "pool.near": Key(1, number((1, 9)), "1 to 9", shared=True),
    "pool.far": Key(2, number((1, 9)), "1 to 9", shared=True),
}


def test_a_later_layer_wins() -> None:
    """And each value knows where it is from."""
    settings = settle(KEYS, [("file", {"size": 4, "pool": {"far": 5}}), ("command line", {"size": 7})])
    assert {"size": (7, "command line"), "pool.near": (1, DEFAULT), "pool.far": (5, "file")} == {
        name: (setting.value, setting.source) for name, setting in settings.items()
    }


def test_one_value_may_stand_for_a_shared_table() -> None:
    """For each of its keys."""
    settings = settle(KEYS, [("file", {"pool": 8})])
    assert [8, 8] == [settings[name].value for name in ("pool.near", "pool.far")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"sise": 4}, "did you mean size"), ({"size": 10}, "allowed: 1 to 9"), ({"size": {"x": 1}}, "size")],
)
def test_what_is_wrong_is_named_with_what_is_allowed(given: dict[str, object], expected: str) -> None:
    """Layer, key and values."""
    with pytest.raises(TwctlError) as refused:
        settle(KEYS, [("/etc/x.toml", given)])
    assert str(refused.value).startswith("/etc/x.toml")
    assert expected in str(refused.value)


def test_a_file_that_is_no_toml_is_one_line(tmp_path: Path) -> None:
    """With the place."""
    file = tmp_path / "x.toml"
    file.write_text("size = = 4")
    with pytest.raises(TwctlError, match="not TOML"):
        read_toml(file)


def test_plain_values_are_those_of_json() -> None:
    """Paths and tuples become text and lists."""
    assert [None, 3, "/etc", ["a"]] == [plain(value) for value in (None, 3, Path("/etc"), ("a",))]
