"""What is asked of the loader's process, and what becomes of its answers, without loading anything."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from twctl.classes import Class
from twctl.errors import TwctlError
from twctl.table import loader
from twctl.table.loader import Loaded, Request

SIZES = {"loopback": 256, "local": 257, "remote": 258}
REQUEST = Request("/pins", {"ipv4": SIZES, "ipv6": SIZES}, "auto")


def answering(monkeypatch: pytest.MonkeyPatch, stdout: str, stderr: str = "", status: int = 0) -> list[dict[str, Any]]:
    """Have the loader's process print this; what it is asked goes into the list."""
    asked = []

    def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":  # noqa: ANN401 - of subprocess
        asked.append(json.loads(options["input"]))
        return subprocess.CompletedProcess(command, status, stdout, stderr)

    monkeypatch.setattr("subprocess.run", run)
    return asked


def test_a_request_is_what_the_layout_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that gets it finds the same sizes; its answer says which probe runs."""
    asked = answering(monkeypatch, 'noise\n{"probe": "tracepoint", "refused": "why"}\n')
    assert Loaded("tracepoint", "why") == loader.load(REQUEST)
    assert Request(**asked[0]).layout.capacity["ipv6"] == {Class.LOOPBACK: 256, Class.LOCAL: 257, Class.REMOTE: 258}


def test_the_loader_s_error_keeps_its_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit status 1 and an object that says so."""
    answering(monkeypatch, '{"error": "no", "hint": "do"}', status=1)
    with pytest.raises(TwctlError, match="no") as refused:
        loader.load_guard(Path("/table"))
    assert refused.value.hint == "do"


@pytest.mark.parametrize(("stderr", "expected"), [("a\nkilled\n", "killed"), ("", "exit status -9")])
def test_a_loader_that_dies_is_an_error_with_its_last_line(
    monkeypatch: pytest.MonkeyPatch, stderr: str, expected: str
) -> None:
    """Or its status, where it said nothing."""
    answering(monkeypatch, "", stderr, -9)
    with pytest.raises(TwctlError, match=expected):
        loader.load(REQUEST)


def test_nothing_but_the_loader_s_process_imports_the_compiler() -> None:
    """Bcc brings LLVM along, 70 MB that are not shared: importing the module is not enough."""
    program = "import sys, twctl.table.loader, twctl.daemon.main; print('bcc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
