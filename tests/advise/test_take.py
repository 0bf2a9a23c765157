"""The snapshot's walk through the sessions; the whole is taken of real scenes in tests/kernel/test_scenes.py."""

import dataclasses

from tests.table.test_records import IPV4
from twctl.advise.take import Walk
from twctl.classes import Class
from twctl.table.records import decode

ONE = decode("ipv4", IPV4, class_=Class.LOCAL, fin_wait2=False, expires_in=50, age=11, names={})


def test_a_walk_counts_who_has_timestamps_as_sessions_pass() -> None:
    """Of the endpoints that are wanted; of sessions that were taken over nothing is known."""
    key = ONE.netns, (ONE.remote, ONE.remote_port)
    stamped, plain = (dataclasses.replace(ONE, known=True, ts_recent=recent) for recent in (1, None))
    unknown, other = dataclasses.replace(plain, known=False), dataclasses.replace(plain, remote_port=1)
    walk, sessions = Walk({key}), [stamped, stamped, plain, unknown, other]
    assert sessions == list(walk.passing(sessions))
    assert ({key: Class.LOCAL}, {key: 2}, {key: 1}) == (walk.classes, walk.stamped, walk.plain)
