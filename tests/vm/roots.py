"""A Debian of another architecture, in which the cells run: made once, under QEMU's user emulation."""

import contextlib
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT
from tests.vm.host import CACHE, Architecture, codename, debian_sources, quietly

PLACE = "opt/twctl"  # of the checkout in it
BASE = ("busybox-static", "ca-certificates", "kmod", "udev")
# What the cells need beyond what deploy/setup installs: to make namespaces and traffic, and to run at all.
PACKAGES = ("gcc", "iproute2", "iputils-ping", "libc6-dev", "nftables", "procps")
LIBRARIES = ("hypothesis>=6.100", "pytest>=8")
BINFMT = Path("/proc/sys/fs/binfmt_misc")
ENTER = ROOT / "tests/vm/enter"


def root_of(architecture: Architecture) -> Path:
    """The root file system, with the checkout as it is now."""
    folder = CACHE / "roots" / architecture.name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, user_emulation():
            made = Path(scratch, "root")
            debootstrap(architecture, made)
            made.rename(folder)
    copy_checkout(folder / PLACE)
    if not is_set_up(folder / PLACE):
        with user_emulation():
            set_up(folder)
    return folder


def debootstrap(architecture: Architecture, root: Path) -> None:
    """Make the least Debian, of this machine's own release and mirror."""
    mirror = next(line.split()[-3] for line in debian_sources(codename()) if line.split()[-2] == codename())
    options = (f"--arch={architecture.name}", "--variant=minbase", f"--include={','.join(BASE)}")
    quietly("debootstrap", *options, codename(), str(root), mirror)
    (root / "usr/sbin/poweroff").symlink_to("/bin/busybox")  # with which virtme-ng's init ends


def copy_checkout(place: Path) -> None:
    """Put the files of the checkout, with what is not committed, in place of those of last time."""
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        if old.name != ".venv":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    listed = quietly("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)


def is_set_up(place: Path) -> bool:
    """Whether set_up has run to its end, for the libraries that the checkout needs now."""
    stamp = place / ".venv/cells-stamp"
    return stamp.exists() and stamp.read_text() == needs()


def needs() -> str:
    """What the installation depends on."""
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest() + repr((PACKAGES, LIBRARIES))


def set_up(root: Path) -> None:
    """Run deploy/setup in it, as its users do, and install what the cells need beyond that."""
    inside = str(ENTER), str(root)
    quietly(*inside, f"/{PLACE}/deploy/setup")
    quietly(*inside, "apt-get", "-q", "install", "-y", "--no-install-recommends", *PACKAGES)
    quietly(*inside, "apt-get", "clean")
    quietly(*inside, f"/{PLACE}/.venv/bin/pip", "install", "-q", *LIBRARIES)
    (root / PLACE / ".venv/cells-stamp").write_text(needs())


@contextlib.contextmanager
def user_emulation() -> Iterator[None]:
    """While it lasts, this kernel runs programs of arm64: where systemd has not seen to that, as in a container."""
    if any(BINFMT.glob("qemu-aarch64*")):
        yield
        return
    mounted = not (BINFMT / "register").exists()
    if mounted:
        quietly("mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT))
    try:
        (BINFMT / "register").write_bytes(Path("/usr/lib/binfmt.d/qemu-aarch64.conf").read_bytes())
        yield
    finally:
        (BINFMT / "qemu-aarch64").write_text("-1")
        if mounted:
            subprocess.run(["umount", BINFMT], check=True)
