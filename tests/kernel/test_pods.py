"""Owners are pods: a real cgroup that is named as a container's, its sockets, and the kubelet's folders of logs."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.test_blame import at, blamed, cgroup2, close_as
from tests.load import wait_until
from tests.load.closes import serving
from tests.load.daemon import daemon
from tests.load.netns import link
from twctl.linux.pods import LOGS
from twctl.table.tallies import By

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

UID = f"2f4b7c1e-93d0-4a6b-8a57-{os.getpid():012x}"
ID = f"{os.getpid():064x}"
POD = f"twctl-test-{os.getpid()}"


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A folder, and those above it as far as they are missing; empty when it is over."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir()
    try:
        yield path
    finally:
        for each in missing:
            with contextlib.suppress(FileNotFoundError):  # the test removed it
                each.rmdir()


@pytest.fixture
def container() -> Iterator[Path]:
    """The cgroup that containerd makes for a container with the systemd driver, and what the kubelet writes down."""
    slice_ = f"kubepods-burstable-pod{UID.replace('-', '_')}.slice"
    path = cgroup2() / f"kubepods.slice/kubepods-burstable.slice/{slice_}/cri-containerd-{ID}.scope"
    with folder(path), folder(LOGS / f"pods/shop_{POD}_{UID}/web"), folder(LOGS / "containers") as links:
        name = links / f"{POD}_shop_web-{ID}.log"
        name.symlink_to(LOGS / f"pods/shop_{POD}_{UID}/web/0.log")
        yield path
        name.unlink()


def test_a_container_s_sessions_have_its_name_also_when_it_has_gone(container: Path) -> None:
    """In `blame` and in the metrics; a daemon that has told its name goes on to, and who comes later has a number."""
    wanted = f"shop/{POD}/web"
    with link() as both, daemon(both.client, config="[blame]\nmetrics = 2") as one, serving(both.server, *at(both)):
        close_as(both, container, 65534, 23)
        path = f"/{container.relative_to(cgroup2())}"
        assert [(wanted, path, 23)] == [(row["owner"], row["cgroup"], row["entered"]) for row in blamed(one, By.OWNER)]
        series = f'twctl_owner_time_wait_entered_total{{cgroup="{path}",owner="{wanted}",uid="65534"}}'
        assert 23 == one.metrics()[series]
        number = container.stat().st_ino
        container.rmdir()
        assert [(f"cgroup {number}", None)] == [(row["owner"], row["cgroup"]) for row in blamed(one, By.OWNER)]
        run_elsewhere(both.client.socket(socket.AF_INET), (both.server_ipv4, 20000))
        wait_until(lambda: len([name for name in one.metrics() if "_owner_" in name]) == 2, what="another owner")
        assert 23 == one.metrics()[series]


def run_elsewhere(client: socket.socket, server: tuple[str, int]) -> None:
    """One connection of this process, which has another cgroup."""
    with client:
        client.connect(server)
