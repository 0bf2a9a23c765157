"""The prefixes that the probes ask for a peer's class: an LPM trie of each family, shared by all namespaces."""

import os
import struct

from twctl.addresses import FAMILIES, Network, family_of
from twctl.classes import Class
from twctl.linux import libbpf
from twctl.table.maps import Table
from twctl.table.shared import STRUCTS

PREFIXES = {
    family: STRUCTS[name].packer(raw=("netns", "address"))
    for family, name in (("ipv4", "prefix4"), ("ipv6", "prefix6"))
}
FAMILY_OF_SIZE = {prefix.size: family for family, prefix in PREFIXES.items()}


class ClassTries:
    """The prefixes that the probes ask, of one enrolled namespace.

    refused: int, how many of the last `sync` have no room.
    """

    def __init__(self, table: Table, index: int) -> None:
        self._index = struct.pack("=I", index)
        self._fds = {family: table.fd(f"classes_{family}") for family in FAMILIES}
        self._known: dict[bytes, int] = {}
        for family, fd in self._fds.items():
            for key, value in libbpf.map_items(fd).items():
                if PREFIXES[family].unpack(key)[1] == self._index:
                    self._known[key] = int(struct.unpack("=I", value)[0])
        self.refused = 0

    def close(self) -> None:
        """Close the maps; the prefixes stay."""
        for fd in self._fds.values():
            os.close(fd)

    def sync(self, wanted: dict[Network, Class]) -> None:
        """Make the tries hold exactly these prefixes. What does not fit (65,536 a family) is refused."""
        refused = 0
        keys = {self._key(prefix): int(class_) for prefix, class_ in wanted.items()}
        for key in self._known.keys() - keys.keys():
            libbpf.map_delete(self._fds[FAMILY_OF_SIZE[len(key)]], key)
            del self._known[key]
        for key, class_ in keys.items():
            if self._known.get(key) != class_:
                try:
                    libbpf.map_update(self._fds[FAMILY_OF_SIZE[len(key)]], key, struct.pack("=I", class_))
                    self._known[key] = class_
                except OSError:
                    refused += 1
        self.refused = refused

    def _key(self, prefix: Network) -> bytes:
        """The trie's key; its length counts the index's bits, too."""
        length = 8 * len(self._index) + prefix.prefixlen
        return PREFIXES[family_of(prefix)].pack(length, self._index, prefix.network_address.packed)

    def counts(self) -> dict[tuple[Class, str], int]:
        """Count the prefixes by class and family."""
        result = {(class_, family): 0 for class_ in Class for family in FAMILIES}
        for key, class_ in list(self._known.items()):  # a scrape's thread asks, too
            result[Class(class_), FAMILY_OF_SIZE[len(key)]] += 1
        return result
