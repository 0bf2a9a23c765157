"""What people come with, made for real: `twctl advise` names cause and remedy first, and with the remedy it is gone.

With TWCTL_TEST_RECORD set a scene writes its snapshots to tests/advise/, for the tests of the rules.
"""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.test_headroom import QUIET, RANGE, client, drive
from tests.load import wait_until
from tests.load.advise import advised, anchors
from tests.load.closes import connecting, serving
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.loads import ab, getting, pgbench, redis_benchmark
from tests.load.netns import Namespace, link, namespace
from tests.load.paths import over_link, over_lo
from tests.load.servers import LEAVES_OPEN, NGINX, NGINX_PORT, POSTGRESQL, nginx, postgresql, proxy, redis

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

PORTS = 1009  # that QUIET leaves
WIDE = QUIET | {RANGE: "30000 60999"}
REQUESTS = 2503  # more than there are ports
FEW = REQUESTS // 100  # of entries, where nearly every request finds a connection
ROOM = Path("/proc/sys/net/netfilter/nf_conntrack_max")
NO_PORT = "Cannot assign requested address"
IP_BIND_ADDRESS_NO_PORT = 24  # not in the socket module
USED_UP = "ports-are-used-up-by-sessions-in-time_wait"


@dataclass(frozen=True)
class Scene:
    """play: makes the symptom, yields the daemon that is asked, then applies the remedy, sees it work, yields again.

    first: the section that the first advice names; urgency, evidence, remedy: of that, or words of it; after: all
    sections that are named in the end. needs: programs. records: the snapshots' names, where the rules are tested with
    them.
    """

    play: Callable[[Path], Iterator[Daemon]]
    first: str
    urgency: str
    evidence: str
    remedy: str
    after: tuple[str, ...] = ("all-is-well",)
    needs: tuple[str, ...] = ()
    records: tuple[str, str] = ("", "")

    @property
    def name(self) -> str:
        """What is played."""
        return self.play.__name__.replace("_", " ")


def drain(one: Daemon, *filters: str) -> None:
    """What most first advice says to do at once."""
    done = twctl("drain", *one.options, *filters)
    assert done.returncode == 0, done.stderr


def entered(one: Daemon) -> float:
    """Sessions that have entered TIME_WAIT."""
    return one.metric("twctl_time_wait_entered_total")


def proxy_without_keep_alive(folder: Path) -> Iterator[Daemon]:
    """An nginx answers 502 as it has no port toward its upstream; with `keepalive` one connection does for all."""
    people, behind = folder / "proxy", folder / "behind"
    people.mkdir()
    behind.mkdir()
    with ExitStack() as stack:
        both = stack.enter_context(link(QUIET))
        one = stack.enter_context(daemon(both.client))
        stack.enter_context(nginx(both.server, both.server_ipv4, behind, settings=LEAVES_OPEN))
        with proxy(both.client, both.client_ipv4, people, both.server_ipv4):
            assert PORTS >= ab(both.server, both.client_ipv4, REQUESTS, "-k")
            assert f"{NO_PORT}) while connecting to upstream" in (people / "error").read_text()
            yield one
        drain(one, "--remote", f"{both.server_ipv4}/32")
        with proxy(both.client, both.client_ipv4, people, both.server_ipv4, "keepalive 16;"):
            before = entered(one)
            assert REQUESTS == ab(both.server, both.client_ipv4, REQUESTS, "-k")
            assert entered(one) - before <= FEW
            yield one


def redis_by_a_connection_each(folder: Path) -> Iterator[Daemon]:
    """redis-benchmark without keep-alive finds no port and gives up; with it the same queries are answered."""
    with link(QUIET) as both, redis(both.server, both.server_ipv4, folder), daemon(both.client) as one:
        done = redis_benchmark(both.client, both.server_ipv4, REQUESTS, "-k", "0")
        assert done.returncode != 0
        assert NO_PORT in done.stderr
        yield one
        drain(one, "--remote", f"{both.server_ipv4}/32")
        before = entered(one)
        done = redis_benchmark(both.client, both.server_ipv4, REQUESTS, "-k", "1")
        assert (0, "") == (done.returncode, done.stderr)
        assert entered(one) - before <= FEW
        yield one


def postgresql_by_a_connection_each(folder: Path) -> Iterator[Daemon]:
    """Pgbench -C finds no port and gives up; without -C its queries go over one connection."""
    with ExitStack() as stack:
        both = stack.enter_context(link(QUIET | {RANGE: "40000 40210"}))  # each costs a process: 211 do
        one = stack.enter_context(daemon(both.client))
        stack.enter_context(postgresql(both.server, both.server_ipv4, folder))
        done = pgbench(both.client, both.server_ipv4, folder, REQUESTS, "-C")
        assert done.returncode != 0
        assert NO_PORT in done.stderr
        yield one
        drain(one, "--remote", f"{both.server_ipv4}/32")
        before = entered(one)
        done = pgbench(both.client, both.server_ipv4, folder, REQUESTS)
        assert done.returncode == 0, done.stderr
        assert f"{REQUESTS}/{REQUESTS}" in done.stdout
        assert entered(one) - before <= FEW
        yield one


def load_test_to_one_server(_folder: Path) -> Iterator[Daemon]:
    """Its connect() fails; with tcp_tw_reuse=1 the same load goes on."""
    with link(QUIET) as both, daemon(both.client) as one, client(over_link(both), 500) as load:
        drive([load], lambda: load.failed, 60)
        yield one
        both.client.sysctl("net.ipv4.tcp_tw_reuse", 1)
        load.failed, load.rate, before = None, 100, load.made
        time.sleep(1.1)  # what tcp_tw_reuse_delay asks for
        drive([load], lambda: load.made >= before + 211 or load.failed, 60)
        assert load.failed is None
        yield one


def load_test_whose_server_closes_first(folder: Path) -> Iterator[Daemon]:
    """The server has a session for each request of ab, and of `ab -k` nearly none."""
    with ExitStack() as stack:
        both = stack.enter_context(link(WIDE))
        stack.enter_context(nginx(both.server, both.server_ipv4, folder, settings=LEAVES_OPEN))
        one = stack.enter_context(daemon(both.server))
        assert REQUESTS == ab(both.client, both.server_ipv4, REQUESTS)
        assert entered(one) >= REQUESTS - FEW
        yield one
        drain(one, "--local-port", str(NGINX_PORT))
        before = entered(one)
        assert REQUESTS == ab(both.client, both.server_ipv4, REQUESTS, "-k")
        assert entered(one) - before <= FEW
        yield one


def object_store_with_many_gets(folder: Path) -> Iterator[Daemon]:
    """A connection for each object; with one session as many objects are got, and nothing enters TIME_WAIT."""
    for number in range(23):
        (folder / str(number)).write_text("an object")
    with ExitStack() as stack:
        both = stack.enter_context(link(WIDE))
        keeps = nginx(both.server, both.server_ipv4, folder, settings=LEAVES_OPEN, answer=f"root {folder};")
        stack.enter_context(keeps)
        one = stack.enter_context(daemon(both.client))
        program = stack.enter_context(getting(both.client, both.server_ipv4, 211))
        wait_until(lambda: program.got > 701, timeout=50)  # ten a second of the last minute, however slow it is now
        assert entered(one) > 691
        yield one
        program.session = True
        before = program.got
        wait_until(lambda: program.got > before + 1, timeout=60)  # the last of the old way
        drain(one, "--remote", f"{both.server_ipv4}/32")
        before, ended = program.got, entered(one)
        wait_until(lambda: program.got > before + 101, timeout=60)
        assert ended == entered(one)
        yield one
        assert not program.failed


def load_on_loopback(_folder: Path) -> Iterator[Daemon]:
    """Nothing has to be done: more sessions than there are ports, and no connect() fails."""
    with namespace(QUIET) as ns, daemon(ns) as one, client(over_lo(ns), 401) as load:
        for goal in (2 * PORTS, 3 * PORTS):
            drive([load], lambda goal=goal: load.failed or load.made >= goal, 60)  # type: ignore[misc]
            assert load.failed is None
            yield one


def peer_that_closes_first(_folder: Path) -> Iterator[Daemon]:
    """Nothing to do at the client, however long it goes on; at the server, whose port it is, it is told, too."""
    with ExitStack() as stack:
        both = stack.enter_context(link(WIDE))
        near, far = (stack.enter_context(daemon(each)) for each in (both.client, both.server))
        ways = ("--close", "server", "--address", both.server_ipv4, "--port", "20000")
        stack.enter_context(serving(both.server, *ways))
        with connecting(both.client, *ways, "--rate", "401"):
            wait_until(lambda: entered(far) > 1009, timeout=60)
            assert near.metric("twctl_closed_without_time_wait_total", how="passive") > 401
            yield near
        assert "a-server-here-closes-first" == anchors(advised(far))[0]
        assert entered(near) == 0
        yield near


def leak_of_live_connections(_folder: Path) -> Iterator[Daemon]:
    """A program keeps what it opens until connect() fails; where it closes, connect() has ports again."""
    with link(QUIET) as both, daemon(both.client) as one, client(over_link(both), 900, closes=False) as load:
        drive([load], lambda: load.failed, 60)
        assert load.made >= PORTS - 1  # of an odd number connect() may leave one out (__inet_hash_connect)
        yield one
        for near, far in zip(load.kept[::2], load.kept[1::2], strict=True):
            far.close()  # first, so that TIME_WAIT is not here
            near.recv(1)
            near.close()
        load.kept.clear()
        load.failed = None
        load.connect(closes=True)
        assert load.failed is None
        yield one


def conntrack_that_is_full(_folder: Path) -> Iterator[Daemon]:
    """It forgets connections early, as others come; for what it is told to leave alone it need not."""
    room = int(ROOM.read_text())
    with namespace() as ns, daemon(ns) as one:
        subprocess.run(ns.command("nft", TRACK), check=True)
        send(ns, room + PORTS)
        assert early_drops(ns) > 0
        yield one
        subprocess.run(ns.command("nft", NOTRACK), check=True)
        before = early_drops(ns)
        send(ns, PORTS)
        assert before == early_drops(ns)
        subprocess.run(ns.command("conntrack", "-F"), check=True, capture_output=True)  # else it waits for its times
        yield one


TRACK = "table ip t { chain c { type filter hook output priority 0; ct state new counter; }; }"
NOTRACK = "table ip n { chain c { type filter hook output priority raw; udp dport 9 notrack; }; }"


def send(ns: Namespace, count: int) -> None:
    """A datagram to each of so many addresses of loopback, where nobody listens."""
    with ns.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for i in range(count):
            sock.sendto(b"", (socket.inet_ntoa((0x7F000100 + i).to_bytes(4, "big")), 9))


def early_drops(ns: Namespace) -> int:
    """Connections that conntrack has forgotten to make room for others."""
    said = subprocess.run(ns.command("conntrack", "-S"), check=True, capture_output=True, text=True).stdout
    return sum(int(count) for count in re.findall(r"early_drop=(\d+)", said))


def ports_bound_by_bind(_folder: Path) -> Iterator[Daemon]:
    """All ports are free toward the server, and connect() fails; with IP_BIND_ADDRESS_NO_PORT it does not."""
    with ExitStack() as stack:
        both = stack.enter_context(link(QUIET))
        one = stack.enter_context(daemon(both.client))
        load = stack.enter_context(client(over_link(both), 100))
        bound = [stack.enter_context(both.client.socket(socket.AF_INET)) for _ in range(PORTS)]
        for port, sock in enumerate(bound, 40000):
            sock.bind((both.client_ipv4, port))
        load.connect(closes=True)
        assert load.failed
        yield one
        for sock in bound:
            sock.close()
        for _ in range(PORTS):
            sock = stack.enter_context(both.client.socket(socket.AF_INET))
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((both.client_ipv4, 0))
        load.failed = None
        load.connect(closes=True)
        assert load.failed is None
        yield one


def all_well(_folder: Path) -> Iterator[Daemon]:
    """With no session, and with a few."""
    with link(QUIET) as both, daemon(both.client) as one, client(over_link(both), 10) as load:
        yield one
        for _ in range(23):
            load.connect(closes=True)
        yield one


KEEP_OPEN = "keep its connections open, or pool them. At once: twctl drain --remote 10.77.0.2/32"
HELD = "of 1,009 ports toward it are held"
FAILS = "connect() has found no port for"
SCENES = (
    Scene(proxy_without_keep_alive, USED_UP, "now", FAILS, KEEP_OPEN, needs=("ab", str(NGINX))),
    Scene(redis_by_a_connection_each, USED_UP, "now", FAILS, KEEP_OPEN, needs=("redis-benchmark",)),
    Scene(postgresql_by_a_connection_each, USED_UP, "now", FAILS, KEEP_OPEN, needs=(str(POSTGRESQL),)),
    Scene(
        load_test_to_one_server,
        *(USED_UP, "now", HELD, KEEP_OPEN),
        after=("a-connection-for-each-request",),
        records=("used_up", "reused"),
    ),
    Scene(
        load_test_whose_server_closes_first,
        *("a-server-here-closes-first", "fine", "sessions in TIME_WAIT on port 8080", "fewer with keep-alive"),
        needs=("ab", str(NGINX)),
    ),
    Scene(
        object_store_with_many_gets,
        *("a-connection-for-each-request", "better", "a second enter TIME_WAIT toward it", "HTTP clients: one session"),
        needs=(str(NGINX),),
    ),
    Scene(
        load_on_loopback,
        *("a-load-on-loopback", "fine", "connect() takes their ports again after 1 s", "Nothing."),
        after=("a-load-on-loopback",),
        records=("loopback", ""),
    ),
    Scene(
        peer_that_closes_first,
        *("the-far-side-closes-first", "fine", "were closed by their peer first", "Nothing here."),
        records=("peer_closes", ""),
    ),
    Scene(
        leak_of_live_connections,
        *("connections-are-not-closed", "now", " by connections", "forgets to close"),
        records=("leak", ""),
    ),
    Scene(
        conntrack_that_is_full,
        *("conntrack-is-nearly-full", "now", "it remembers", "or notrack for this traffic"),
        needs=("conntrack", str(ROOM)),
        records=("conntrack", ""),
    ),
    Scene(
        ports_bound_by_bind,
        *("ports-are-held-by-bind", "now", FAILS, "Set IP_BIND_ADDRESS_NO_PORT before bind()"),
        records=("bound", "unbound"),
    ),
    Scene(all_well, "all-is-well", "fine", "no connect() fails", "Nothing has to be done.", records=("idle", "well")),
)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_the_first_advice_names_the_cause_and_a_remedy_that_works(scene: Scene, tmp_path: Path) -> None:
    """In each scene."""
    missing = [each for each in scene.needs if not (shutil.which(each) or Path(each).exists())]
    if missing:
        forced = os.environ.get("TWCTL_TEST_KERNEL")
        (pytest.fail if forced else pytest.skip)(f"no {missing[0]}: deploy/setup --test, or modprobe nf_conntrack")
    with closing(scene.play(tmp_path)) as acts:  # type: ignore[type-var]
        one = next(acts)
        first = advised(one, scene.records[0])[0]
        assert (scene.first, scene.urgency) == (first["anchor"], first["urgency"])
        assert scene.evidence in first["evidence"]
        assert scene.remedy in first["remedy"]
        assert one is next(acts)
        assert [*scene.after] == anchors(advised(one, scene.records[1]))
        assert next(acts, None) is None
