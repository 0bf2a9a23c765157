"""The local ports that connect() chooses from."""

import dataclasses


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


def parse_ports(port_range: str, reserved: str) -> Ports:
    """Read the two sysctls, such as "32768 60999" and "8080,9000-9010" (or nothing)."""
    first, last = map(int, port_range.split())
    kept: set[int] = set()
    for part in filter(None, reserved.strip().split(",")):
        low, _, high = part.partition("-")
        kept.update(range(int(low), int(high or low) + 1))
    return Ports(first, last, frozenset(kept))
