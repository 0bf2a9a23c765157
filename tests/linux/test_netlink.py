"""pyroute2's sockets in network namespaces: made there, kept there, closed to the last descriptor, without a thread."""

import errno
import os
import select
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pyroute2 import NetlinkError
from pyroute2.netlink import NLM_F_DUMP_INTR
from pyroute2.netlink.rtnl import RTM_GETLINK, RTNLGRP_LINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from twctl.errors import TwctlError
from twctl.linux.netlink import ATTEMPTS, LostError, Notifications, RouteNetlink, complete, dump, refusals
from twctl.linux.rtnl import decode

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
LARGE, SMALL = 1 << 20, 2048


@pytest.fixture
def name() -> Iterator[str]:
    """Of a namespace with lo and veth0, which is there during the test, unless the test removes it."""
    made = f"twn-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", made], check=True)
    ip(made, "link add veth0 type veth peer name veth1")
    try:
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", made], check=False, stderr=subprocess.DEVNULL)


def ip(name: str, *lines: str) -> None:
    """Run lines of `ip -batch` inside."""
    subprocess.run(["ip", "-n", name, "-batch", "-"], input="\n".join(lines), text=True, check=True)


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def interfaces(netlink: RouteNetlink) -> list[str]:
    """Names, in order."""
    with netlink.requests() as requests:
        return sorted(each.get_attr("IFLA_IFNAME") for each in complete(lambda: requests.link("dump")))


@needs_root
def test_requests_go_to_the_namespace_also_without_its_name(name: str) -> None:
    """What took the name since is another namespace."""
    with closing(RouteNetlink(name)) as netlink:
        assert interfaces(netlink) == ["lo", "veth0", "veth1"]
        subprocess.run(["ip", "netns", "del", name], check=True)
        assert interfaces(netlink) == ["lo", "veth0", "veth1"]
        subprocess.run(["ip", "netns", "add", name], check=True)
        assert interfaces(netlink) == ["lo", "veth0", "veth1"]


@needs_root
def test_all_is_closed_and_no_thread_is_left(name: str) -> None:
    """One descriptor for the namespace, one for notifications; requests and dumps have theirs while they last."""
    before = descriptors()
    with closing(RouteNetlink(name)) as netlink:
        with closing(netlink.notifications((RTNLGRP_LINK,), LARGE)):
            interfaces(netlink)
            with netlink.dumps() as sock:
                assert len(list(dump(sock, ifinfmsg(), RTM_GETLINK))) == 3
            assert (descriptors(), threading.active_count()) == (before + 2, 1)
        assert descriptors() == before + 1
    assert descriptors() == before


@needs_root
def test_notifications_can_be_polled(name: str) -> None:
    """Readable when one waits; None is read when none does."""
    with closing(RouteNetlink(name)) as netlink, closing(netlink.notifications((RTNLGRP_LINK,), LARGE)) as heard:
        assert heard.read() is None
        ip(name, "link set veth0 mtu 1400")
        assert select.select([heard], [], [], 5)[0]
        data = heard.read()
        assert data
        assert [each.get_attr("IFLA_IFNAME") for each in decode(data)] == ["veth0"]
        assert heard.read() is None


def read_all(heard: Notifications) -> None:
    """What waits is read and forgotten."""
    while heard.read():
        pass


@needs_root
def test_lost_notifications_are_told_of(name: str) -> None:
    """Where the queue is too small for a burst; afterwards it is read on."""
    with closing(RouteNetlink(name)) as netlink, closing(netlink.notifications((RTNLGRP_LINK,), SMALL)) as heard:
        ip(name, *(f"link set veth0 mtu {1400 + n}" for n in range(23)))
        with pytest.raises(LostError):
            read_all(heard)
        read_all(heard)
        ip(name, "link set veth0 mtu 1300")
        assert heard.read()


@needs_root
def test_dump_leaves_out_what_is_not_picked(name: str) -> None:
    """What `select` gives of each read is decoded, the end of the list among it; then the socket can ask again."""

    def last(read: bytes) -> list[bytes]:
        """Of the messages in a read the last, which ends the list at some time."""
        messages = []
        while read:
            length = int.from_bytes(read[:4], "little")
            messages.append(read[:length])
            read = read[length + 3 & ~3 :]
        return messages[-1:]

    with closing(RouteNetlink(name)) as netlink, netlink.dumps() as sock:
        assert len(list(dump(sock, ifinfmsg(), RTM_GETLINK, last))) < 3
        assert len(list(dump(sock, ifinfmsg(), RTM_GETLINK))) == 3


@needs_root
def test_what_the_kernel_refuses_is_an_oserror(name: str) -> None:
    """With its errno, as from any other system call; also of a dump."""
    with closing(RouteNetlink(name)) as netlink:
        with pytest.raises(OSError, match="No such device") as refused, netlink.requests() as requests, refusals():
            requests.link("get", index=999)
        assert refused.value.errno == errno.ENODEV
        with netlink.dumps() as sock, pytest.raises(OSError, match="not supported") as refused:
            list(dump(sock, ifinfmsg(), 1022))
        assert refused.value.errno == errno.EOPNOTSUPP


def test_a_namespace_that_is_not_there_cannot_be_opened() -> None:
    """There is none made, as pyroute2 itself would."""
    with pytest.raises(TwctlError, match="twn-nowhere"):
        RouteNetlink("twn-nowhere")
    assert not Path("/run/netns/twn-nowhere").exists()


def message(flags: int) -> ifinfmsg:
    """One of a dump, with these flags."""
    made = ifinfmsg()
    made["header"]["flags"] = flags
    return made


def test_an_interrupted_dump_is_asked_for_again() -> None:
    """Until one is consistent, and a few times at most: then the last is taken."""
    answers = iter([[message(0), message(NLM_F_DUMP_INTR)], [message(0)], [message(0)] * 2])
    assert len(complete(lambda: next(answers))) == 1
    asked = [[message(NLM_F_DUMP_INTR)] * n for n in range(1, 9)]
    assert len(complete(lambda: asked.pop(0))) == ATTEMPTS


def test_a_refusal_without_netlink_passes() -> None:
    """Only pyroute2's own error is another one afterwards."""
    with pytest.raises(TwctlError), refusals():
        raise TwctlError("it", "hint")
    with pytest.raises(PermissionError), refusals():
        raise NetlinkError(errno.EPERM)
