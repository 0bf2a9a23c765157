"""The snapshot's walk through the sessions; the whole is taken of real scenes in tests/kernel/test_scenes.py."""

import dataclasses
import ipaddress

from tests.table.test_records import IPV4
from twctl.advise.take import Walk
from twctl.classes import Class
from twctl.linux.ports import Ports
from twctl.modes.headroom import Use
from twctl.table.records import decode

ONE = decode("ipv4", IPV4, class_=Class.LOCAL, fin_wait2=False, expires_in=50, age=11, names={})
PORTS = Ports(40000, 41008, frozenset())


def test_a_walk_counts_who_has_timestamps_as_sessions_pass() -> None:
    """Of the endpoints that are wanted; of sessions that were taken over nothing is known."""
    key = ONE.netns, (ONE.remote, ONE.remote_port)
    stamped, plain = (dataclasses.replace(ONE, known=True, ts_recent=recent) for recent in (1, None))
    unknown, other = dataclasses.replace(plain, known=False), dataclasses.replace(plain, remote_port=1)
    walk, sessions = Walk({key: PORTS}), [stamped, stamped, plain, unknown, other]
    assert sessions == list(walk.passing(sessions))
    assert ({key: Class.LOCAL}, {key: 2}, {key: 1}) == (walk.classes, walk.stamped, walk.plain)


def test_sessions_without_timestamps_hold_ports_of_their_own_local_address() -> None:
    """23 of one address and 29 of another are not 52 of each; nor is one on a port that connect() does not choose."""
    key = ONE.netns, (ONE.remote, ONE.remote_port)
    plain = dataclasses.replace(ONE, known=True, ts_recent=None)
    near, far = ONE.local, ipaddress.ip_address("10.0.0.2")
    sessions = [
        dataclasses.replace(plain, local=local, local_port=port)
        for local, count in ((near, 23), (far, 29))
        for port in (PORTS.first - 1, *range(PORTS.first, PORTS.first + count))
    ]
    walk = Walk({key: PORTS})
    assert sessions == list(walk.passing(sessions))
    use = Use(ONE.netns, near, *key[1], len(PORTS), time_wait=7, live=3, rate=0.0, seconds_left=None)
    assert dataclasses.replace(use, time_wait=23) == walk.with_plain(use)
    assert 29 == walk.with_plain(dataclasses.replace(use, local=far)).time_wait
    assert 31 == walk.with_plain(dataclasses.replace(use, time_wait=31)).time_wait
