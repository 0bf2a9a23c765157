"""The command line itself: names of commands, exit statuses, and what is loaded for a command that needs little."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import ROOT
from twctl import __version__
from twctl.commands.cli import app

NOUNS = ("status", "table", "top", "blame", "events", "advise", "classify", "check", "config")
VERBS = ("run", "drain", "release")


def call(*words: str) -> tuple[int, str]:
    """Exit status, and what is printed."""
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output


def test_every_command_has_help() -> None:
    """With a line for each option; -h is the same."""
    for name in (*NOUNS, *VERBS):
        status, text = call(name, "--help")
        assert 0 == status
        assert "--config" in text
        assert (0, text) == call(name, "-h")
    assert call("--help") == call("-h")


def test_the_list_of_commands_is_nouns_and_verbs() -> None:
    """And no other."""
    assert {*NOUNS, *VERBS} == {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]


def test_the_version_is_the_package_s() -> None:
    """One line."""
    assert (0, f"twctl {__version__}\n") == call("--version")


@pytest.mark.parametrize(
    "words",
    [
        ("nothing",),
        ("table", "--class", "near"),
        ("table", "--family", "ipv5"),
        ("table", "--family", ""),
        ("table", "--remote", "10.0.0.1/8"),
        ("table", "--local-port", "0"),
        ("drain",),
        ("drain", "--dry-run"),
        ("drain", "--all", "--local-port", "80"),
        ("drain", "--class", "near"),
        ("drain", "--older-than", "-1"),
        ("drain", "--older-than", "inf"),
        ("drain", "--remote", "nowhere"),
        ("classify",),
        ("classify", "nowhere"),
        ("classify", "fe80::1%eth0"),
        ("top", "--interval", "0"),
        ("top", "--sort", "size"),
    ],
)
def test_wrong_usage_is_2(words: tuple[str, ...]) -> None:
    """With a line that says which word."""
    status, text = call(*words)
    assert 2 == status
    assert "Traceback" not in text


@pytest.mark.parametrize("words", [[sys.executable, "-m", "twctl"], [str(Path(sys.executable).with_name("twctl"))]])
def test_a_shell_can_be_taught_to_complete(words: list[str], tmp_path: Path) -> None:
    """However twctl was called, what is installed completes the command twctl."""
    environment = os.environ | {"HOME": str(tmp_path), "SHELL": "/bin/bash"}
    script = f"{shlex.join([*words, '--install-completion'])} && true"
    subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True, cwd=ROOT)
    assert "_twctl_completion twctl" in (tmp_path / ".bash_completions/twctl.sh").read_text()
    typed = {"_TWCTL_COMPLETE": "complete_bash", "COMP_WORDS": "twctl sta", "COMP_CWORD": "1"}
    done = subprocess.run(words, env=environment | typed, capture_output=True, text=True, check=False, cwd=ROOT)
    assert ["status"] == done.stdout.split()


def test_to_drain_all_has_to_be_said() -> None:
    """And the line says how."""
    assert "give either --all or filters" in call("drain")[1]


def test_a_noun_loads_neither_the_metrics_library_nor_the_routes() -> None:
    """Each is megabytes and milliseconds that most commands do not need."""
    heavy = {"prometheus_client", "pyroute2", "rich", "bcc"}
    program = f"import sys, twctl.commands.cli; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "[]\n" == done.stdout
