"""The wheel: carries the BPF sources and works where there is no checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A finished program with its output, standard error included."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def must(*command: object, cwd: Path) -> str:
    """The output of a program that has to succeed."""
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment in which nothing but the wheel is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    must(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, ROOT, cwd=folder)
    must(sys.executable, "-m", "venv", "--system-site-packages", folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    must(python, "-m", "pip", "install", "--no-deps", "--no-index", *folder.glob("*.whl"), cwd=folder)
    # The dependencies are those of this environment: a test needs no index. Its own .pth files do not count there.
    site = must(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    (Path(site) / "dependencies.pth").write_text(str(Path(pytest.__file__).parent.parent), encoding="utf-8")
    return folder / "venv"


def sources(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_wheel_carries_the_bpf_sources(installed: Path) -> None:
    """What is in bpf/, include/ too, is in the wheel, byte for byte."""
    print_folder = "import pathlib, twctl.errors; print(pathlib.Path(twctl.errors.__file__).parent / 'bpf')"
    folder = Path(must(installed / "bin/python", "-c", print_folder, cwd=installed).strip())
    assert folder.is_relative_to(installed)
    assert sources(ROOT / "bpf") == sources(folder)
    assert {".c", ".h"} == {path.suffix for path in folder.iterdir() if path.is_file()}
    assert any((folder / "include").rglob("*.h"))


def test_check_runs_from_the_wheel(installed: Path) -> None:
    """`twctl check` reports on this machine, ready or not."""
    done = run(installed / "bin/twctl", "check", cwd=installed)
    assert done.returncode in {0, 1}
    assert done.stdout.strip()
    assert "Traceback" not in done.stdout
