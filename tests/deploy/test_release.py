"""deploy/release: the same bytes on machines that differ in all that could get into them, and nothing of these."""

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests import ROOT
from twctl import __version__

# In parts, because this file is in the release.
USER, UID, HOST = "tw" + "builder", 12347, "tw-" + "builder-23"
# What everybody uses, and the pages of packages link to.
PUBLIC = {"pypi.org", "files.pythonhosted.org", "deb.debian.org", "security.debian.org", "snapshot.debian.org"}
LIBRARIES = {"prometheus-client", "pyroute2", "rich", "typer"}


def git(folder: Path, *words: str) -> str:
    """What git prints, as nobody in particular."""
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid", "-c", "safe.directory=*")
    done = subprocess.run(["git", *identity, "-C", folder, *words], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """Two clones of a commit that has the files as they are here; the second where anybody can come."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not in a checkout: a release is built from a commit")
    first = tmp_path_factory.mktemp("first") / "source"
    for name in git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).exists():
            (first / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, first / name)
    git(first, "init", "-q")
    git(first, "add", "--all", "--force")
    git(first, "commit", "-q", "-m", "a release")
    with tempfile.TemporaryDirectory(prefix="twctl-test-", dir="/var/tmp") as folder:
        second = Path(folder, "elsewhere")
        git(first, "clone", "-q", str(first), str(second))
        yield [first, second]


def release(checkout: Path, folder: Path, *prefix: str, **environment: str) -> Path:
    """Build there, without the image, whose base is at Docker Hub; returns the folder."""
    done = subprocess.run(
        [*prefix, checkout / "deploy/release", "--no-image", folder],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert (0, f"{folder}\n") == (done.returncode, done.stdout), done.stderr
    return folder


@pytest.fixture(scope="module")
def built(checkouts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The releases of both: the second by another user, on another host, in another zone and language."""
    if os.geteuid() != 0:
        pytest.skip("a host and a user of other names need root")
    first, second = checkouts
    folder = second.parent
    passwd = folder / "passwd"
    passwd.write_text(f"{USER}:x:{UID}:{UID}::{folder}:/bin/sh\n" + Path("/etc/passwd").read_text())
    shutil.chown(folder, UID, UID)
    subprocess.run(["chown", "-R", f"{UID}:{UID}", second], check=True)
    script = f'mount --bind {passwd} /etc/passwd && hostname {HOST} && umask 077 && exec "$@"'
    other = ("unshare", "--mount", "--uts", "sh", "-c", script, "sh", "setpriv", f"--reuid={UID}", f"--regid={UID}")
    environment = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "USER": USER, "LOGNAME": USER, "HOME": str(folder)}
    return [
        release(first, tmp_path_factory.mktemp("release")),
        release(second, folder / "release", *other, "--clear-groups", TMPDIR=str(folder), **environment),
    ]


def test_the_same_commit_gives_the_same_bytes(built: list[Path]) -> None:
    """Whoever builds it, where and when; and the sums are those of the files."""
    first, second = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in built)
    assert [] == [name for name in first if first[name] != second.get(name)]
    assert first.keys() == second.keys()
    lines = first.pop("SHA256SUMS").decode().splitlines()
    assert {name: hashlib.sha256(data).hexdigest() for name, data in first.items()} == {
        line.split("  ")[1]: line.split("  ")[0] for line in lines
    }


def test_a_release_is_complete(built: list[Path]) -> None:
    """Wheel, source, package, the image's root, manifests, alerts, dashboard, lists of package and image, sums."""
    kinds = {
        re.sub(r"_(all|[a-z0-9]+)(?=\.(deb|cdx))|-(amd64|arm64)(?=\.)", "", file.name) for file in built[0].iterdir()
    }
    assert kinds == {
        f"twctl-{__version__}-root.tar.gz",
        f"twctl-{__version__}-root.cdx.json",
        f"twctl-{__version__}-py3-none-any.whl",
        f"twctl-{__version__}.tar.gz",
        f"twctl_{__version__}.deb",
        f"twctl_{__version__}.cdx.json",
        f"twctl-{__version__}-kubernetes.tar.gz",
        f"twctl-{__version__}-monitoring.tar.gz",
        "SHA256SUMS",
    }


def members(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file and, where it is an archive, all that is in it, whoever owns it there included."""
    yield name, data
    if name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for each in archive.namelist():
                yield from members(f"{name}/{each}", archive.read(each))
    elif name.endswith((".tar.gz", ".tar")):
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for entry in archive:
                found = archive.extractfile(entry) if entry.isfile() else None
                yield f"{name}/{entry.name} {entry.uname} {entry.gname}", b""
                yield from members(f"{name}/{entry.name}", found.read() if found else entry.linkname.encode())
    elif name.endswith(".gz"):
        yield from members(name.removesuffix(".gz"), gzip.decompress(data))
    elif name.endswith(".deb"):
        for part in ("--ctrl-tarfile", "--fsys-tarfile"):
            done = subprocess.run(["dpkg-deb", part, "/dev/stdin"], input=data, capture_output=True, check=True)
            yield from members(f"{name}/{part}.tar", done.stdout)


def hosts() -> set[str]:
    """Where this machine gets packages from."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    told += " ".join(f"{value}\n" for name, value in os.environ.items() if name.startswith("PIP_") or "proxy" in name)
    told += "".join(file.read_text() for file in Path("/etc/apt").rglob("*") if file.suffix in {".list", ".sources"})
    return set(re.findall(r"https?://(?:[^/@\s']*@)?([^/:\s']+)", told)) - PUBLIC


def test_nothing_of_the_machine_is_in_it(built: list[Path], checkouts: list[Path]) -> None:
    """No path of the checkout or of temporary files, no user, host or index of packages; in no name either."""
    traces = [USER, HOST, str(ROOT), *(str(each.parent) for each in checkouts), *hosts()]
    patterns = [trace.encode() for trace in traces]
    seen = 0
    for file in built[1].iterdir():
        for name, data in members(file.name, file.read_bytes()):
            seen += 1
            found = [trace for trace in patterns if trace in data or trace in name.encode()]
            assert found == [], name
    assert seen > 1000


def test_what_is_in_it_is_listed(built: list[Path]) -> None:
    """Package and image each have a list that CycloneDX's schema takes, of every library there with its version."""
    lists = [file for file in built[0].iterdir() if file.name.endswith(".cdx.json")]
    (package,) = built[0].glob("*.deb")
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        infos = {Path(name).name for name in archive.getnames() if name.endswith(".dist-info")}
    there = {tuple(info.removesuffix(".dist-info").lower().replace("_", "-").rsplit("-", 1)) for info in infos}
    assert len(lists) == 2
    for file in lists:
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(file.read_text()) is None
        found = json.loads(file.read_text())
        component = found["metadata"]["component"]
        assert ("twctl", __version__) == (component["name"], component["version"])
        listed = {(each["name"].lower().replace("_", "-"), each["version"]) for each in found["components"]}
        assert there == {each for each in listed if "pkg:deb" not in each} | {("twctl", __version__)}
        assert {name for name, _ in listed} > LIBRARIES


def test_an_image_s_list_has_its_debian_packages(built: list[Path]) -> None:
    """Added by deploy/sbom.py from what dpkg-query prints, here of two."""
    (file,) = built[0].glob("twctl_*.cdx.json")
    told = "libc6 2.36-9+deb12u10 amd64\nbase-files 1:12.4 amd64\n"
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/sbom.py", file], input=told, capture_output=True, text=True, check=True
    )
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(done.stdout) is None
    before, after = (json.loads(text)["components"] for text in (file.read_text(), done.stdout))
    assert [each["purl"] for each in after[len(before) :]] == [
        "pkg:deb/debian/base-files@1%3A12.4?arch=amd64&distro=debian-12",
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12",
    ]


def refused(checkout: Path, *words: str | Path) -> str:
    """The one line with which it refuses."""
    done = subprocess.run([checkout / "deploy/release", *words], capture_output=True, text=True, check=False)
    assert (1, "") == (done.returncode, done.stdout)
    (line,) = done.stderr.splitlines()
    return line


def test_what_is_no_commit_is_refused(checkouts: list[Path], tmp_path: Path) -> None:
    """A changed file, a new one, a base without digest, a folder that has something in it."""
    checkout = tmp_path / "checkout"
    git(checkouts[0], "clone", "-q", str(checkouts[0]), str(checkout))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert refused(checkout, tmp_path / "full").endswith("full is not empty (remove it, or name another folder)")
    (checkout / "new").touch()
    assert "the tree has changes, the first in new (commit or stash them)" in refused(checkout)
    (checkout / "new").unlink()
    file = checkout / "deploy/kubernetes/Dockerfile"
    file.write_text(re.sub(r"@sha256:[0-9a-f]{64}", "", file.read_text()))
    assert "the first in deploy/kubernetes/Dockerfile (" in refused(checkout)
    git(checkout, "commit", "-q", "-a", "-m", "no digest")
    assert refused(checkout).endswith("the image's base has no digest (deploy/lock/renew --image)")
