"""vagrant/: a file that each provider takes, and shell scripts without a finding."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

FOLDER = ROOT / "vagrant"
MACHINES = [
    f"{distribution}-{role}" for distribution in ("debian12", "debian13", "ubuntu2404") for role in ("client", "server")
]


def vagrant(provider: str, tmp_path: Path, *words: str) -> str:
    """What it says; its files go below tmp_path. Of VirtualBox only the version is asked; a stand-in tells it."""
    if shutil.which("vagrant") is None:
        pytest.skip("vagrant is not installed: apt-get install vagrant vagrant-libvirt")
    plugins = subprocess.run(["vagrant", "plugin", "list"], capture_output=True, text=True, check=True).stdout
    if provider == "libvirt" and "vagrant-libvirt" not in plugins:
        pytest.skip("vagrant has no plug-in for libvirt: apt-get install vagrant-libvirt")
    stand_in = tmp_path / "VBoxManage"
    stand_in.write_text("#!/bin/sh\necho 7.0.20r163906\n")
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["vagrant", *words],
        cwd=FOLDER,
        env=os.environ
        | {
            "PATH": f"{os.environ['PATH']}:{tmp_path}",
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_DEFAULT_PROVIDER": provider,
            "VAGRANT_DOTFILE_PATH": str(tmp_path / "machines"),
            "VAGRANT_HOME": str(tmp_path / "home"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("provider", ["libvirt", "virtualbox"])
def test_the_vagrantfile_is_valid(provider: str, tmp_path: Path) -> None:
    """`vagrant validate` takes it, for each provider."""
    assert "validated successfully" in vagrant(provider, tmp_path, "validate")


def test_each_distribution_has_a_client_and_a_server(tmp_path: Path) -> None:
    """`vagrant status` lists six machines."""
    listed = vagrant("virtualbox", tmp_path, "status", "--machine-readable")
    assert MACHINES == [line.split(",")[1] for line in listed.splitlines() if ",provider-name," in line]


def test_the_shell_scripts_have_no_finding() -> None:
    """Shellcheck has nothing to say about any script of the checkout."""
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    root = FOLDER.parent
    files = [path for folder in ("deploy", "tests", "vagrant", ".ci") for path in (root / folder).rglob("*")]
    scripts = [path for path in files if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")]
    assert FOLDER / "demo.sh" in scripts
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
