"""Mode vestigial on the real kernel, in brief: the kernel keeps no socket, and the guard answers in its place."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import ROOT
from tests.load import counters
from tests.load.closes import run
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.guards import guarded
from tests.load.netns import Namespace, namespace
from tests.load.peer import tun_peer
from tests.load.scripts import assert_fins_acknowledged, scripted
from twctl.modes.sysctls import GUARD_NEEDS

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23


def acknowledged(one: Daemon) -> float:
    """Segments that the guard answered; a slow machine sends FINs over lo twice, too."""
    return one.metric("twctl_guard_segments_total", action="acknowledged")


LEFT = (*GUARD_NEEDS, "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_max_tw_buckets")


def by_hand(ns: Namespace, pins: Path) -> list[str]:
    """The lines of docs/troubleshooting.md for who has no twctl at hand, with what is to be filled in."""
    text = (ROOT / "docs/troubleshooting.md").read_text().partition("## Getting out without twctl at hand")[2]
    _, *lines = re.findall(r"^    (.*?)(?:  +#.*)?$", text.partition("\n## ")[0], re.MULTILINE)
    journal = Path("/run/twctl") / (str(pins).replace("/", "%2F") + ".json")
    before = {each["name"]: each["before"] for each in json.loads(journal.read_text()) if each["namespace"] == ns.name}
    lines = [line.replace("%2Fsys%2Ffs%2Fbpf%2Ftwctl.json", journal.name) for line in lines]
    lines = [re.sub(r"(\S+)=BEFORE", lambda found: f"{found[1]}={before[found[1]]}", line) for line in lines]
    return [line.replace("/sys/fs/bpf/twctl", str(pins)).replace("DEVICE", "lo") for line in lines]


@pytest.mark.parametrize("forwards", [0, 1])
def test_who_has_no_twctl_at_hand_gets_out_as_the_page_says(forwards: int) -> None:
    """After a crash: each sysctl is what it was, also on a host that forwards, and nothing is left."""
    with namespace({"net.ipv4.ip_forward": forwards}) as ns:
        before = [ns.sysctl(name) for name in LEFT]
        assert str(forwards) == before[0]
        with daemon(ns, mode="vestigial") as one:
            one.kill()
            assert before != [ns.sysctl(name) for name in LEFT]
            for line in by_hand(ns, one.pins):
                done = subprocess.run(ns.command(*shlex.split(line)), capture_output=True, text=True, check=False)
                assert 0 == done.returncode or line.startswith("tc "), done.stderr  # TCX links need none
            assert (before, False) == ([ns.sysctl(name) for name in LEFT], one.pins.exists())
            assert [] == guarded(ns, "lo")
            assert "nothing to remove" in twctl("release", "--pins", str(one.pins)).stdout


@pytest.mark.vm
def test_closes_leave_vestiges_and_no_sockets_and_a_late_fin_is_acknowledged(probe: str) -> None:
    """23 closes over lo, 23 over a device: 46 vestiges, no kernel socket; a FIN that comes again gets its ACK."""
    life = "[time_wait]\nloopback = 60\nlocal = 60\n"
    with (
        namespace({"net.ipv4.tcp_rfc1337": 1}) as ns,
        tun_peer(ns) as peer,
        daemon(ns, probe=probe, mode="vestigial", config=life) as one,
    ):
        assert ns.sysctl("net.ipv4.tcp_max_tw_buckets") == "0"
        run(ns, "--count", str(N), "--close", "client", "--inline", "--threads", "1")
        sessions = scripted(peer, "fin_wait2", N)
        assert (2 * N, 0) == (len(one.table()), counters.time_wait_count(ns))
        resets, before = counters.tcp(ns)["OutRsts"], acknowledged(one)
        assert_fins_acknowledged(peer, sessions)
        assert resets == counters.tcp(ns)["OutRsts"]
        assert N == acknowledged(one) - before
        assert one.stop() == 0
        assert ns.sysctl("net.ipv4.tcp_max_tw_buckets") != "0"
