"""The tries that the probes ask for a peer's class: the prefixes of one enrolled namespace."""

import ipaddress
import os
import struct

from twctl.addresses import FAMILIES, Network, family_of
from twctl.classes import Class
from twctl.linux import libbpf
from twctl.table.maps import Table

# struct prefix4 and prefix6 (bpf/observe/socket.h): bits of what follows, namespace index, address
_START = struct.Struct("=II")
_INDEX_BITS = 32


class ClassTries:
    """The prefixes that the probes ask, of one enrolled namespace."""

    def __init__(self, table: Table, index: int) -> None:
        self._index = index
        self._fds = {family: table.fd(f"classes_{family}") for family in FAMILIES}
        self._known: dict[bytes, int] = {}
        for fd in self._fds.values():
            items = libbpf.map_items(fd)
            mine = {key: value for key, value in items.items() if _START.unpack_from(key)[1] == index}
            self._known |= {key: int(struct.unpack("=I", value)[0]) for key, value in mine.items()}
        self.refused = 0

    def close(self) -> None:
        """Close the maps; the prefixes stay."""
        for fd in self._fds.values():
            os.close(fd)

    def sync(self, wanted: dict[Network, Class]) -> None:
        """Make the tries hold exactly these prefixes. What does not fit (65,536 a family) is counted as refused."""
        keys = {self._key(prefix): int(class_) for prefix, class_ in wanted.items()}
        for key in self._known.keys() - keys.keys():
            libbpf.map_delete(self._fd(key), key)
            del self._known[key]
        for key, class_ in keys.items():
            if self._known.get(key) != class_:
                self._set(key, class_)

    def _set(self, key: bytes, class_: int) -> None:
        try:
            libbpf.map_update(self._fd(key), key, struct.pack("=I", class_))
            self._known[key] = class_
        except OSError:
            self.refused += 1

    def _key(self, prefix: Network) -> bytes:
        return _START.pack(_INDEX_BITS + prefix.prefixlen, self._index) + prefix.network_address.packed

    def _fd(self, key: bytes) -> int:
        return self._fds[_family(key)]

    def counts(self) -> dict[tuple[Class, str], int]:
        """Count the prefixes by class and family."""
        result = {(class_, family): 0 for class_ in Class for family in FAMILIES}
        for key, class_ in self._known.items():
            result[Class(class_), _family(key)] += 1
        return result


def _family(key: bytes) -> str:
    return family_of(ipaddress.ip_address(key[_START.size :]))
