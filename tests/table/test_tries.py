"""Prefixes that go into the tries, which a test keeps in dictionaries."""

from ipaddress import ip_network
from typing import cast

import pytest

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.maps import Table
from twctl.table.tries import FAMILY_OF_SIZE, ClassTries

TRIES: dict[int, dict[bytes, bytes]] = {}
ROOM = 3


class FakeTable:
    """A table whose maps are 4 (IPv4) and 6 (IPv6)."""

    def fd(self, name: str) -> int:
        """By its last letter."""
        return int(name[-1])


@pytest.fixture(autouse=True)
def tries(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[bytes, bytes]]:
    """Two empty tries with room for three prefixes each."""
    TRIES.clear()
    TRIES.update({4: {}, 6: {}})

    def update(fd: int, key: bytes, value: bytes) -> None:
        if len(TRIES[fd] | {key: value}) > ROOM:
            raise OSError
        TRIES[fd][key] = value

    monkeypatch.setattr("twctl.linux.libbpf.map_update", update)
    monkeypatch.setattr("twctl.linux.libbpf.map_delete", lambda fd, key: TRIES[fd].pop(key))
    monkeypatch.setattr("twctl.linux.libbpf.map_items", lambda fd: dict(TRIES[fd]))
    return TRIES


def of(index: int) -> ClassTries:
    """A namespace's."""
    return ClassTries(cast("Table", FakeTable()), index)


def test_a_key_is_length_namespace_and_address() -> None:
    """The length counts the 32 bits of the namespace; the address stands as on the wire."""
    of(5).sync({ip_network("10.1.0.0/16"): Class.LOCAL, ip_network("2001:db8::/32"): Class.REMOTE})
    assert TRIES[4] == {b"\x30\0\0\0\x05\0\0\0\x0a\x01\0\0": b"\x01\0\0\0"}
    assert TRIES[6] == {b"\x40\0\0\0\x05\0\0\0\x20\x01\x0d\xb8" + bytes(12): b"\x02\0\0\0"}


def test_only_differences_are_written_and_other_namespaces_stay() -> None:
    """Also by a daemon that finds the prefixes of an earlier one."""
    of(1).sync({ip_network("10.0.0.0/8"): Class.LOCAL})
    of(2).sync({ip_network("10.0.0.0/8"): Class.LOCAL, ip_network("10.1.0.0/16"): Class.REMOTE})
    again = of(2)
    assert {Class.LOCAL: 1, Class.REMOTE: 1} == {
        class_: count for (class_, family), count in again.counts().items() if count and family == "ipv4"
    }
    again.sync({ip_network("10.1.0.0/16"): Class.LOCAL})
    assert len(TRIES[4]) == 2
    assert again.counts() == {(class_, f): 0 for class_ in Class for f in FAMILIES} | {(Class.LOCAL, "ipv4"): 1}


def test_what_has_no_room_is_counted() -> None:
    """Once, however often it is tried again, and no more when it has found room."""
    tries = of(1)
    wanted = {ip_network(f"10.{i}.0.0/16"): Class.LOCAL for i in range(5)}
    for _ in range(2):
        tries.sync(wanted)
        assert (2, 3) == (tries.refused, tries.counts()[Class.LOCAL, "ipv4"])
    wanted.popitem()
    tries.sync(wanted)
    assert 1 == tries.refused
    tries.sync({})
    assert 0 == tries.refused


def test_a_scrape_counts_while_a_sync_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread's, which adds a prefix as the others are counted."""
    tries = of(1)
    wanted = {ip_network("10.0.0.0/16"): Class.LOCAL, ip_network("10.1.0.0/16"): Class.LOCAL}
    tries.sync(wanted)

    class Meanwhile(dict[int, str]):
        """Sizes of keys, where to look for one is the moment."""

        def __getitem__(self, size: int) -> str:
            if len(wanted) == len(TRIES[4]):
                wanted[ip_network("10.2.0.0/16")] = Class.LOCAL
                tries.sync(wanted)
            return super().__getitem__(size)

    monkeypatch.setattr("twctl.table.tries.FAMILY_OF_SIZE", Meanwhile(FAMILY_OF_SIZE))
    assert 2 == tries.counts()[Class.LOCAL, "ipv4"]
    assert 3 == tries.counts()[Class.LOCAL, "ipv4"]
