"""What is said of the ports toward a destination: which are the worst, of a piece and of all, and as a table."""

import ipaddress
from array import array

from twctl.modes.headroom import Earlier, Use, lines, measure, row, worst
from twctl.modes.holders import Held, Piece

REMOTE = ipaddress.ip_address("192.0.2.7")


def test_the_worst_come_first_and_lines_fit() -> None:
    """At most as many as asked for, none below the least share; 80 columns with any address."""
    local = ipaddress.ip_address("10.0.0.1")
    long = ipaddress.ip_address("2001:db8:1111:2222:3333:4444:5555:6666")
    uses = [Use("", local, REMOTE, 443, 1000, held, 23, 99999.0, None) for held in (10, 900, 500)]
    uses.append(Use("", long, long, 65535, 28232, 28000, 232, 12345.0, 0.0))
    assert [28000, 900] == [use.time_wait for use in worst(uses, 2)]
    assert [] == worst(uses[:1], 5)
    assert max(len(line) for line in lines(uses)) <= 80
    assert {"used": 0.923, "remote": "192.0.2.7"}.items() <= row(uses[1]).items()


def test_the_most_used_pairs_are_foreseen_and_live_ones_that_become_more() -> None:
    """Of a piece of a tenth of the ports, scaled up; a few more live ones than before are mere chance."""
    local = ipaddress.ip_address("10.0.0.1")
    pairs = {
        (local, (REMOTE, port)): Held(array("H", range(held)), array("f", [59.0 - i / 23 for i in range(held)]), live)
        for port, held, live in ((80, 101, 0), (443, 11, 997), (8443, 3, 5))
    }
    piece = Piece(2823, 28230, pairs)
    times = {(REMOTE, port): 60.0 for port in (80, 443, 8443)}
    uses = measure(piece, "blue", times, Earlier(5.0, {(local, (REMOTE, 443)): 9000.0}), 2)
    assert [(443, 110, 9970), (80, 1010, 0)] == [(use.remote_port, use.time_wait, use.live) for use in uses]
    assert [28230, 28230] == [use.ports for use in uses]
    assert uses[0].rate >= 970 / 5
    assert Earlier(5.0, {(local, (REMOTE, 443)): 9900.0}).growth((local, (REMOTE, 443)), 9970, 10) == 0
