"""What a look reads: all of few sockets, a piece of many, and what it makes of a piece."""

import ipaddress
import random
import socket
from collections.abc import Iterator, Sequence
from typing import cast

import pytest

from twctl.addresses import Endpoint
from twctl.linux.ports import Ports, parse_ports
from twctl.linux.procfs import Sockstat
from twctl.linux.sockdiag import SockDiag
from twctl.linux.sockdiag_messages import ENDS, Holder
from twctl.modes.headroom import Earlier, measure
from twctl.modes.holders import LOOK_SHARE, MOST_PAIRS, MOST_SOCKETS, look, pause, short_of_ports

PORTS = parse_ports("32768 60999", "")
ADDRESS = ipaddress.ip_address("192.0.2.7")
REMOTE = ADDRESS, 443
OTHER = ADDRESS, 80


def ends(local: str, remote: Endpoint = REMOTE) -> bytes:
    """The rest of a struct inet_diag_sockid."""
    return ENDS.pack(remote[1].to_bytes(2, "big"), ipaddress.ip_address(local).packed, remote[0].packed, 0)


class FakeKernel:
    """Lists the sockets that a test has made."""

    def __init__(self, holders: Sequence[Holder]) -> None:
        self.holders, self.listed = holders, 0

    def toward(self, remotes: Sequence[Endpoint], local_ports: Sequence[range]) -> Iterator[Holder]:
        """As SockDiag.toward."""
        assert remotes
        wanted = {port for each in local_ports for port in each}
        for holder in self.holders:
            if holder.local_port in wanted:
                self.listed += 1
                yield holder


def run_of_sessions(local: str, first: int, count: int) -> list[Holder]:
    """As connect() takes them: every other port from a random one on, with a second for each thousand."""
    return [
        Holder(socket.AF_INET, ends(local), 32768 + (first + 2 * i) % 28232, max(0.1, 60 - (count - i) / 1000))
        for i in range(count)
    ]


def test_few_sockets_are_counted_one_by_one() -> None:
    """In the range alone, and by address on the wire: dual-stack sockets hold the same ports."""
    mapped = ENDS.pack(
        (443).to_bytes(2, "big"),
        ipaddress.ip_address("::ffff:10.0.0.1").packed,
        bytes(10) + b"\xff\xff" + ADDRESS.packed,
        0,
    )
    kernel = FakeKernel(
        [
            Holder(socket.AF_INET, ends("10.0.0.1"), 40000, 23.0),
            Holder(socket.AF_INET6, mapped, 40001, None),
            Holder(socket.AF_INET, ends("10.0.0.1"), 80, 23.0),
            Holder(socket.AF_INET, ends("10.0.0.1", OTHER), 40002, 23.0),
        ]
    )
    piece = look(cast("SockDiag", kernel), PORTS, {REMOTE}, 4)
    assert (28232, 28232, 1.0) == (piece.ports, piece.all_ports, piece.scale)
    [(pair, held)] = piece.pairs.items()
    assert (ipaddress.ip_address("10.0.0.1"), REMOTE) == pair
    assert ([40000], [23.0], 1) == (list(held.ports), list(held.left), held.live)


def test_of_many_sockets_a_piece_stands_for_all() -> None:
    """With 35 addresses that hold 10,007 ports each: within 5 % of it, and no more than a look may read."""
    rng = random.Random(2011)  # noqa: S311 - the same each time
    holders = [
        each for i in range(35) for each in run_of_sessions(f"10.0.0.{i + 1}", rng.randrange(0, 28232, 2), 10_007)
    ]
    kernel = FakeKernel(holders)
    for turn in range(3):
        kernel.listed = 0
        piece = look(cast("SockDiag", kernel), PORTS, {REMOTE}, len(holders), turn)
        assert kernel.listed <= 1.05 * MOST_SOCKETS
        uses = measure(piece, "", {REMOTE: 60.0}, Earlier(5, {}))
        assert len(uses) == 35
        for use in uses:
            assert use.ports == 28232
            assert use.time_wait == pytest.approx(10_007, rel=0.05)
            assert use.rate == pytest.approx(1000, rel=0.15)


def test_the_turns_are_the_whole() -> None:
    """Each socket is listed in exactly one of them."""
    kernel = FakeKernel(run_of_sessions("10.0.0.1", 0, 14_000))
    sockets = 3 * MOST_SOCKETS
    ports = [
        list(held.ports)
        for turn in range(3)
        for held in look(cast("SockDiag", kernel), PORTS, {REMOTE}, sockets, turn).pairs.values()
    ]
    assert sorted(each.local_port for each in kernel.holders) == sorted(port for some in ports for port in some)


def test_pairs_without_end_take_no_more_memory() -> None:
    """As many as can matter are remembered."""
    kernel = FakeKernel(
        [
            Holder(socket.AF_INET, ends(str(ipaddress.ip_address(0x0A000000 + i))), 40000, 23.0)
            for i in range(MOST_PAIRS + 1009)
        ]
    )
    assert MOST_PAIRS == len(look(cast("SockDiag", kernel), PORTS, {REMOTE}, MOST_SOCKETS).pairs)


def test_a_range_of_few_ports_is_one_piece() -> None:
    """However many sockets there are."""
    assert 23 == look(cast("SockDiag", FakeKernel([])), Ports(1, 23, frozenset()), {REMOTE}, 10**9).ports


class FakeSockstat:
    """1009 mini-sockets, and 23 full ones."""

    def time_wait(self) -> int:
        """As Sockstat.time_wait."""
        return 1009

    def in_use(self) -> int:
        """As Sockstat.in_use."""
        return 23


@pytest.mark.parametrize(
    ("sessions", "least", "found"),
    [
        ({REMOTE: 100.0, OTHER: 10.0}, 124, ({}, 23)),
        ({REMOTE: 100.0, OTHER: 10.0}, 123, ({REMOTE: 100.0}, 123)),
        ({REMOTE: 100.0, OTHER: 10.0}, 33, ({REMOTE: 100.0, OTHER: 10.0}, 133)),
        ({REMOTE: float("inf"), OTHER: 10.0}, 1032, ({REMOTE: float("inf")}, 1032)),
        ({REMOTE: float("inf")}, 1033, ({}, 23)),
    ],
)
def test_who_cannot_hold_enough_ports_is_not_looked_at(
    sessions: dict[Endpoint, float], least: float, found: tuple[dict[Endpoint, float], float]
) -> None:
    """Entries bound sessions, and so does the kernel's count of mini-sockets; any live connection may go there."""
    assert found == short_of_ports(cast("Sockstat", FakeSockstat()), sessions, least)


def test_a_look_takes_its_share_of_a_cpu() -> None:
    """The longer it took, the later the next."""
    assert pause(5.0, 0.001) == 5.0
    assert 0.5 / (0.5 + pause(5.0, 0.5)) == pytest.approx(LOOK_SHARE)
