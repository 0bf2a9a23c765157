"""The way in and out of the command line: Ctrl-C at any moment, and output that cannot be written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from twctl.commands.main import main

# Sends itself SIGINT as soon as a module is imported.
INTERRUPTS = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["TWCTL_TEST_MODULE"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
CLOSED, FULL = "", "/dev/full"


def test_an_option_with_a_value_that_its_key_cannot_have_is_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line that says what is allowed; in a file it would be 1."""
    monkeypatch.setattr(sys, "argv", ["twctl", "config", "--pins", "here"])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr().err
    assert (2, 'twctl: command line: pins = "here" is not valid (allowed: an absolute path)\n') == (
        end.value.code,
        told,
    )


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("typer", ["-h"]),
        ("twctl.commands.cli", ["run"]),
        ("twctl.commands.reach", ["status"]),
        ("twctl.commands.classify", ["classify", "192.0.2.1"]),
        ("pyroute2", ["classify", "192.0.2.1"]),
    ],
)
def test_ctrl_c_while_it_loads_ends_it_without_a_traceback(tmp_path: Path, module: str, words: list[str]) -> None:
    """To a shell the status is 130."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "TWCTL_TEST_MODULE": module}
    command = [sys.executable, "-m", "twctl", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in {-signal.SIGINT, 128 + signal.SIGINT}
    assert "" == done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("output", "reason"), [(CLOSED, "Bad file descriptor"), (FULL, "No space left on device")])
@pytest.mark.parametrize("words", [["-h"], ["top", "-h"], ["--version"], ["config"], ["config", "--template"]])
def test_output_that_cannot_be_written_is_one_line(words: list[str], output: str, reason: str, unbuffered: str) -> None:
    """And exit status 1."""
    script = f'exec "$@" >{output or "&-"}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-m", "twctl", *words],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        check=False,
    )
    line = f"twctl: cannot write the output: {reason} (see where standard output leads)\n"
    assert (1, line) == (done.returncode, done.stderr)


@pytest.mark.parametrize("words", [["config", "--pins", "here"], ["no-such-command"], []])
def test_an_error_that_nobody_is_to_hear_is_no_output(words: list[str]) -> None:
    """With standard error closed the exit status says it; standard output is for what was asked."""
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "twctl", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (2, "", "") == (done.returncode, done.stdout, done.stderr)


def test_completion_that_cannot_be_installed_is_one_line(tmp_path: Path) -> None:
    """Where HOME is no folder."""
    (tmp_path / "home").touch()
    environment = os.environ | {"HOME": str(tmp_path / "home"), "SHELL": "/bin/bash"}
    script = f"{sys.executable} -m twctl --install-completion && true"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert 1 == done.returncode
    assert done.stderr.startswith("twctl: cannot install the completion: ")
    assert 1 == len(done.stderr.splitlines())
