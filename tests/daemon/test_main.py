"""What a running daemon makes of its configuration when it is told to read it again; all else: tests/kernel."""

import logging
from pathlib import Path

import pytest

from twctl.daemon.main import read_again

PINS = Path("/sys/fs/bpf/twctl")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("capacity = 1021\n", ""),
        (f'pins = "{PINS}"\n', ""),
        ('pins = "/sys/fs/bpf/other"\n', "pins is /sys/fs/bpf/twctl until twctl is started anew"),
        ("capacity = 0\n", "capacity = 0 is not valid"),
    ],
)
def test_what_cannot_be_had_while_it_runs_leaves_all_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, said: str
) -> None:
    """One line says why. What is pinned at other pins would be left to nobody."""
    file = tmp_path / "twctl.toml"
    file.write_text(text)
    with caplog.at_level(logging.ERROR):
        found = read_again(file, {}, PINS)
    assert bool(said) == (found is None)
    assert [bool(said)] * len(caplog.records) == [said in record.getMessage() for record in caplog.records]
    assert bool(said) == bool(caplog.records)
