"""A host of a test's own, for a daemon that works in every namespace it finds: it must not find the machine's.

It is a mount namespace with an empty /run/netns and /var/log, and a network namespace that a daemon there takes for
its own.
"""

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.load.netns import Namespace

_numbers = itertools.count()
_EMPTY = " && ".join(f"mount -t tmpfs twctl-test {folder}" for folder in ("/run/netns", "/var/log"))
_BEGIN = f"{_EMPTY} && ip link set lo up && echo ready && exec sleep infinity"


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


@dataclass(frozen=True)
class Place(Namespace):
    """A network namespace that has no name in the test's own /run/netns, but a path."""

    def ip(self, *words: str) -> None:
        """Run `ip` inside; its -n takes no path."""
        _run(*self.command("ip", *words))


@dataclass(frozen=True)
class Host:
    """A host, known by the number of a process in it."""

    pid: int

    @property
    def own(self) -> Namespace:
        """The network namespace that a daemon here takes for its own."""
        return Place(f"/proc/{self.pid}/ns/net")

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words before a command that is to run here."""
        return ("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", f"--net=/proc/{self.pid}/ns/net")

    def run(self, *words: str) -> None:
        """Run a command here to its end."""
        _run(*self.prefix, *words)

    def add(self, name: str = "") -> Namespace:
        """A new network namespace with lo up, which only its name here keeps."""
        name = name or f"cni-{next(_numbers)}"
        self.run("ip", "netns", "add", name)
        made = Place(f"/proc/{self.pid}/root/run/netns/{name}")
        made.ip("link", "set", "lo", "up")
        return made

    def delete(self, ns: Namespace) -> None:
        """Take its name away."""
        self.run("ip", "netns", "del", ns.path.name)


@contextmanager
def host() -> Iterator[Host]:
    """A host that goes with the block, and its namespaces with it."""
    Path("/run/netns").mkdir(exist_ok=True)
    command = ("unshare", "--mount", "--net", "--propagation", "slave", "sh", "-c", _BEGIN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == "ready\n"
            yield Host(holder.pid)
        finally:
            holder.kill()
