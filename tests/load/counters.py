"""What the kernel itself says about TIME_WAIT in a namespace: its counters and its mini-sockets."""

import ipaddress
import socket
import struct
from dataclasses import dataclass

from tests.load.netns import Namespace

# Numbers of include/net/tcp_states.h, as /proc/net/tcp prints them.
ESTABLISHED, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, LAST_ACK, LISTEN, CLOSING = 1, 4, 5, 6, 7, 9, 10, 11

# get_timewait4_sock() prints 3 as the timer of every mini-socket, and no full socket has that number.
MINI_SOCKET_TIMER = 3


@dataclass(frozen=True)
class Socket:
    """One line of /proc/net/tcp or tcp6. Mapped addresses are given as the IPv4 addresses they are on the wire."""

    local: str
    local_port: int
    remote: str
    remote_port: int
    state: int
    timer: int
    inode: int
    table: str  # "tcp" or "tcp6": the family of the socket, not that of the segments

    @property
    def tuple(self) -> tuple[str, int, str, int]:
        """What identifies it on the wire."""
        return self.local, self.local_port, self.remote, self.remote_port

    @property
    def mini(self) -> bool:
        """A mini-socket: TIME_WAIT, or FIN_WAIT2 of an orphan."""
        return self.timer == MINI_SOCKET_TIMER and self.inode == 0


def tcpext(ns: Namespace) -> dict[str, int]:
    """TcpExt of /proc/net/netstat: TCPTimeWaitOverflow, TWRecycled, TW, TWKilled...

    Despite their names TW and TWKilled tell two kinds of entry (seen on 6.18): a mini-socket made for more than 4 s
    counts as TW, one made for less as TWKilled, both when its timer is first set.
    """
    return _table(ns.read("netstat"), "TcpExt:")


def tcp(ns: Namespace) -> dict[str, int]:
    """Tcp of /proc/net/snmp: ActiveOpens, EstabResets, OutRsts..."""
    return _table(ns.read("snmp"), "Tcp:")


def _table(text: str, title: str) -> dict[str, int]:
    names, values = (line.split()[1:] for line in text.splitlines() if line.split()[0] == title)
    return dict(zip(names, map(int, values), strict=True))


def time_wait_count(ns: Namespace) -> int:
    """`tw` of sockstat: mini-sockets of both kinds, TIME_WAIT and FIN_WAIT2, of both families."""
    words = next(line for line in ns.read("sockstat").splitlines() if line.startswith("TCP:")).split()
    return int(words[words.index("tw") + 1])


def sockets(ns: Namespace) -> list[Socket]:
    """Every TCP socket of the namespace."""
    return [_socket(line.split(), table) for table in ("tcp", "tcp6") for line in ns.read(table).splitlines()[1:]]


def all_closed(ns: Namespace) -> bool:
    """Every connection of the namespace, which closes first, is over at both ends: TIME_WAIT at most is left."""
    return all(one.state == TIME_WAIT for one in sockets(ns))


def mini_sockets(ns: Namespace) -> list[Socket]:
    """The kernel's TIME_WAIT and FIN_WAIT2 mini-sockets."""
    return [one for one in sockets(ns) if one.mini]


def _socket(words: list[str], table: str) -> Socket:
    (local, local_port), (remote, remote_port) = _endpoint(words[1]), _endpoint(words[2])
    return Socket(
        local=local,
        local_port=local_port,
        remote=remote,
        remote_port=remote_port,
        state=int(words[3], 16),
        timer=int(words[5].split(":")[0], 16),
        inode=int(words[9]),
        table=table,
    )


def _endpoint(text: str) -> tuple[str, int]:
    address, port = text.split(":")
    # the kernel prints the address as 32-bit words in the machine's own byte order, the port as a number
    words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
    raw = struct.pack(f"={len(words)}I", *words)
    return plain(socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)), int(port, 16)


def plain(address: str) -> str:
    """The address as it is on the wire: ::ffff:192.0.2.1 is 192.0.2.1."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)
