"""deploy/rpm: built from the same tree as the Debian package, and its scriptlets do the same. No Fedora is at hand."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT
from twctl import __version__

FILES = {
    "/etc/twctl.toml",
    "/opt/twctl/bin/twctl",
    "/opt/twctl/lib/python3/site-packages/one.py",
    "/usr/bin/twctl",
    "/usr/lib/systemd/system/twctl.service",
    "/usr/share/bash-completion/completions/twctl",
    "/usr/share/doc/twctl/copyright",
    "/usr/share/fish/vendor_completions.d/twctl.fish",
    "/usr/share/man/man1/twctl.1.gz",
    "/usr/share/zsh/site-functions/_twctl",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files where deploy/stage puts them; of what is in them only that twctl can be called is of interest here."""
    folder = tmp_path_factory.mktemp("tree")
    for name in FILES:
        (folder / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (folder / name[1:]).write_text(f"# {name}\n")
    twctl = folder / "opt/twctl/bin/twctl"
    twctl.write_text('#!/bin/sh\necho "twctl $*" >>/calls\n[ ! -e /held ]\n')
    twctl.chmod(0o755)
    return folder


def build(folder: Path, tree: Path) -> Path:
    """The package."""
    if shutil.which("rpmbuild") is None:
        pytest.skip("rpmbuild is not installed: apt-get install rpm")
    done = subprocess.run(
        [ROOT / "deploy/rpm/build", folder, tree],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1700000003"},
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def package(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of that tree."""
    return build(tmp_path_factory.mktemp("rpm"), tree)


def query(package: Path, *words: str) -> list[str]:
    """Lines that rpm prints of a package."""
    done = subprocess.run(["rpm", "-qp", *words, package], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def scriptlet(package: Path, name: str) -> str:
    """The text that rpm runs."""
    text = "\n".join(query(package, "--scripts"))
    end = r"(?=^\w+ scriptlet|\Z)"
    (found,) = re.findall(rf"^{name} scriptlet \(using /bin/sh\):\n(.*?){end}", text, re.MULTILINE | re.DOTALL)
    return str(found)


def test_it_has_the_tree_and_no_more(package: Path, tree: Path) -> None:
    """All files, as they are; the configuration is kept; it is for every architecture, as nothing in it is compiled."""
    assert f"twctl-{__version__}-1.noarch.rpm" == package.name
    listed = query(package, "--list")
    assert {name for name in listed if not (tree / name[1:]).is_dir()} == FILES
    assert query(package, "--configfiles") == ["/etc/twctl.toml"]
    assert {"root root"} == set(query(package, "--queryformat", "[%{FILEUSERNAME} %{FILEGROUPNAME}\n]"))


def test_a_compiled_library_binds_it_to_an_architecture(tree: Path, tmp_path: Path) -> None:
    """As it does the Debian package."""
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy)
    (copy / "opt/twctl/lib/python3/site-packages/core.so").touch()
    assert build(tmp_path, copy).name.endswith(f".{os.uname().machine}.rpm")


def test_it_needs_what_the_debian_package_needs(package: Path) -> None:
    """By Fedora's names, and the Python whose folder the libraries lie in; it offers nothing but itself."""
    needs = {each for each in query(package, "--requires") if not each.startswith(("rpmlib(", "/bin/sh"))}
    done = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert needs == {f"python(abi) = {done.stdout.strip()}", "python3-bcc", "kernel-headers", "systemd"}
    assert query(package, "--provides") == [f"twctl = {__version__}-1"]


def test_the_same_tree_gives_the_same_bytes(package: Path, tree: Path, tmp_path: Path) -> None:
    """The time is the commit's, and the host has no name."""
    assert build(tmp_path, tree).read_bytes() == package.read_bytes()
    assert query(package, "--queryformat", "%{BUILDTIME} %{BUILDHOST}") == ["1700000003 localhost"]


def run(folder: Path, script: str, number: int, failing: str = "") -> tuple[int, list[str]]:
    """How a scriptlet ends, and what it calls; number: how many versions of the package there are afterwards.

    systemd runs. failing: a program that does. As rpm runs it: a command that fails does not end it.
    """
    calls = folder / "calls"
    calls.write_text("")
    for name in ("systemctl", "find", "python3", "rmdir", "twctl"):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{calls}\nexit {int(name == failing)}\n')
        (folder / name).chmod(0o755)
    script = script.replace("/opt/twctl/bin/twctl", "twctl").replace("/run/systemd/system", str(folder))
    done = subprocess.run(
        ["sh", "-c", script, "sh", str(number)],
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, calls.read_text().splitlines()


def test_the_scriptlets_do_as_the_debian_ones(package: Path, tmp_path: Path) -> None:
    """Presets at the first installation, a restart after an upgrade; before it goes the host is given back."""
    reload = "systemctl daemon-reload"
    clean = "find /opt/twctl/lib -name __pycache__ -prune -exec rm -r {} +"
    wanted = {
        ("postinstall", 1): [reload, "systemctl --no-reload preset twctl.service"],
        ("postinstall", 2): [reload],
        ("posttrans", 1): [clean, "python3 -m compileall -q /opt/twctl/lib"],
        ("preuninstall", 1): [],
        ("preuninstall", 0): ["systemctl --no-reload disable --now twctl.service", "twctl release", clean],
        ("postuninstall", 1): [reload, "systemctl try-restart twctl.service"],
        ("postuninstall", 0): [reload, "rmdir --ignore-fail-on-non-empty /run/twctl"],
    }
    for (name, number), calls in wanted.items():
        assert (0, calls) == run(tmp_path, scriptlet(package, name), number)


def test_what_cannot_be_released_is_not_erased(package: Path, tmp_path: Path) -> None:
    """A daemon still runs, or the guard has to stay: its program has to stay, too."""
    stop = "systemctl --no-reload disable --now twctl.service"
    assert (1, [stop, "twctl release"]) == run(tmp_path, scriptlet(package, "preuninstall"), 0, failing="twctl")


# What rpmlint says that is to stay, and why.
KNOWN = {
    "dir-or-file-in-opt": "the libraries are the package's own, as on Debian",
    "only-non-binary-in-usr-lib": "the unit",
    "devel-dependency": "the loader compiles against linux/bpf.h",
    "no-%prep-section": "the tree is complete",
    "no-%build-section": "the tree is complete",
    "no-buildroot-tag": "rpm has not needed one since 4.6",
    "no-group-tag": "nor a group",
    "no-changelogname-tag": "CHANGELOG.md",
    "no-packager-tag": "whoever publishes it is",
    "no-signature": "whoever publishes it signs",
    "invalid-license": "SPDX's names, as Fedora wants them; the list of an older rpmlint has others",
    "manpage-not-compressed": "by gzip, as Fedora does",
    "script-without-shebang": "a file of this test",
    "non-executable-in-bin": "a file of this test",
}


def test_rpmlint_has_nothing_else_to_say(package: Path) -> None:
    """Of the spec and of what it makes."""
    if shutil.which("rpmlint") is None:
        pytest.skip("rpmlint is not installed: apt-get install rpmlint")
    done = subprocess.run(
        ["rpmlint", ROOT / "deploy/rpm/twctl.spec", package], capture_output=True, text=True, check=False
    )
    assert "1 packages and 1 specfiles checked" in done.stdout
    said = re.findall(r"^twctl\.(?:spec|noarch):(?:\d+:)? [EW]: (\S+)(.*)", done.stdout, re.MULTILINE)
    assert [] == [line for line in said if line[0] not in KNOWN]


ROOT_OF_ITS_OWN = """
set -e
mount -t tmpfs twctl-test "$1" && cd "$1" && mkdir upper work root
mount -t overlay -o "lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work" overlay root && cd root
for folder in proc dev; do mount --rbind /$folder $folder; done
rm -rf opt/twctl etc/twctl.toml usr/bin/twctl && mkdir -p run/systemd/system
printf '#!/bin/sh\\necho "systemctl $*" >>/calls\\n' >package-systemctl
install package-systemctl usr/bin/systemctl
cp "$2" package.rpm
exec chroot . sh -ec "$3"
"""


def test_rpm_installs_upgrades_and_removes_it(package: Path, tmp_path: Path) -> None:
    """In a root of its own, on top of this machine's: its scriptlets run in rpm's order, and nothing of it stays.

    Unless the host cannot be given back.
    """
    if os.geteuid() != 0:
        pytest.skip("a root of its own needs root")
    rpm = "rpm --force-debian --nodeps --dbpath /package-database"
    erase = f"{rpm} --erase twctl"
    steps = {
        "installed": f"{rpm} --install /package.rpm && find /opt/twctl -name '*.pyc' | wc -l",
        "upgraded": f"{rpm} --upgrade --force /package.rpm && find /opt/twctl -name '*.pyc' | wc -l",
        "refused": f"touch /held && ! {erase} 2>/dev/null && rm /held && find /opt/twctl/bin/twctl /etc/twctl.toml",
        "removed": f"{erase} && find /opt/twctl /etc/twctl.toml /usr/bin/twctl 2>/dev/null | wc -l",
    }
    script = "; ".join(f"echo {name} >>/calls; {step} >>/calls" for name, step in steps.items()) + "; cat /calls"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", ROOT_OF_ITS_OWN, "sh", tmp_path, package, script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reload, stop = "systemctl daemon-reload", "systemctl --no-reload disable --now twctl.service"
    assert done.stdout.splitlines() == [
        *("installed", reload, "systemctl --no-reload preset twctl.service", "1"),
        *("upgraded", reload, reload, "systemctl try-restart twctl.service", "1"),
        *("refused", stop, "twctl release", "/opt/twctl/bin/twctl", "/etc/twctl.toml"),
        *("removed", stop, "twctl release", reload, "0"),
    ]
