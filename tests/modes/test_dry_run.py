"""The dry run of the modes, over sessions that a test wrote down."""

import dataclasses

from tests.table.test_records import IPV4
from twctl.classes import Class
from twctl.linux.procfs import SocketBytes
from twctl.modes.dry_run import Freed, freed
from twctl.table.records import decode

TIMES = {Class.LOOPBACK: 2.0, Class.LOCAL: 10.0, Class.REMOTE: 60.0}
ONE = decode("ipv4", IPV4, class_=Class.LOCAL, expires_in=50, age=11, names={})


def test_truncate_frees_what_is_older_than_its_class_and_ports_that_nobody_else_holds() -> None:
    """Two old sessions on two ports; a young one keeps one of the ports."""
    other = dataclasses.replace(ONE, local_port=40001)
    young = dataclasses.replace(ONE, age=1.0, remote_port=1)
    size = SocketBytes(mini=256, port=256)
    assert {
        "truncate": Freed(sessions=2, ports=1, bytes=2 * 256 + 256),
        "vestigial": Freed(sessions=3, ports=2, bytes=3 * 256 + 2 * 256 - 3 * 32),
    } == freed([ONE, other, young], TIMES, range(32768, 61000), size)


def test_a_server_s_port_is_not_freed() -> None:
    """Only ephemeral ports are held by sessions alone."""
    server = dataclasses.replace(ONE, local_port=443)
    assert freed([server], TIMES, range(32768, 61000), SocketBytes(256, 256))["truncate"].ports == 0
