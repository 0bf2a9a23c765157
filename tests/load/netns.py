"""Network namespaces for tests: made, wired, entered, and always removed.

A socket stays for life in the namespace it was made in, so a test needs no subprocess: it makes the socket inside
(`Namespace.socket`) and uses it from anywhere.
"""

import ctypes
import ipaddress
import itertools
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.load import wait_until

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


def _setns(fd: int) -> None:
    # os.setns is new in Python 3.12
    if _libc.setns(fd, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


@dataclass(frozen=True)
class Namespace:
    """A named network namespace, as `ip netns` knows it."""

    name: str

    @property
    def path(self) -> Path:
        """What setns() and nsenter open."""
        return Path("/run/netns") / self.name

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread, and only it, is inside."""
        with Path("/proc/thread-self/ns/net").open() as home, self.path.open() as inside:
            _setns(inside.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def socket(self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket of this namespace, to be used from anywhere."""
        with self.entered():
            return socket.socket(family, kind, protocol)

    def read(self, name: str) -> str:
        """A file of this namespace's /proc/net."""
        with self.entered():
            # /proc/net is that of the main thread's namespace; the entered one belongs to this thread
            return Path("/proc/thread-self/net", name).read_text()

    def sysctl(self, name: str, value: object | None = None) -> str:
        """Read `net.*`, or write it first."""
        path = Path("/proc/sys", *name.split("."))
        with self.entered():
            if value is not None:
                path.write_text(str(value))
            return path.read_text().strip()

    def ip(self, *words: str) -> None:
        """Run `ip` inside."""
        _run("ip", "-n", self.name, *words)

    def command(self, *words: str) -> list[str]:
        """The command line that runs `words` inside."""
        # not `ip netns exec`: that one mounts a new /sys, which hides bpffs
        return ["nsenter", f"--net={self.path}", *words]

    def popen(self, *words: str) -> subprocess.Popen[str]:
        """A program started inside; its output is a pipe."""
        return subprocess.Popen(self.command(*words), text=True, stdout=subprocess.PIPE)


@contextmanager
def namespace(sysctls: Mapping[str, object] | None = None) -> Iterator[Namespace]:
    """A fresh namespace with lo up. `sysctls` are set inside it."""
    made = Namespace(f"twl-{os.getpid()}-{next(_numbers)}")
    _run("ip", "netns", "add", made.name)
    try:
        made.ip("link", "set", "lo", "up")
        for name, value in (sysctls or {}).items():
            made.sysctl(name, value)
        yield made
    finally:
        _run("ip", "netns", "del", made.name)


@dataclass(frozen=True)
class Link:
    """Two namespaces joined by a veth pair; the device has the same name at both ends."""

    client: Namespace
    server: Namespace
    device: str = "veth0"
    client_ipv4: str = "10.77.0.1"
    server_ipv4: str = "10.77.0.2"
    client_ipv6: str = "fd77::1"
    server_ipv6: str = "fd77::2"


@contextmanager
def link(sysctls: Mapping[str, object] | None = None) -> Iterator[Link]:
    """Client and server namespaces on one link, IPv4 and IPv6 addresses set. Deleting either end deletes the pair."""
    with ExitStack() as stack:
        made = Link(stack.enter_context(namespace(sysctls)), stack.enter_context(namespace(sysctls)))
        made.client.ip(
            *("link", "add", made.device, "type", "veth"),
            *("peer", "name", made.device, "netns", made.server.name),
        )
        for end, ipv4, ipv6 in (
            (made.client, made.client_ipv4, made.client_ipv6),
            (made.server, made.server_ipv4, made.server_ipv6),
        ):
            add_addresses(end, made.device, ipv4, ipv6)
        await_address(made.client, made.client_ipv6)
        await_address(made.server, made.server_ipv6)
        yield made


def add_addresses(ns: Namespace, device: str, ipv4: str, ipv6: str) -> None:
    """Give a device its addresses, and set it up. The IPv6 address is usable when `await_address` says so."""
    ns.ip("address", "add", f"{ipv4}/24", "dev", device)
    # nodad: else the address is tentative, and not to be bound, for a second
    ns.ip("address", "add", f"{ipv6}/64", "dev", device, "nodad")
    ns.ip("link", "set", device, "up")


def await_address(ns: Namespace, ipv6: str) -> None:
    """Return when the kernel takes in packets to an address that was just added.

    Even without duplicate address detection the route to it is made by a work queue (addrconf_dad_work()), which waits
    for the link; a SYN|ACK that comes before is lost, and costs a second.
    """
    route = f"{ipaddress.IPv6Address(ipv6).packed.hex()} 80 "
    wait_until(lambda: route in ns.read("ipv6_route"), what=f"a local route to {ipv6}")
