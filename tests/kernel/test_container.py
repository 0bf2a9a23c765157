"""The pods of deploy/kubernetes in a container runtime: what the manifests give is enough, and all that is there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.test_blame import cgroup2
from tests.kernel.test_pods import folder
from tests.load import counters, wait_until
from tests.load.closes import closes_binary, run
from tests.load.container import NUMBERS, container, rights
from tests.load.daemon import twctl
from tests.load.guards import BOTH, guarded
from tests.load.host import Host, host
from tests.load.kustomize import build
from tests.load.netns import Namespace
from twctl.table.maps import Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23
BUCKETS = "net.ipv4.tcp_max_tw_buckets"


@pytest.fixture
def node() -> Iterator[Host]:
    """Where pods run."""
    with host() as made:
        yield made


@pytest.fixture
def pins(node: Host) -> Iterator[Path]:
    """On the node; afterwards nothing is left."""
    made = Path(f"/sys/fs/bpf/twctl-test-{os.getpid()}-pod")
    yield made
    assert twctl("release", "--pins", str(made), prefix=node.prefix).returncode == 0


def close(ns: Namespace) -> None:
    """23 sessions over lo."""
    run(ns, "--count", str(N), "--close", "client", "--inline", "--threads", "1")


def has_guard(ns: Namespace) -> bool:
    """Whether lo has the guard on both sides."""
    return guarded(ns, "lo") == BOTH


def names(pins: Path) -> list[str]:
    """Of each vestige, the namespace's name."""
    return [each.netns for each in Table(pins / "current").vestiges()]


def given(overlay: str) -> set[int]:
    """Numbers of those of the manifest, but for what this machine lacks."""
    (found,) = build(overlay)["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    return {NUMBERS[name] for name in found["securityContext"]["capabilities"]["add"]} & rights("self")


@pytest.mark.parametrize("mode", ["observe", "truncate"])
def test_base_works_in_the_node_s_namespace_and_stops_without_a_trace(
    node: Host, pins: Path, tmp_path: Path, mode: str
) -> None:
    """With four capabilities and a read-only root; a crash loses nothing."""
    with container(node, "base", tmp_path, pins, "--mode", mode) as pod:
        assert given("base") == rights(pod.pid)
        assert os.statvfs(f"/proc/{pod.pid}/root").f_flag & os.ST_RDONLY
        close(node.own)
        assert pod.metric('twctl_time_wait_entered_total{class="loopback",family="ipv4"}') >= N
        if mode == "truncate":
            wait_until(lambda: pod.metric('twctl_time_wait_ended_total{class="loopback",reason="truncated"}') >= N)
            wait_until(lambda: counters.time_wait_count(node.own) < N)
        pod.kill()
        assert (pins / "current").exists()
    with container(node, "base", tmp_path, pins, "--mode", mode) as pod:
        assert "took over the pinned table" in pod.log
        assert pod.stop() == 0
        assert not pins.exists()


def test_base_calls_owners_by_their_pods(node: Host, pins: Path, tmp_path: Path) -> None:
    """It sees the node's cgroups, and what the kubelet calls them; both are made after its start."""
    uid, id_ = f"2f4b7c1e-93d0-4a6b-8a57-{os.getpid():012x}", f"{os.getpid():064x}"
    with (
        container(node, "base", tmp_path, pins, config="[blame]\nmetrics = 1\n") as pod,
        folder(cgroup2() / f"kubepods/burstable/pod{uid}/{id_}") as cgroup,
    ):
        node.run("touch", f"/var/log/containers/cart_shop_web-{id_}.log")
        enter = ("bash", "-c", 'echo 0 >"$0"; exec "$@"', str(cgroup / "cgroup.procs"), str(closes_binary()))
        options = ("--count", str(N), "--close", "client", "--inline", "--threads", "1")
        assert node.own.popen(*enter, *options).wait(60) == 0
        path = f"/kubepods/burstable/pod{uid}/{id_}"
        series = f'twctl_owner_time_wait_entered_total{{cgroup="{path}",owner="shop/cart/web",uid="0"}}'
        assert pod.metric(series) == N


def test_pods_has_the_pods_as_they_come_and_go(node: Host, pins: Path, tmp_path: Path) -> None:
    """What is mounted on the node shows in the container, and what goes there is let go of."""
    early = node.add()
    with container(node, "pods", tmp_path, pins) as pod:
        assert given("pods") == rights(pod.pid)
        late = node.add()
        wait_until(lambda: pod.metric('twctl_network_namespaces{state="enrolled"}') == 3, what="it joins")
        for ns in (early, late):
            close(ns)
        assert [N, N] == [names(pins).count(ns.path.name) for ns in (early, late)]
        node.own.ip("link", "add", "to-late", "type", "veth", "peer", "name", "eth0", "netns", late.name)
        node.delete(late)
        wait_until(lambda: "to-late" not in node.own.read("dev"), what="the namespace is freed")
        assert pod.stop() == 0
        assert not pins.exists()


def test_vestigial_guards_a_pod_and_release_takes_it_away(node: Host, pins: Path, tmp_path: Path) -> None:
    """The sysctl is set in the pod's namespace, not in others; the guard outlives a stop, but not the last overlay."""
    ns = node.add()
    before = ns.sysctl(BUCKETS)
    with container(node, "vestigial", tmp_path, pins) as pod:
        assert given("vestigial") == rights(pod.pid)
        assert ("0", True) == (ns.sysctl(BUCKETS), has_guard(ns))
        close(ns)
        assert (0, N) == (counters.time_wait_count(ns), names(pins).count(ns.path.name))
        pod.kill()
        assert ns.sysctl(BUCKETS) == "0"
    with container(node, "vestigial", tmp_path, pins) as pod:
        assert pod.stop() == 0
        assert (before, True) == (ns.sysctl(BUCKETS), has_guard(ns))
    with container(node, "release", tmp_path, pins):
        assert (False, False) == (has_guard(ns), pins.exists())


def test_base_leaves_the_guard_where_it_cannot_put_the_sysctl_back(node: Host, pins: Path, tmp_path: Path) -> None:
    """It sees the journal of the pod that was killed, and not the node's sysctls: it starts once they are put back."""
    own = node.own
    before = own.sysctl(BUCKETS)
    with container(node, "vestigial", tmp_path, pins) as pod:
        pod.kill()
    said = rf"{BUCKETS} of network namespace .* is not put back: .* Read-only file system"
    with pytest.raises(AssertionError, match=said), container(node, "base", tmp_path, pins):
        pass
    assert ("0", True) == (own.sysctl(BUCKETS), has_guard(own))
    with container(node, "release", tmp_path, pins):
        assert (before, False) == (own.sysctl(BUCKETS), has_guard(own))
    with container(node, "base", tmp_path, pins) as pod:
        assert pod.stop() == 0
