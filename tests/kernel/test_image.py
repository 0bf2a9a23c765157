"""The lines of deploy/container, run as they stand by an engine that has the image: tests/vm/image calls this."""

import functools
import os
import re
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest

from tests import ROOT
from tests.load import counters, wait_until
from tests.load.closes import run as close
from tests.load.container import NUMBERS, rights
from tests.load.daemon import START_SECONDS
from tests.load.guards import BOTH, guarded
from tests.load.host import Host, host
from tests.load.netns import Namespace

# The engine in whose store the image is, under the name that the lines have.
ENGINE = os.environ.get("TWCTL_TEST_ENGINE", "")
pytestmark = pytest.mark.skipif(not ENGINE, reason="the image is not built: tests/vm/image builds it, then runs this")

README = (ROOT / "deploy/container/README.md").read_text()
BUCKETS = "net.ipv4.tcp_max_tw_buckets"
N = 23


def lines(name: str) -> str:
    """A block of the page."""
    (found,) = re.findall(rf"<!-- run {ENGINE} {name} -->\n```sh\n(.*?)```", README, re.DOTALL)
    return str(found)


def shell(node: Host, script: str) -> str:
    """Run a script on the node; returns what it printed."""
    done = subprocess.run([*node.prefix, "sh", "-ec", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start(node: Host, name: str) -> int:
    """Run a block that starts it; returns the daemon's number, once it serves."""
    script = lines(name)
    if older():
        script = script.replace("    twctl:", "    --security-opt seccomp=/run/twctl/seccomp.json twctl:")
    shell(node, script)
    wait_until(lambda: healthy(node), what="it serves", timeout=START_SECONDS)
    return int(shell(node, f"{ENGINE} inspect --format '{{{{.State.Pid}}}}' twctl"))


def older() -> bool:
    """Whether the engine is one whose profile does not know CAP_BPF."""
    version = subprocess.run(
        [ENGINE, "version", "--format", "{{.Client.Version}}"], capture_output=True, text=True, check=True
    )
    return ENGINE == "podman" and tuple(map(int, version.stdout.split(".")[:2])) < (5, 2)


def healthy(node: Host) -> bool:
    """Whether it answers."""
    try:
        return bool(metrics(node))
    except OSError:
        said = subprocess.run([*node.prefix, ENGINE, "logs", "twctl"], capture_output=True, text=True, check=False)
        assert "Error" not in said.stderr, said.stderr
        return False


def metrics(node: Host) -> dict[str, float]:
    """What it serves, where the page says."""
    with node.own.entered(), urllib.request.urlopen("http://127.0.0.1:9815/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}


@pytest.fixture
def node() -> Iterator[Host]:
    """A host with bpffs, namespaces and /run/twctl of its own; the container goes with it."""
    with host() as made:
        for kind, folder in (("bpf", "/sys/fs/bpf"), ("cgroup2", "/sys/fs/cgroup"), ("tmpfs", "/run/twctl")):
            made.run("sh", "-c", f"mkdir -p {folder} && mount -t {kind} twctl-test {folder}")
        if older():
            (script,) = re.findall(r"<!-- run podman seccomp -->\n```sh\n(.*?)```", README, re.DOTALL)
            shell(made, script.replace("/etc/twctl-seccomp.json", "/run/twctl/seccomp.json"))
        yield made
        subprocess.run([*made.prefix, ENGINE, "rm", "--force", "twctl"], capture_output=True, check=False)


def given(name: str) -> set[int]:
    """Numbers of the capabilities in a block, but for what this machine lacks."""
    return {NUMBERS[each] for each in re.findall(r"--cap-add (\w+)", lines(name))} & rights("self")


def is_guarded(ns: Namespace) -> bool:
    """Whether mode vestigial is in force there."""
    return (ns.sysctl(BUCKETS), guarded(ns, "lo")) == ("0", BOTH)


def test_observing_and_its_commands(node: Host) -> None:
    """With four capabilities and a read-only root; a stop leaves nothing."""
    pid = start(node, "observe")
    assert given("observe") == rights(pid)
    assert os.statvfs(f"/proc/{pid}/root").f_flag & os.ST_RDONLY
    close(node.own, "--count", str(N), "--close", "client", "--inline", "--threads", "1")
    assert metrics(node)['twctl_time_wait_entered_total{class="loopback",family="ipv4"}'] >= N
    (block,) = re.findall(r"<!-- run podman commands -->\n```sh\n(.*?)```", README, re.DOTALL)
    status, table, check, blame = (shell(node, line.replace("podman", ENGINE, 1)) for line in block.splitlines())
    assert status.startswith("observe, tracepoint probe, daemon running, pinned at /bpf/twctl")
    assert table.count("TIME_WAIT") >= N
    assert [] == [line for line in check.splitlines() if line.startswith("fail")]
    assert [row for row in blame.splitlines()[1:] if max(map(int, re.findall(r" (\d+)", row)), default=0) >= N], blame
    shell(node, f"{ENGINE} stop twctl")
    assert "twctl" not in shell(node, "ls /sys/fs/bpf")


def test_mode_vestigial_in_every_namespace(node: Host) -> None:
    """Those that come later, too; the line with `release` takes the guard away."""
    early = node.add()
    before = early.sysctl(BUCKETS)
    pid = start(node, "vestigial")
    assert given("vestigial") == rights(pid)
    late = node.add()
    for ns in (early, late):
        wait_until(functools.partial(is_guarded, ns), what="it joins")
        close(ns, "--count", str(N), "--close", "client", "--inline", "--threads", "1")
        assert counters.time_wait_count(ns) == 0
    assert metrics(node)['twctl_time_wait_sessions{class="loopback",family="ipv4"}'] >= 2 * N
    shell(node, f"{ENGINE} stop twctl")
    assert (before, BOTH) == (early.sysctl(BUCKETS), guarded(early, "lo"))
    shell(node, f"{ENGINE} rm --force twctl")
    script = lines("vestigial").replace("--detach --name twctl --restart on-failure:5", "--rm")
    script = re.sub(r"(twctl:\S+) run .*", r"\1 release", script)
    if older():
        script = script.replace("    twctl:", "    --security-opt seccomp=/run/twctl/seccomp.json twctl:")
    shell(node, script)
    assert not guarded(early, "lo")
    assert "twctl" not in shell(node, "ls /sys/fs/bpf")
