"""The ports that connect() chooses from, and the pieces that a range is cut into."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twctl.linux.ports import BLOCKS, Ports, parse_ports


@pytest.mark.parametrize(
    ("port_range", "reserved", "count"),
    [("32768\t60999\n", "\n", 28232), ("40000 40022", "40001,40005-40009,80", 17), ("1 1", "1", 0)],
)
def test_reserved_ports_are_not_chosen(port_range: str, reserved: str, count: int) -> None:
    """The range without what is reserved inside of it."""
    ports = parse_ports(port_range, reserved)
    assert count == len(ports) == sum(port in ports for port in range(65536))


@given(st.integers(1, 65535), st.integers(1, 65535), st.integers(1, 1009), st.sets(st.integers(1, 65535)))
def test_the_pieces_are_the_range(one: int, other: int, wanted: int, reserved: set[int]) -> None:
    """Each port is in exactly one piece, each piece is in order, and counts what connect() may choose of it."""
    ports = Ports(min(one, other), max(one, other), frozenset(reserved))
    pieces = min(wanted, ports.pieces())
    parts = [ports.piece(number, pieces) for number in range(pieces)]
    found = [port for part in parts for each in part for port in each]
    assert list(range(ports.first, ports.last + 1)) == sorted(found)
    assert all(part == sorted(part, key=lambda each: each.start) for part in parts)
    assert all(each for part in parts for each in part)
    assert [sum(port in ports for each in part for port in each) for part in parts] == [*map(ports.count, parts)]


def test_a_piece_has_something_of_everywhere_and_as_many_even_as_odd_ports() -> None:
    """Of the default range: what the kernel hands out in runs, and of one parity first, is seen in proportion."""
    ports = parse_ports("32768 60999", "")
    for number in range(37):
        part = ports.piece(number, 37)
        assert len(part) == BLOCKS
        assert all(each.start % 2 == 0 and len(each) % 2 == 0 for each in part)
        assert sum(map(len, part)) == pytest.approx(28232 / 37, rel=0.02)
        held = sum(port % 2 == 0 and 40000 <= port < 50000 for each in part for port in each)
        assert held * 28232 / ports.count(part) == pytest.approx(5000, rel=0.05)
