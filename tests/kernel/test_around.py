"""The kernel's own lists around the ports that connect() chooses from."""

import ipaddress
import os
import socket

import pytest

from tests.kernel.test_headroom import QUIET, client
from tests.load.netns import link
from tests.load.paths import over_link
from twctl.advise.around import cgroup_of, look_around

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="namespaces need root; TWCTL_TEST_KERNEL=1 forces it",
)


def test_each_kind_of_socket_is_counted_for_itself() -> None:
    """Connections with their peers, what the peer has closed, listeners, and ports that are bound alone."""
    with link(QUIET) as both, client(over_link(both), 1, closes=False) as load:
        for _ in range(23):
            load.connect(closes=False)
        load.connect(closes=True)  # it is no live one
        for far in load.kept[1:14:2]:
            far.close()
        with both.client.socket(socket.AF_INET) as bound, both.client.socket(socket.AF_INET6) as listener:
            bound.bind(("0.0.0.0", 41000))  # noqa: S104 - of a namespace
            listener.bind(("::", 41001))
            listener.listen(1)
            found = look_around(both.client.name)
        remote = ipaddress.ip_address(load.address[0]), load.address[1]
        assert (23, 7, 1, 1) == (found.live[remote], found.close_wait[remote], found.listening, found.bound)
        assert len(found.ports) == 1009
        assert cgroup_of(found, remote)
        assert cgroup_of(found, (remote[0], 9)) is None
