"""deploy/setup: asks the package manager of the system it stands on, for packages of that system's names."""

import os
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="another /etc/os-release needs root")

DEBIAN = ("ID=debian", "ID=ubuntu\nID_LIKE=debian", 'ID=linuxmint\nID_LIKE="ubuntu debian"')
FEDORA = (
    "ID=fedora",
    'ID="rhel"\nID_LIKE="fedora"',
    'ID="rocky"\nID_LIKE="rhel centos fedora"',
    'ID="amzn"\nID_LIKE="fedora"',
)


def setup(folder: Path, system: str, *words: str, installed: str = "", python: str = "") -> tuple[int, str, list[str]]:
    """Exit status and error of a set-up on a system of which these packages are installed; what was called there.

    python: what stands in place of the system's own, a script.
    """
    (folder / "os-release").write_text(system + "\n")
    calls = folder / "calls"
    calls.write_text("")
    has = f'case " {installed} " in *" $name "*)'
    stubs = {
        "apt-get": f'echo "apt-get $*" >>{calls}',
        "dnf": f'echo "dnf $*" >>{calls}; echo "$SAYS" >&2; [ -z "$SAYS" ]',
        "rpm": f"name=$2; {has} exit 0 ;; esac; exit 1",
        "dpkg-query": f"for name; do :; done; {has} printf installed ;; esac",
    }
    for name, script in stubs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    mount = f"mount --bind {folder}/os-release /etc/os-release"
    if python:
        (folder / "python").write_text(python)
        (folder / "python").chmod(0o755)
        mount += f" && mount --bind {folder}/python /usr/bin/python3"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", ROOT / "deploy/setup", *words],
        capture_output=True,
        text=True,
        check=False,
        env={"SAYS": "", **os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
    )
    return done.returncode, done.stderr, calls.read_text().splitlines()


@pytest.mark.parametrize("system", DEBIAN)
def test_debian_s_kin_is_asked_by_apt(system: str, tmp_path: Path) -> None:
    """For what is missing alone."""
    status, _, calls = setup(tmp_path, system, "--packages", installed="python3-venv")
    assert status == 0
    assert calls[0] == "apt-get -q update"
    assert calls[1].endswith(" python3-bpfcc linux-libc-dev")


@pytest.mark.parametrize("system", FEDORA)
def test_fedora_s_kin_is_asked_by_dnf(system: str, tmp_path: Path) -> None:
    """For packages of Fedora's names, and for nothing where all are there."""
    status, _, calls = setup(tmp_path, system, "--packages", installed="python3")
    assert (0, ["dnf -q -y --setopt=install_weak_deps=False install python3-bcc kernel-headers"]) == (status, calls)
    assert (0, "", []) == setup(tmp_path, system, "--packages", installed="python3 python3-bcc kernel-headers")


# As dnf 4 (RHEL, Fedora up to 40) and dnf 5 answer, and apt and pip.
ANSWERS = {
    "Last metadata expiration check: 0:25:40 ago.\nNo match for argument: one\nError: Unable to find a match: one": (
        "Error: Unable to find a match: one"
    ),
    "Updating and loading repositories:\nRepositories loaded.\nFailed to resolve the transaction:\n"
    "No match for argument: one\nYou can try to add to command line:\n"
    "  --skip-unavailable to skip unavailable packages": "No match for argument: one",
    "Failed to resolve the transaction:\nProblem: conflicting requests\n  - nothing provides two needed by one": (
        "Problem: conflicting requests"
    ),
    "Reading package lists...\nE: Unable to locate package one": "E: Unable to locate package one",
    "ERROR: No matching distribution for one\nWARNING: pip is old": "ERROR: No matching distribution for one",
    "curl: (6) Could not resolve host": "curl: (6) Could not resolve host",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_a_package_manager_says_is_the_reason(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that tells most, and what to do."""
    monkeypatch.setenv("SAYS", answer)
    status, told, _ = setup(tmp_path, "ID=fedora", "--packages", installed="python3")
    assert status == 1
    assert f"failed: {ANSWERS[answer]} (see that 'dnf makecache' works" in told.splitlines()[-1]


@pytest.mark.parametrize(
    ("system", "words", "said"),
    [
        ("ID=alpine", ("--packages",), "this is neither of Debian's kin nor of Fedora's (install "),
        ("ID=fedora", ("--test",), "--test knows the packages of Debian and Ubuntu only (run the tests there)"),
    ],
)
def test_what_is_unknown_is_refused(system: str, words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    """In one line, and nothing is called."""
    status, told, calls = setup(tmp_path, system, *words)
    assert (1, []) == (status, calls)
    assert told.startswith(f"deploy/setup: {said}")
    assert len(told.splitlines()) == 1


def test_an_option_that_is_unknown_is_wrong_usage(tmp_path: Path) -> None:
    """Nothing is installed for it; --help prints the same."""
    usage = "Usage: deploy/setup [--test|--bench|--packages]"
    for words in (("--tset",), ("--test", "--bench"), ("",)):
        status, told, calls = setup(tmp_path, "ID=debian", *words)
        assert (2, [], usage) == (status, calls, told.splitlines()[1])
    done = subprocess.run([ROOT / "deploy/setup", "--help"], capture_output=True, text=True, check=False)
    assert (0, "", usage) == (done.returncode, done.stderr, done.stdout.splitlines()[1])


def test_a_python_that_is_too_old_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    """Ubuntu 22.04's, for one: in one line that names what works there."""
    python = '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.12\n'
    status, told, calls = setup(tmp_path, "ID=ubuntu\nID_LIKE=debian", python=python)
    assert (1, []) == (status, calls)
    (line,) = told.splitlines()
    assert line.startswith(
        "deploy/setup: Python 3.10.12 is too old: twctl needs 3.11 (run the image, deploy/container/README.md;"
    )
