"""Sockets that are closed at one end only, in the kernel's own list."""

import ipaddress
import os
import socket

import pytest

from tests.kernel.test_headroom import QUIET, client
from tests.load.netns import link
from tests.load.paths import over_link
from twctl.advise.unclosed import look_unclosed

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="namespaces need root; TWCTL_TEST_KERNEL=1 forces it",
)

# Up to 60 s an orphan in FIN_WAIT2 is a mini-socket at once.
ORPHANS_STAY = {"net.ipv4.tcp_fin_timeout": 120}


def test_what_is_closed_at_one_end_only_is_counted_by_owner() -> None:
    """Of 23 connections the client closes 7: orphans there, toward the server; in CLOSE_WAIT at the server."""
    with link(QUIET | ORPHANS_STAY) as both, client(over_link(both), 1, closes=False) as load:
        for _ in range(23):
            load.connect(closes=False)
        load.kept[2].shutdown(socket.SHUT_WR)  # that one has its owner still
        for end in load.kept[4:18:2]:
            end.close()
        near, far = look_unclosed(both.client.name), look_unclosed(both.server.name)
        remote = ipaddress.ip_address(load.address[0]), load.address[1]
        assert (0, 7, {remote: 7}) == (near.close_wait.total(), near.orphans.total(), near.toward)
        assert (8, 0) == (far.close_wait.total(), far.orphans.total())
        assert near.orphans.keys() == far.close_wait.keys()
        assert None not in near.orphans
