"""The kernel's limits, from a namespace."""

import os

import pytest

from tests.load import counters
from tests.load.netns import namespace
from twctl.linux.limits import limits


@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"), reason="a namespace needs root")
def test_limits_are_those_of_the_namespace() -> None:
    """And what is the host's alone is not known there."""
    with namespace({"net.ipv4.tcp_max_tw_buckets": 23, "net.ipv4.tcp_timestamps": 0}) as ns:
        found = limits(ns.name)
        assert (0, 23, 0, 0) == (found.time_wait, found.max_tw_buckets, found.overflow, found.timestamps)
        assert found.max_orphans is None
        assert counters.tcpext(ns)["TCPTimeWaitOverflow"] == found.overflow


def test_our_own_has_the_host_s_limits() -> None:
    """No namespace is entered."""
    found = limits(None)
    assert found.tw_reuse_delay > 0
    assert found.tw_reuse in {0, 1, 2}
