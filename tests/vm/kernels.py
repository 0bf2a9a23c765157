"""The kernels: Debian's own, fetched without installing them, or any vmlinuz."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.vm import PROBES
from tests.vm.host import CACHE, Architecture, RefusedError, debian_sources, quietly


@dataclass(frozen=True)
class Release:
    """Where Debian has a kernel. refuses: what it may refuse without that being a defect."""

    codename: str
    refuses: tuple[str, ...] = ()


# One line adds a kernel. What is not listed in `refuses` must work.
RELEASES = {
    ("amd64", "5.10"): Release("bullseye", refuses=PROBES),
    ("amd64", "6.1"): Release("bookworm"),
    ("amd64", "6.12"): Release("trixie"),
    ("amd64", "backports"): Release("trixie-backports"),
    ("amd64", "sid"): Release("sid"),
    ("arm64", "6.1"): Release("bookworm", refuses=("fentry",)),  # arm64 has ftrace's direct calls since 6.4
    ("arm64", "6.12"): Release("trixie"),
}


def may_refuse(architecture: str, kernel: str, probe: str) -> bool:
    """Whether a refusal is no failure: of a kernel of your own any may be."""
    release = RELEASES.get((architecture, kernel))
    return release is None or probe in release.refuses


def known(architecture: str) -> list[str]:
    """The names of this architecture's kernels."""
    return [kernel for each, kernel in RELEASES if each == architecture]


def find_kernel(architecture: Architecture, name: str) -> Path:
    """Return the vmlinuz of a known version, fetched if need be, or the given one."""
    release = RELEASES.get((architecture.name, name))
    if release is None:
        if not Path(name).is_file():
            listed = ", ".join(known(architecture.name))
            raise RefusedError(f"no kernel {name} (known: {listed}, or the path of a vmlinuz)")
        return Path(name).resolve()
    folder = CACHE / "kernels" / (name if architecture.is_own else f"{architecture.name}-{name}")
    if not folder.exists():
        fetch(architecture, release, folder)
    return images(folder)[0]


def fetch(architecture: Architecture, release: Release, folder: Path) -> None:
    """Unpack the newest kernel of a Debian release, without installing it and without touching apt's configuration."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        apt = Path(scratch, "apt")
        Path(apt, "lists", "partial").mkdir(parents=True)
        Path(apt, "sources.list").write_text("\n".join(debian_sources(release.codename)) + "\n")
        settings = {
            "Dir::Etc::sourcelist": apt / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": apt / "lists",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": apt,
            "APT::Sandbox::User": "root",
            "APT::Architecture": architecture.name,
            "APT::Architectures": architecture.name,
        }
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        quietly("apt-get", *options, "update")
        newest = depends(options, f"linux-image-{architecture.name}")
        image = next(name for name in newest if name.startswith("linux-image-"))
        # From 7.x on the package is empty, and image and modules lie in two others.
        parts = [name for name in depends(options, image) if name.startswith(("linux-binary-", "linux-modules-"))]
        quietly("sh", "-c", 'cd "$0" && exec apt-get "$@"', scratch, *options, "download", image, *parts)
        root = Path(scratch, "root")
        for deb in Path(scratch).glob("*.deb"):
            quietly("dpkg-deb", "-x", str(deb), str(root))
        if not images(root):
            raise RefusedError(f"{image} holds no kernel (give the path of a vmlinuz instead)")
        for each in modules(images(root)[0]).iterdir():
            quietly("depmod", "-b", str(each.parents[2]), each.name)
        root.rename(folder)


def depends(options: list[str], package: str) -> list[str]:
    """Return the packages of the kernel family that a package needs."""
    words = quietly("apt-cache", *options, "depends", "--important", package).split()
    return [word for word in words if word.startswith("linux-") and word != package]


def images(folder: Path) -> list[Path]:
    """Return the kernels in an unpacked package; where Debian puts them changed with 7.x."""
    return [*folder.glob("boot/vmlinuz-*"), *folder.glob("usr/lib/modules/*/vmlinuz")]


def modules(vmlinuz: Path) -> Path:
    """Return the folder of module folders that belongs to this kernel: the nearest one above it."""
    above = [parent / folder for parent in vmlinuz.parents for folder in ("usr/lib/modules", "lib/modules")]
    return next((folder for folder in above if folder.is_dir()), Path("/lib/modules"))


def release_of(vmlinuz: Path) -> str:
    """What `uname -r` says of it, by where it lies."""
    return vmlinuz.parent.name if vmlinuz.name == "vmlinuz" else vmlinuz.name.removeprefix("vmlinuz-")
