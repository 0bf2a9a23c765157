"""The kernel's own lists around the ports that connect() chooses from."""

import ipaddress
import os
import socket
import subprocess
import time
from types import SimpleNamespace

import pytest

from tests.kernel.test_headroom import QUIET, client
from tests.load.daemon import daemon
from tests.load.netns import link, namespace
from tests.load.paths import over_link
from twctl.advise import take
from twctl.advise.around import cgroup_of, each_there, look_around
from twctl.commands import blame
from twctl.commands.in_force import in_force
from twctl.errors import TwctlError
from twctl.modes import headroom
from twctl.table.enrolments import reachable
from twctl.table.maps import Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="namespaces need root; TWCTL_TEST_KERNEL=1 forces it",
)


def test_each_kind_of_socket_is_counted_for_itself() -> None:
    """Connections with their peers, listeners, and ports that are bound alone."""
    with link(QUIET) as both, client(over_link(both), 1, closes=False) as load:
        for _ in range(23):
            load.connect(closes=False)
        load.connect(closes=True)  # it is no live one
        with both.client.socket(socket.AF_INET) as bound, both.client.socket(socket.AF_INET6) as listener:
            bound.bind(("0.0.0.0", 41000))  # noqa: S104 - of a namespace
            listener.bind(("::", 41001))
            listener.listen(1)
            found = look_around(both.client.name)
        remote = ipaddress.ip_address(load.address[0]), load.address[1]
        assert (23, 1, 1) == (found.live[remote], found.listening, found.bound)
        assert len(found.ports) == 1009
        assert cgroup_of(found, remote)
        assert cgroup_of(found, (remote[0], 9)) is None


def test_a_namespace_that_has_gone_is_left_out() -> None:
    """Of two the other is told; where none is left, which one cannot be entered."""
    names = {3: "twctl-test-none", 5: ""}
    assert [5] == list(each_there(names, lambda index: look_around(names[index])))
    with pytest.raises(TwctlError, match="twctl-test-none"):
        each_there([3], lambda index: look_around(names[index]))


def test_a_namespace_that_goes_meanwhile_keeps_nobody_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """`advise` and `blame` tell of those that stay, whenever it goes."""
    goes = f"twl-{os.getpid()}-goes"

    def with_one_more(table: Table) -> dict[int, str]:
        subprocess.run(["ip", "netns", "add", goes], check=True)
        return reachable(table) | {101: goes}

    def sleep(_seconds: float) -> None:
        subprocess.run(["ip", "netns", "del", goes], check=True)

    clock = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
    with namespace() as stays, daemon(stays) as one:
        table, found = Table(one.pins / "current"), in_force(one.folder / "twctl.toml", {"pins": one.pins})
        with monkeypatch.context() as patched:
            patched.setattr(take, "reachable", with_one_more)
            patched.setattr(take, "time", clock)
            snapshot = take.take(table, found.config.time_wait, daemon=True)
        assert [stays.name] == [each.name for each in snapshot.namespaces]
        for module in (blame, headroom):
            monkeypatch.setattr(module, "reachable", lambda table: reachable(table) | {101: goes})
        assert list(blame.report(table, found, None, 5, json_=False))
