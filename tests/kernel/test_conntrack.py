"""conntrack on a real host that translates: the ports that it holds, what it refuses, its time for what is closed."""

import contextlib
import errno
import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.test_blame import at
from tests.load import counters, wait_until
from tests.load.advise import advised
from tests.load.closes import run, serving
from tests.load.daemon import daemon, twctl
from tests.load.netns import Link, Namespace, add_addresses, await_address, link, namespace
from twctl.linux import conntrack
from twctl.linux.conntrack import Key
from twctl.modes.translation import PORTS

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
        reason="namespaces need root; TWCTL_TEST_KERNEL=1 forces it",
    ),
    pytest.mark.skipif(
        not Path("/proc/sys/net/netfilter/nf_conntrack_max").exists(),
        reason="this kernel has no nf_conntrack: modprobe nf_conntrack",
    ),
]

TIME_WAIT = "net.netfilter.nf_conntrack_tcp_timeout_time_wait"
N = 4 * 10007
# As Docker masquerades what comes from its bridge.
MASQUERADE = """
table inet nat { chain postrouting {
  type nat hook postrouting priority srcnat;
  ip saddr 10.78.0.0/24 oifname veth0 masquerade
  ip6 saddr fd78::/64 oifname veth0 masquerade
}; }
"""


@dataclass(frozen=True)
class Nat:
    """A host on a link with a server, and a container behind it."""

    link: Link
    inner: Namespace

    @property
    def host(self) -> Namespace:
        """What translates."""
        return self.link.client

    def sample(self, most: int = 1000) -> conntrack.Sample:
        """Of the host's conntrack."""
        with self.host.entered():
            return conntrack.sample(most)

    def refused(self) -> Mapping[str, int]:
        """What the host's conntrack has refused."""
        with self.host.entered():
            found = conntrack.fill()
        assert found
        assert found.refused
        return found.refused


@pytest.fixture
def nat() -> Iterator[Nat]:
    """The host masquerades the container's connections to its own address on the link."""
    with link({"net.ipv4.tcp_rfc1337": 1}) as both, namespace() as inner:
        both.client.ip("link", "add", "bridge0", "type", "veth", "peer", "name", "eth0", "netns", inner.name)
        add_addresses(both.client, "bridge0", "10.78.0.1", "fd78::1")
        add_addresses(inner, "eth0", "10.78.0.2", "fd78::2")
        await_address(both.client, "fd78::1")
        await_address(inner, "fd78::2")
        inner.ip("route", "add", "default", "via", "10.78.0.1")
        inner.ip("-6", "route", "add", "default", "via", "fd78::1")
        both.client.sysctl("net.ipv4.ip_forward", 1)
        both.client.sysctl("net.ipv6.conf.all.forwarding", 1)
        subprocess.run(both.client.command("nft", MASQUERADE), check=True)
        yield Nat(both, inner)


def key(source: str, remote: str, port: int) -> Key:
    """As it is on the wire."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    return Key(socket.inet_pton(family, source), socket.inet_pton(family, remote), port.to_bytes(2, "big"))


def test_the_kernel_s_entries_are_read_in_both_families(nat: Nat) -> None:
    """Those of the container and of the host itself hold ports of one address; only the former are translated."""
    both, opened = nat.link, []
    # else the host's own connection may take a port that is the container's on the wire, and is translated, too
    nat.inner.sysctl("net.ipv4.ip_local_port_range", "40000 49999")
    nat.host.sysctl("net.ipv4.ip_local_port_range", "50000 59999")
    for family, server in ((socket.AF_INET, both.server_ipv4), (socket.AF_INET6, both.server_ipv6)):
        with both.server.socket(family) as listener:
            listener.bind((server, 20000))
            listener.listen(101)
            for ns, count in ((nat.inner, 23), (nat.host, 7)):
                for _ in range(count):
                    opened.append(ns.socket(family))
                    opened[-1].connect((server, 20000))
    wanted = {key(both.client_ipv4, both.server_ipv4, 20000), key(both.client_ipv6, both.server_ipv6, 20000)}
    found = nat.sample()
    assert (dict.fromkeys(wanted, 23), {}, True) == (found.translated, found.closed, found.complete)
    assert dict.fromkeys(wanted, 30) == {each: count for each, count in found.ports.items() if each in wanted}
    for each in opened:
        each.close()


def test_no_more_than_a_sample_is_read(nat: Nat) -> None:
    """The whole is not: what is held is scaled up."""
    with serving(nat.link.server, *at(nat.link)):
        run(nat.inner, "--connect", "--count", "1009", *at(nat.link))
    wanted = key(nat.link.client_ipv4, nat.link.server_ipv4, 20000)
    assert 1009 == nat.sample(100_000).translated[wanted]

    def ended() -> int:
        """An ACK that a veth pair lets a FIN on the other CPU overtake is answered with a RST: to conntrack CLOSE."""
        return nat.sample(100_000).closed[wanted] + counters.tcp(nat.link.server)["OutRsts"]

    wait_until(lambda: ended() == 1009, what="all are closed, or reset")
    part = nat.sample(100)
    assert not part.complete
    assert 100 <= part.read < 1009
    assert part.translated[wanted] <= part.read


def test_ports_that_the_translation_holds_are_told(nat: Nat) -> None:
    """By the daemon's metrics and `advise`, from a sample; `check` tells the fill as well."""
    with daemon(nat.host) as one, serving(nat.link.server, *at(nat.link)):
        for i in range(4):  # one address alone would hardly have the ports
            nat.inner.ip("address", "replace", f"10.78.0.{11 + i}/24", "dev", "eth0")
            nat.inner.ip("route", "replace", "default", "via", "10.78.0.1", "src", f"10.78.0.{11 + i}")
            run(nat.inner, "--connect", "--count", str(N // 4), *at(nat.link))
        where = f'netns="{nat.host.name}"'
        labels = f'local="{nat.link.client_ipv4}",{where},remote="{nat.link.server_ipv4}",remote_port="20000"'
        ratio = f"twctl_translated_ports_used_ratio{{{labels}}}"
        # Some are gone already: the translation gave another their port, or an ACK that a veth pair let their FIN
        # overtake was answered with a RST, and conntrack keeps what is CLOSE for 10 s.
        expected = pytest.approx(N / PORTS, rel=0.05)
        wait_until(lambda: one.metrics().get(ratio) == expected, what="its ports are told", timeout=60)
        assert one.metrics()[f"twctl_conntrack_entries{{{where}}}"] == pytest.approx(N, rel=0.05)
        assert one.metrics()[f"twctl_conntrack_limit_entries{{{where}}}"] > N
        assert 0 == one.metrics()[f'twctl_conntrack_refused_total{{{where},reason="insert_failed"}}']
        told = twctl("check", prefix=tuple(nat.host.command())).stdout
        assert re.search(
            r"^ok +conntrack +(38|39|4\d)\d\d\d of at most \d+ connections, insert_failed 0,.* "
            rf"2[2-6]\d\d\d of {PORTS} ports of {nat.link.client_ipv4} are left toward {nat.link.server_ipv4}:20000$",
            told,
            re.MULTILINE,
        )
        (advice,) = [each for each in advised(one, "translated") if "translation" in each["anchor"]]
        assert f"toward {nat.link.server_ipv4}:20000" in advice["what"]
        assert re.match(r"conntrack holds (38|39|4\d),\d+ of 64,512 toward it, (38|39|4\d),", advice["evidence"])
        assert "soon" == advice["urgency"]


def test_a_connection_that_finds_no_port_is_counted(nat: Nat) -> None:
    """The translation has 23 ports: those are taken, and the SYN of the next one is dropped."""
    rule = "ip saddr 10.78.0.0/24 meta l4proto tcp masquerade to :1024-1046"
    chain = f"type nat hook postrouting priority srcnat; {rule};"
    subprocess.run(nat.host.command("nft", f"flush ruleset; table ip t {{ chain c {{ {chain} }}; }}"), check=True)
    server = nat.link.server_ipv4, 20000
    with nat.link.server.socket(socket.AF_INET) as listener, contextlib.ExitStack() as opened:
        listener.bind(server)
        listener.listen(101)
        for _ in range(23):
            opened.enter_context(nat.inner.socket(socket.AF_INET)).connect(server)
        assert 23 == nat.sample().translated[key(nat.link.client_ipv4, *server)]
        assert {0} == set(nat.refused().values())
        late = opened.enter_context(nat.inner.socket(socket.AF_INET))
        late.settimeout(0)
        assert late.connect_ex(server) == errno.EINPROGRESS
        wait_until(lambda: nat.refused()["insert_failed"] > 0, what="it is counted")


@pytest.mark.parametrize("mode", ["observe", "truncate"])
def test_its_time_for_closed_connections_follows_the_classes_and_is_put_back(nat: Nat, mode: str) -> None:
    """The longest time in force; in mode observe that is the kernel's own."""
    before = nat.host.sysctl(TIME_WAIT)
    times = "[time_wait]\nremote = 22.5\n[sysctl]\nnf_conntrack_tcp_timeout_time_wait = 'time_wait'\n"
    with daemon(nat.host, mode=mode, config=times) as one:
        assert {"observe": "60", "truncate": "23"}[mode] == nat.host.sysctl(TIME_WAIT)
        one.kill()
        assert before != nat.host.sysctl(TIME_WAIT)
        assert twctl("release", *one.options).returncode == 0
        assert before == nat.host.sysctl(TIME_WAIT)
