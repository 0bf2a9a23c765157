"""deploy/: the unit is hardened, and what is printed from the command line cannot drift from it."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from tests import ROOT
from twctl.commands.cli import app

DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd/twctl.service"
NAMESPACES = UNIT.parent / "namespaces.conf"
EXPOSURE = {False: 2.2, True: 2.6}  # of 10: of the unit, which does for every mode; of it with namespaces.conf
COMMANDS = [each.name or each.callback.__name__ for each in app.registered_commands if each.callback]


def output(*words: object, **environment: str) -> str:
    """What a program prints; it must succeed."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def document(kind: str) -> str:
    """What deploy/documents.py prints."""
    return output(sys.executable, DEPLOY / "documents.py", kind)


def options(command: str) -> set[str]:
    """What --help says."""
    told = CliRunner().invoke(app, [command, "--help"]).stdout
    return set(re.findall(r"^ +(--[a-z-]+)", told, re.MULTILINE)) - {"--help"}


@pytest.mark.parametrize("namespaces", EXPOSURE)
def test_the_unit_exposes_little(namespaces: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """`systemd-analyze security` says no more than the files and pages do."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    unit = tmp_path / UNIT.name
    shutil.copy(UNIT, unit)
    if namespaces:
        unit.with_suffix(".service.d").mkdir()
        shutil.copy(NAMESPACES, unit.with_suffix(".service.d"))
    found = re.search(r"exposure level.*: ([0-9.]+)", output("systemd-analyze", "security", "--offline=true", unit))
    assert found
    assert float(found[1]) <= EXPOSURE[namespaces]
    told = NAMESPACES.read_text() + (ROOT / "docs/architecture.md").read_text()
    assert told.count(str(EXPOSURE[namespaces])) >= 2


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Every line of it; systemd before 254 does not know two of them, and says so."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/twctl/bin/twctl", "/bin/true"))  # it need not be installed
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    about_it = [line for line in done.stderr.splitlines() if UNIT.name in line]
    version = int(output("systemd-analyze", "--version").split()[1])
    newer = () if version >= 254 else ("RestartSteps", "RestartMaxDelaySec")
    assert [f"Unknown key '{key}' in section [Service], ignoring." for key in newer] == [
        line.partition(": ")[2] for line in about_it
    ]


def test_starts_that_fail_come_later_each_time(tmp_path: Path) -> None:
    """Systemd 254 does it itself; before, the unit's own command waits as long as that would, less RestartSec=."""
    settings = dict(re.findall(r"^(Restart\w+)=(\d+)$", UNIT.read_text(), re.MULTILINE))
    first, most, steps = (int(settings[key]) for key in ("RestartSec", "RestartMaxDelaySec", "RestartSteps"))
    delays = [round(first * (most / first) ** (min(n - 1, steps) / steps)) for n in range(1, 10)]
    assert delays == [5, 10, 20, 40, 80, 160, 160, 160, 160]
    waited = [waits(tmp_path, f'case "$3" in NRestarts) echo {n} ;; esac') for n in range(1, 10)]
    assert [f"{delay - first}" if delay > first else "" for delay in delays] == waited
    newer = 'case "$3" in NRestarts) echo 9 ;; RestartSteps) echo 5 ;; esac'
    assert waits(tmp_path, newer) == ""
    assert waits(tmp_path, "exit 1") == ""


def waits(folder: Path, systemctl: str) -> str:
    """How many seconds the command before the start would sleep, where systemctl answers so; nothing: not at all."""
    (command,) = re.findall(r"^ExecStartPre=-/bin/sh -c '(.*?)'$", UNIT.read_text(), re.MULTILINE | re.DOTALL)
    for name, script in (("systemctl", systemctl), ("sleep", "echo $1")):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    script = command.replace("\\\n", " ").replace("$$", "$")
    done = subprocess.run(
        ["sh", "-c", script], env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def test_the_image_stands_on_a_base_that_cannot_change() -> None:
    """Every stage, by digest, and on Debian's archive of one day; the digest is that of one image for all machines."""
    text = (DEPLOY / "kubernetes/Dockerfile").read_text()
    assert re.search(r"^ARG BASE=debian:12-slim@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["$BASE", "debian", "debian"]
    assert re.search(r"^ARG SNAPSHOT=\d{8}T\d{6}Z$", text, re.MULTILINE)
    assert text.count("snapshot.debian.org") == text.count(">/etc/apt/sources.list;") == 1


@pytest.mark.parametrize("file", sorted((DEPLOY / "lock").glob("*.txt")), ids=lambda file: file.stem)
def test_every_library_is_locked(file: Path) -> None:
    """One version of each, with the hashes of its files, and from no index in particular."""
    entries = re.sub(r"\\\n", "", file.read_text()).splitlines()
    libraries = [line for line in entries if line and not line.lstrip().startswith("#")]
    assert libraries
    for line in libraries:
        assert re.match(r"[a-z0-9-]+==\S+ ( ?; [^\\]+?)?( +--hash=sha256:[0-9a-f]{64})+$", line), line


def test_what_twctl_imports_is_locked() -> None:
    """Each library of pyproject.toml, in a version that it allows."""
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", (DEPLOY / "lock/run.txt").read_text(), re.MULTILINE))
    for each in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        wanted = Requirement(each)
        assert wanted.specifier.contains(locked[wanted.name])


def allowed_calls() -> set[str]:
    """System calls that the unit's filter allows, its lines taken in their order."""
    calls: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE):
        named = members(line.removeprefix("~").split())
        calls = calls - named if line.startswith("~") else calls | named
    return calls


def members(names: list[str]) -> set[str]:
    """Of sets, all that is in them."""
    sets = [name for name in names if name.startswith("@")]
    found = set(names) - set(sets)
    for each in sets:
        lines = output("systemd-analyze", "syscall-filter", each).splitlines()[1:]
        found |= members([line.strip() for line in lines if line.strip() and "#" not in line])
    return found


def test_the_unit_allows_what_the_daemon_calls() -> None:
    """bpf() and capset() are among what systemd calls privileged, of which it allows nothing else."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    assert {"bpf", "capset"} == allowed_calls() & members(["@privileged"])
    assert {"sendmsg", "epoll_wait", "mmap", "execve", "setns", "prctl", "dup3"} - allowed_calls() == set()


def test_each_capability_has_its_reason() -> None:
    """A comment of the same file says what it is for."""
    for file in (UNIT, NAMESPACES):
        text = file.read_text()
        given = re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.MULTILINE)
        names = [name.removeprefix("CAP_") for line in given for name in line.split()]
        assert names
        assert [name for name in names if not re.search(rf"^# {name}: ", text, re.MULTILINE)] == []


def test_no_library_that_we_name_is_compiled() -> None:
    """The package is for every architecture, unless a library of theirs is compiled."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [str(re.match(r"[\w-]+", each)[0]) for each in named]  # type: ignore[index]
    assert names
    for name in names:
        files = importlib.metadata.files(name)
        assert files
        assert [str(each) for each in files if each.suffix == ".so"] == []


def test_the_man_page_has_every_command_and_option() -> None:
    """And troff has nothing to say about it."""
    text = document("man").replace("\\-", "-")
    for command in COMMANDS:
        section = re.search(rf"^\.SS twctl {command}\b(.*?)(?=^\.S)", text, re.DOTALL | re.MULTILINE)
        assert section, command
        assert options(command) == set(re.findall(r"^\\fB(--[a-z-]+)", section[1], re.MULTILINE)), command


def test_troff_takes_the_man_page(tmp_path: Path) -> None:
    """Without a warning."""
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed: apt-get install groff")
    page = tmp_path / "twctl.1"
    page.write_text(document("man"))
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", page], capture_output=True, text=True, check=False, env=os.environ
    )
    assert (0, "") == (done.returncode, done.stderr)


def completed(tmp_path: Path, *words: str) -> set[str]:
    """What bash offers in place of the last word."""
    script = tmp_path / "twctl.bash"
    script.write_text(document("bash"))
    line = " ".join(f"'{word}'" for word in words)
    ask = f'. {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _twctl; printf "%s\\n" "${{COMPREPLY[@]}}"'
    return set(output("bash", "-c", ask).split())


def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    """From the words before; other commands' options are not offered."""
    assert {*COMMANDS, "--help", "--version"} == completed(tmp_path, "twctl", "")
    for command in COMMANDS:
        assert options(command) | {"--help"} == completed(tmp_path, "twctl", command, "--")
    assert completed(tmp_path, "twctl", "run", "--mode", "") == {"observe", "truncate", "vestigial"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_take_their_completions(shell: str, tmp_path: Path) -> None:
    """They parse, and name every option."""
    text = document(shell)
    for command in COMMANDS:
        assert all(f"-l {each.removeprefix('--')}" in text or f"*{each}[" in text for each in options(command))
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: apt-get install {shell}")
    (tmp_path / "file").write_text(text)
    output(shell, "-n", tmp_path / "file")


@pytest.mark.parametrize(("before", "action"), [("", "start"), ("0.0.9", "restart")])
def test_a_service_that_does_not_start_leaves_the_package_configured(tmp_path: Path, before: str, action: str) -> None:
    """Its port may be taken: the next `dpkg --configure` would fail for that as well."""
    script = (DEPLOY / "debian/postinst").read_text().replace("/run/systemd/system", str(tmp_path))
    calls = tmp_path / "calls"
    for name in ("python3", "deb-systemd-helper", "systemctl", "deb-systemd-invoke"):
        failing = "exit 1" if name == "deb-systemd-invoke" else ""
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{calls}\n{failing}\n')
        (tmp_path / name).chmod(0o755)
    output("sh", "-c", script, "sh", "configure", before, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert f"deb-systemd-invoke {action} twctl.service" == calls.read_text().splitlines()[-1]


def test_the_installer_follows_a_link_in_the_place_of_a_folder(tmp_path: Path) -> None:
    """/usr/local may lie on another disk; and what is there already stays as it is."""
    (command,) = re.findall(r"^ +(tar -C .*)$", (DEPLOY / "install").read_text(), re.MULTILINE)
    stage, root, disk = (tmp_path / name for name in ("stage", "root", "disk"))
    for folder in (stage / "usr/local/bin", stage / "etc", root / "usr", root / "etc", disk / "local"):
        folder.mkdir(parents=True)
    (stage / "usr/local/bin/twctl").touch()
    (disk / "local/theirs").touch()
    (root / "usr/local").symlink_to(disk / "local")
    (root / "etc").chmod(0o700)
    output("sh", "-ec", command.replace("-C / ", f"-C {root} "), stage=str(stage))
    assert (root / "usr/local").is_symlink()
    assert {"bin", "theirs"} == {each.name for each in (root / "usr/local").iterdir()}
    assert (root / "usr/local/bin/twctl").exists()
    assert 0o700 == (root / "etc").stat().st_mode & 0o777


@pytest.mark.parametrize("options", [(), ("--remove",)])
@pytest.mark.parametrize(("manager", "remedy"), [("dpkg-query", "apt-get purge twctl"), ("rpm", "dnf remove twctl")])
def test_the_installer_leaves_a_package_alone(
    tmp_path: Path, manager: str, remedy: str, options: tuple[str, ...]
) -> None:
    """Of either kind: /opt/twctl is the package's. Nothing has been done by then."""
    if os.geteuid() != 0:
        pytest.skip("the installer asks for root first")
    (tmp_path / "deploy").mkdir()
    shutil.copy(DEPLOY / "install", tmp_path / "deploy")
    answers = {"dpkg-query": "exit 1", "rpm": "exit 1", manager: "printf installed"}
    answers["../deploy/setup"] = f"touch {tmp_path}/begun; exit 1"
    (tmp_path / "bin").mkdir()
    for name, script in answers.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    done = subprocess.run(
        [tmp_path / "deploy/install", *options],
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"deploy/install: the package twctl is installed ({remedy} first, or upgrade the package)\n"
    assert (1, said, False) == (done.returncode, done.stderr, (tmp_path / "begun").exists())


def test_the_package_names_what_it_leaves_behind() -> None:
    """The configuration is a conffile, and the maintainer scripts are shell scripts without a finding."""
    assert "/etc/twctl.toml" in (DEPLOY / "debian/build").read_text()
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    output("shellcheck", *(DEPLOY / "debian" / name for name in ("postinst", "prerm", "postrm")))
