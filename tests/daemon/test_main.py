"""What a running daemon makes of its configuration when it is told to read it again; all else: tests/kernel."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from twctl.daemon.main import read_again
from twctl.linux import capabilities

PINS = Path("/sys/fs/bpf/twctl")


@pytest.fixture
def ours() -> Iterator[int]:
    """A port that is listened on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("capacity = 1021\n", ""),
        (f'pins = "{PINS}"\n', ""),
        ('pins = "/sys/fs/bpf/other"\n', "pins is /sys/fs/bpf/twctl until twctl is started anew"),
        ("capacity = 0\n", "capacity = 0 is not valid"),
        ('listen = "127.0.0.1:BUSY"\n', "Address already in use"),
        ('listen = "127.0.0.1:OURS"\n', ""),
        ('listen = "192.0.2.1:9815"\n', "Cannot assign requested address"),
        ('listen = "192.0.2.1:OURS"\n', "Cannot assign requested address"),
        ('[tls]\ncertfile = "/none/cert"\nkeyfile = "/none/key"\n', "/none/cert: No such file or directory"),
        ('netns = ["twctl-nope"]\n', "cannot enter network namespace twctl-nope"),
    ],
)
def test_what_cannot_be_had_while_it_runs_leaves_all_as_it_was(  # noqa: PLR0913, PLR0917 - fixtures, and a row
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, ours: int, text: str, said: str
) -> None:
    """One line says why. What is pinned at other pins would be left to nobody."""
    monkeypatch.setattr(capabilities, "permitted", lambda _: True)
    file = tmp_path / "twctl.toml"
    with socket.create_server(("127.0.0.1", 0)) as busy, caplog.at_level(logging.ERROR):
        file.write_text(text.replace("BUSY", str(busy.getsockname()[1])).replace("OURS", str(ours)))
        found = read_again(file, {"listen": None if "listen" in text else "127.0.0.1:0"}, PINS, ours)
    assert bool(said) == (found is None)
    assert [bool(said)] * len(caplog.records) == [said in record.getMessage() for record in caplog.records]
    assert bool(said) == bool(caplog.records)
