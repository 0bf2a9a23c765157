"""Sockets that are closed at one end only, in the kernel's own list."""

import ipaddress
import os
import socket

import pytest

from tests.kernel.test_headroom import QUIET, client
from tests.load.netns import link
from tests.load.paths import over_link
from twctl.advise.unclosed import in_close_wait, look_unclosed

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
        near, far = (look_unclosed(each.name, in_close_wait(each.name)) for each in (both.client, both.server))
        remote = ipaddress.ip_address(load.address[0]), load.address[1]
        assert (0, 7, {remote: 7}) == (near.close_wait.total(), near.orphans.total(), near.toward)
        assert (8, 0) == (far.close_wait.total(), far.orphans.total())
        assert near.orphans.keys() == far.close_wait.keys()
        assert None not in near.orphans
        assert {1} == {*far.closed_by.values()}  # each of another port of the client


def test_only_what_stays_in_close_wait_is_counted() -> None:
    """Of 23 that the peer has closed the program closes 7, and 5 more come: 16 were there at both looks."""
    with link(QUIET) as both, client(over_link(both), 1, closes=False) as load:
        for _ in range(28):
            load.connect(closes=False)
        near, far = load.kept[::2], load.kept[1::2]
        for end in far[:23]:
            end.close()
        before = in_close_wait(both.client.name)
        for end in [*near[:7], *far[23:]]:
            end.close()
        found = look_unclosed(both.client.name, before)
        remote = ipaddress.ip_address(load.address[0]), load.address[1]
        assert (23, 16, {remote: 16}) == (len(before), found.close_wait.total(), found.closed_by)
