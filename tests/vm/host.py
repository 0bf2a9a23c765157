"""What tests/vm needs of this machine: tools, a cache, and an emulator for each architecture."""

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

VENV_BIN = ROOT / ".venv" / "bin"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "twctl"
TOOLS = {  # program -> Debian package
    "busybox": "busybox-static",
    "debootstrap": "debootstrap",
    "depmod": "kmod",
    "file": "file",
    "udevadm": "udev",  # names the virtio ports that carry output and exit status
}


class RefusedError(Exception):
    """The command could not be run: what failed, and in brackets what to do about it."""


@dataclass(frozen=True)
class Architecture:
    """How one is emulated. name: Debian's."""

    name: str
    qemu: str
    package: str
    bus: str  # how QEMU calls virtio devices on it
    options: tuple[str, ...] = ()  # of vng
    timeout: int = 2700  # seconds for a kernel, boot included
    tools: tuple[tuple[str, str], ...] = ()

    @property
    def is_own(self) -> bool:
        """Whether it is this machine's: then KVM may do, and the root file system is at hand."""
        return self.name == "amd64"


# max: with the atomic instructions of ARMv8.1, which the kernel's JIT takes where they are. QEMU's own pointer
# authentication costs a fraction of the true one's, and its vectors are slower than none.
ARCHITECTURES = {
    each.name: each
    for each in (
        Architecture("amd64", "qemu-system-x86_64", "qemu-system-x86", "pci"),
        Architecture(
            *("arm64", "qemu-system-aarch64", "qemu-system-arm", "device"),
            options=("--arch", "arm64", "-o=-cpu", "-o=max,pauth-impdef=on,sve=off"),
            timeout=14_400,
            tools=(("qemu-aarch64-static", "qemu-user-static"),),
        ),
    )
}


def quietly(*command: str) -> str:
    """Run a command; its output matters only if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise RefusedError(f"{shlex.join(command[:2])}: {last[0]}")
    return done.stdout


def install_tools(architecture: Architecture) -> None:
    """Make sure that everything is there, from apt and pip."""
    if os.geteuid() != 0:
        raise RefusedError("not root (run it with sudo)")
    tools = TOOLS | {architecture.qemu: architecture.package} | dict(architecture.tools)
    missing = [package for program, package in tools.items() if not shutil.which(program)]
    if missing:
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        quietly("apt-get", "update")
        quietly("apt-get", "install", "-y", "--no-install-recommends", *missing)
    if not (VENV_BIN / "pip").exists():
        raise RefusedError("no .venv in the checkout (run deploy/setup)")
    if not (VENV_BIN / "vng").exists():
        quietly(str(VENV_BIN / "pip"), "install", "--quiet", "virtme-ng")


def debian_sources(release: str) -> list[str]:
    """The machine's own Debian mirrors, pointed at another release: lines for apt."""
    here = codename()
    line = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(REPO_URI) $(CODENAME) $(COMPONENT)"
    lines = quietly("apt-get", "indextargets", "--format", line, "Created-By: Packages", "Origin: Debian").splitlines()
    if release == "sid" or "-" in release:  # sid and backports have neither updates nor security
        lines = [line for line in lines if line.split()[-2] == here]
    if not lines:
        raise RefusedError("apt knows no Debian mirror (give the path of a vmlinuz instead)")
    return sorted({line.replace(f" {here}", f" {release}") for line in lines})


def codename() -> str:
    """Of this machine's release."""
    return quietly("sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME").strip()
