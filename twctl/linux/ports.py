"""The local ports that connect() chooses from."""

import dataclasses
from collections.abc import Iterable

BLOCKS = 64  # a piece of a range is taken from this many places of it, evenly


@dataclasses.dataclass(frozen=True, slots=True)
class Ports:
    """What connect() chooses local ports from: ip_local_port_range without ip_local_reserved_ports.

    A socket's own range (IP_LOCAL_PORT_RANGE) is not known to anybody else.
    """

    first: int
    last: int
    reserved: frozenset[int]

    def __len__(self) -> int:
        return self.last - self.first + 1 - sum(self.first <= port <= self.last for port in self.reserved)

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last and port not in self.reserved

    def pieces(self) -> int:
        """The most pieces that the range can be cut into."""
        return max(1, (self.last - self.first + 1) // 2 // BLOCKS)

    def piece(self, number: int, pieces: int) -> list[range]:
        """Return the ports of one of some pieces, in order: part of each of BLOCKS blocks that the range is cut into.

        The kernel hands out ports in runs, of one parity first (__inet_hash_connect()): so a piece has something of
        everywhere, and whole pairs of an even and an odd port. number: 0 to pieces - 1; pieces: at most `pieces()`.
        """
        if pieces == 1:
            return [range(self.first, self.last + 1)]
        pairs = (self.last - self.first + 2) // 2
        edges = [pairs * part // (BLOCKS * pieces) for part in range(BLOCKS * pieces + 1)]
        cuts = [(edges[part], edges[part + 1]) for part in range(number, BLOCKS * pieces, pieces)]
        return [range(self.first + 2 * a, min(self.first + 2 * b, self.last + 1)) for a, b in cuts]

    def count(self, ranges: Iterable[range]) -> int:
        """How many ports of these ranges connect() may choose. The ranges lie within this one."""
        ranges = list(ranges)
        return sum(map(len, ranges)) - sum(port in part for port in self.reserved for part in ranges)


def parse_ports(port_range: str, reserved: str) -> Ports:
    """Read the two sysctls, such as "32768 60999" and "8080,9000-9010" (or nothing)."""
    first, last = map(int, port_range.split())
    kept: set[int] = set()
    for part in filter(None, reserved.strip().split(",")):
        low, _, high = part.partition("-")
        kept.update(range(int(low), int(high or low) + 1))
    return Ports(first, last, frozenset(kept))
