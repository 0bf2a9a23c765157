"""Settings of any program, with a table of keys of a test's own."""

import errno
import os
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


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Nor is a device read, but for /dev/null, which is an empty file to who gives it."""
    os.mkfifo(tmp_path / "fifo")
    for file in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(TwctlError, match="it is no regular file"):
            read_toml(file)
    assert {} == read_toml(Path("/dev/null"))


def test_the_hint_says_why_a_file_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there, and one that is not."""
    with pytest.raises(TwctlError, match=r"No such file or directory \(give a TOML file that exists\)"):
        read_toml(tmp_path / "none")

    def read_bytes(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "others").touch()
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(TwctlError, match=r"Permission denied \(give one that you can read\)"):
        read_toml(tmp_path / "others")


def test_plain_values_are_those_of_json() -> None:
    """Paths and tuples become text and lists."""
    assert [None, 3, "/etc", ["a"]] == [plain(value) for value in (None, 3, Path("/etc"), ("a",))]
