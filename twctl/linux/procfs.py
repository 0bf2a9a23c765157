"""What the kernel itself counts and spends: its TIME_WAIT sockets, their size, and the ports they can hold."""

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from twctl.linux.netns import inside
from twctl.linux.ports import Ports, parse_ports

BYTES = 1 << 18  # more than any of these files has; a sysctl has to be read at once


class _Open:
    """A file that stays open, in the namespace it was opened in.

    The metrics' threads and the daemon's read it side by side: none moves a position that another reads from.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)

    def read(self) -> str:
        """The whole content, as it is now."""
        return os.pread(self._file.fileno(), BYTES, 0).decode()

    def close(self) -> None:
        """Close it."""
        self._file.close()


class Sockstat:
    """One namespace's /proc/net/sockstat and sockstat6, kept open: they show the namespace they were opened in."""

    def __init__(self, netns: str | None = None) -> None:
        # Without IPv6 there is no sockstat6.
        names = ("sockstat", "sockstat6")
        self._files = inside(
            netns, lambda: [_Open(file) for name in names if (file := Path("/proc/thread-self/net", name)).exists()]
        )

    def time_wait(self) -> int:
        """Mini-sockets of this namespace, TIME_WAIT and FIN_WAIT2 together, IPv4 and IPv6."""
        return self._number(self._files[0], "tw")

    def orphans(self) -> int:
        """TCP sockets without an application, of all network namespaces."""
        return self._number(self._files[0], "orphan")

    def in_use(self) -> int:
        """Full TCP sockets of this namespace in any state but CLOSE, IPv4 and IPv6."""
        return sum(self._number(file, "inuse") for file in self._files)

    @staticmethod
    def _number(file: _Open, name: str) -> int:
        """Of the line of TCP, which has names and numbers in turn."""
        words = next(line for line in file.read().splitlines() if line.startswith(("TCP:", "TCP6:"))).split()
        return int(words[words.index(name) + 1])

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def counts_entries(release: str | None = None) -> bool:
    """Whether TcpExt TW and TWKilled count sessions that enter TIME_WAIT; before Linux 5.18 those that expire there.

    Source: __inet_twsk_schedule(), tw_timer_handler(). A kernel that has it from a later one is taken for an old one.
    """
    major, minor = (release or os.uname().release).split(".")[:2]
    return (int(major), int(re.match(r"\d+", minor)[0])) >= (5, 18)  # type: ignore[index]


OVERFLOW = "TCPTimeWaitOverflow"


class EntryCount:
    """One namespace's /proc/net/netstat, kept open: it shows the namespace it was opened in."""

    def __init__(self, netns: str | None = None) -> None:
        self._file = inside(netns, lambda: _Open(Path("/proc/thread-self/net/netstat")))
        self._entered = ("TW", "TWKilled") if counts_entries() else ()

    def count(self) -> int:
        """Sessions that tcp_max_tw_buckets kept out of TIME_WAIT, and those that entered it if they are counted."""
        return self._sum(OVERFLOW, *self._entered)

    def overflow(self) -> int:
        """Sessions that tcp_max_tw_buckets kept out of TIME_WAIT."""
        return self._sum(OVERFLOW)

    def _sum(self, *wanted: str) -> int:
        names, numbers = (line.split() for line in self._file.read().splitlines() if line.startswith("TcpExt:"))
        return sum(int(numbers[names.index(name)]) for name in wanted)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PortRange:
    """One namespace's sysctls about ports, kept open: they show the namespace they were opened in."""

    def __init__(self, netns: str | None = None) -> None:
        names = (
            "ip_local_port_range",
            "ip_local_reserved_ports",
            "tcp_timestamps",
            "tcp_tw_reuse",
            "tcp_tw_reuse_delay",
        )
        self._files = inside(netns, lambda: [_Open(file) for file in _existing(names)])

    def ports(self) -> int:
        """How many ports the kernel chooses from."""
        return len(self.range())

    def range(self) -> Ports:
        """Which they are."""
        return parse_ports(self._read(0), self._read(1))

    def reuse(self) -> tuple[int, float]:
        """tcp_tw_reuse, 0 where there are no timestamps, and tcp_tw_reuse_delay (s), before Linux 6.14 always 1 s."""
        delay = int(self._read(4)) / 1000 if len(self._files) > 4 else 1.0  # noqa: PLR2004
        return int(self._read(3)) if int(self._read(2)) else 0, delay

    def _read(self, number: int) -> str:
        return self._files[number].read()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def _existing(names: Iterable[str]) -> Iterator[Path]:
    return (file for name in names if (file := Path("/proc/sys/net/ipv4", name)).exists())


class MaxOrphans:
    """tcp_max_orphans, kept open. Only the initial network namespace shows it."""

    def __init__(self, path: Path = Path("/proc/sys/net/ipv4/tcp_max_orphans")) -> None:
        self._file = _Open(path) if path.exists() else None

    def count(self) -> float:
        """Above so many the kernel resets orphans; inf: not known."""
        return int(self._file.read()) if self._file else math.inf

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


class _Number:
    """A sysctl of one namespace that is a number, kept open: it shows the namespace it was opened in."""

    def __init__(self, name: str, netns: str | None) -> None:
        self._file = inside(netns, lambda: _Open(Path("/proc/sys/net/ipv4", name)))

    def _read(self) -> int:
        return int(self._file.read())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class MaxTimeWait(_Number):
    """One namespace's tcp_max_tw_buckets."""

    def __init__(self, netns: str | None = None) -> None:
        super().__init__("tcp_max_tw_buckets", netns)

    def count(self) -> int:
        """So many mini-sockets the kernel keeps there at most."""
        return self._read()


@dataclasses.dataclass(frozen=True, slots=True)
class SocketBytes:
    """What the slab allocator spends on one TIME_WAIT session, in bytes: mini-socket, and the port it holds alone."""

    mini: int
    port: int


def socket_bytes(slab: Path = Path("/sys/kernel/slab")) -> SocketBytes:
    """Read the sizes of this kernel's slab caches; a cache that is not there counts as nothing."""
    sizes = {name: _slab_size(slab / name) for name in ("tw_sock_TCP", "tcp_bind_bucket", "tcp_bind2_bucket")}
    return SocketBytes(sizes["tw_sock_TCP"], sizes["tcp_bind_bucket"] + sizes["tcp_bind2_bucket"])


def _slab_size(cache: Path) -> int:
    try:
        return int((cache / "slab_size").read_text())
    except FileNotFoundError:
        return 0


def ephemeral_ports(proc: Path = Path("/proc")) -> range:
    """Return the local ports that the kernel chooses from (net.ipv4.ip_local_port_range)."""
    low, high = (proc / "sys/net/ipv4/ip_local_port_range").read_text().split()
    return range(int(low), int(high) + 1)
