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


def setup(folder: Path, system: str, *words: str, installed: str = "") -> tuple[int, str, list[str]]:
    """Exit status and error of a set-up on a system of which these packages are installed; what was called there."""
    (folder / "os-release").write_text(system + "\n")
    calls = folder / "calls"
    calls.write_text("")
    has = f'case " {installed} " in *" $name "*)'
    stubs = {
        "apt-get": f'echo "apt-get $*" >>{calls}',
        "dnf": f'echo "dnf $*" >>{calls}; echo "Error: Unable to find a match: $FAILS" >&2; [ -z "$FAILS" ]',
        "rpm": f"name=$2; {has} exit 0 ;; esac; exit 1",
        "dpkg-query": f"for name; do :; done; {has} printf installed ;; esac",
    }
    for name, script in stubs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    mount = f'mount --bind {folder}/os-release /etc/os-release && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", ROOT / "deploy/setup", *words],
        capture_output=True,
        text=True,
        check=False,
        env={"FAILS": "", **os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
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


def test_what_dnf_says_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last error, and what to do."""
    monkeypatch.setenv("FAILS", "python3-bcc")
    status, told, _ = setup(tmp_path, "ID=fedora", "--packages", installed="python3")
    assert status == 1
    assert "failed: Error: Unable to find a match: python3-bcc (see that 'dnf makecache' works" in told.splitlines()[-1]


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
