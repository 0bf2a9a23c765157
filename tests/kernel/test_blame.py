"""Who causes TIME_WAIT: owners, remote endpoints and local ports, on real sockets, and beyond what the tallies hold."""

import errno
import itertools
import json
import mmap
import os
import pwd
import random
import re
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.test_headroom import QUIET, client
from tests.load import counters, wait_until
from tests.load.closes import closes_binary, run, serving
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.netns import Link, link, namespace
from tests.load.paths import over_link
from tests.load.programs import Programs
from twctl.table.maps import Table
from twctl.table.tallies import LINES, PLACES, TALLIES_BYTES, By, places_of

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

SERVICES = ((23, 0), (101, 65534), (1009, 65534))  # sessions and uid of each
_numbers = itertools.count()


def cgroup2() -> Path:
    """Where the hierarchy of version 2 is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if line.split()[2] == "cgroup2":
            return Path(line.split()[1])
    pytest.fail("no cgroup2 is mounted: mount -t cgroup2 none /mnt")


@pytest.fixture
def cgroups() -> Iterator[list[Path]]:
    """A cgroup for each service, empty when the test is over."""
    made = [cgroup2() / f"twctl-test-{os.getpid()}-{next(_numbers)}" for _ in SERVICES]
    for each in made:
        each.mkdir()
    yield made
    for each in made:
        each.rmdir()


def at(both: Link, port: int = 20000) -> tuple[str, ...]:
    """The server's options."""
    return "--address", both.server_ipv4, "--port", str(port)


def close_as(both: Link, cgroup: Path, uid: int, count: int, port: int = 20000) -> None:
    """So many sessions of a process of this cgroup and user at the client, closed by it."""
    enter = ("bash", "-c", 'echo 0 >"$0"; exec "$@"', str(cgroup / "cgroup.procs"))
    become = ("setpriv", f"--reuid={uid}", "--clear-groups")
    close = (str(closes_binary()), "--connect", "--count", str(count), *at(both, port))
    process = both.client.popen(*enter, *become, *close)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, out + error


def blamed(one: Daemon, by: By, limit: int = 100) -> list[dict[str, Any]]:
    """What `twctl blame --json` prints."""
    done = twctl("blame", *one.options, "--by", by, "--limit", str(limit), "--json")
    assert (0, "") == (done.returncode, done.stderr)
    return [row for row in map(json.loads, done.stdout.splitlines()) if row["by"] == by]


def numbers(row: dict[str, Any]) -> tuple[int, int, int, int]:
    """Live sessions, entries, their error and failed connects."""
    return row["sessions"], row["entered"], row["error"], row["no_port"]


@pytest.fixture
def both() -> Iterator[Link]:
    """A client and a server of one link; a server's late RST ends no TIME_WAIT."""
    with link({"net.ipv4.tcp_rfc1337": 1}) as made:
        yield made


@pytest.mark.vm("fentry")
def test_owners_and_destinations_are_exact(both: Link, cgroups: list[Path], probe: str) -> None:
    """Three services in three cgroups and of two users, to three destinations: each has what it closed, and no more."""
    with daemon(both.client, probe=probe) as one:
        for (count, uid), cgroup, port in zip(SERVICES, cgroups, (20001, 20002, 20003), strict=True):
            with serving(both.server, *at(both, port)):
                close_as(both, cgroup, uid, count, port)
        owners = {row["cgroup"]: row for row in blamed(one, By.OWNER)}
        expected = {f"/{each.name}": (count, uid) for each, (count, uid) in zip(cgroups, SERVICES, strict=True)}
        assert expected == {name: (row["entered"], row["uid"]) for name, row in owners.items()}
        assert [(row["entered"], row["entered"], 0, 0) for row in owners.values()] == [*map(numbers, owners.values())]
        remotes = blamed(one, By.REMOTE)
        assert [(20003, 1009), (20002, 101), (20001, 23)] == [(row["remote_port"], row["entered"]) for row in remotes]
        assert {both.server_ipv4} == {row["remote"] for row in remotes}
        assert {both.client.name} == {row["netns"] for row in remotes}
        assert all(numbers(row) == (row["entered"], row["entered"], 0, 0) for row in remotes)


def test_a_server_that_closes_first_is_blamed_by_its_port(probe: str) -> None:
    """All its sessions have one local port; mapped addresses are IPv4."""
    with namespace() as ns, daemon(ns, probe=probe) as one:
        for family, port, count in (("ipv6", "20005", 101), ("mapped", "20006", 97)):
            ways = ("--family", family, "--close", "server", "--port", port)
            with serving(ns, *ways):
                run(ns, "--connect", "--count", str(count), *ways)
        rows = [(row["local_port"], numbers(row)) for row in blamed(one, By.LOCAL_PORT)]
        assert [(20005, (101, 101, 0, 0)), (20006, (97, 97, 0, 0))] == rows
        remotes = blamed(one, By.REMOTE, 1000)
        assert {1} == {row["entered"] for row in remotes}
        assert {"::1": 101, "127.0.0.1": 97} == Counter(row["remote"] for row in remotes)


def test_what_was_taken_over_has_no_known_owner(both: Link) -> None:
    """Sessions from before the start are shown as nobody's, and a restart of their timers keeps their owners."""
    with serving(both.server, *at(both)):
        run(both.client, "--connect", "--count", "23", *at(both))
        wait_until(lambda: counters.time_wait_count(both.client) == 23, what="23 mini-sockets")
        with daemon(both.client) as one:
            run(both.client, "--connect", "--count", "101", *at(both))
            rows = {row["owner"]: numbers(row) for row in blamed(one, By.OWNER)}
            assert (23, 0, 0, 0) == rows.pop("unknown")
            assert [(101, 101, 0, 0)] == list(rows.values())
            assert (124, 101, 0, 0) == numbers(blamed(one, By.REMOTE)[0])


def test_a_connect_without_a_free_port_is_counted(both: Link, probe: str) -> None:
    """EADDRNOTAVAIL, for the owner and the destination; other failures do not count."""
    # connect() goes by pairs of ports: of an odd range it leaves one out, at either end
    both.client.sysctl("net.ipv4.ip_local_port_range", "40000 40023")
    both.client.sysctl("net.ipv4.ip_local_reserved_ports", "40007")
    with daemon(both.client, probe=probe) as one, serving(both.server, *at(both)):
        made = [both.client.socket(socket.AF_INET) for _ in range(23 + 13)]
        results = [sock.connect_ex((both.server_ipv4, 20000)) for sock in made]
        assert [0] * 23 + [errno.EADDRNOTAVAIL] * 13 == results
        refused = both.client.socket(socket.AF_INET)
        refused.bind((both.client_ipv4, 50000))
        with pytest.raises(ConnectionRefusedError):
            refused.connect((both.server_ipv4, 20001))
        refused.close()
        assert 13 == one.metric("twctl_connects_without_port_total")
        assert [(20000, (0, 0, 0, 13))] == [(row["remote_port"], numbers(row)) for row in blamed(one, By.REMOTE)]
        assert [(0, 0, 0, 13)] == [numbers(row) for row in blamed(one, By.OWNER)]
        for sock in made:
            sock.close()


def test_the_commands_say_who(both: Link, cgroups: list[Path]) -> None:
    """Three tables of at most 80 columns, and one with --by; a wrong word is a wrong usage."""
    with daemon(both.client) as one, serving(both.server, *at(both)):
        close_as(both, cgroups[0], 65534, 23)
        shown = twctl("blame", *one.options).stdout.splitlines()
        assert max(len(line) for line in shown) <= 80
        assert ["owner", "remote", "local"] == [line.split()[0] for line in shown if "sessions" in line]
        user = pwd.getpwuid(65534).pw_name
        assert any(line.split()[-5:] == [user, "23", "23", "0", "0"] for line in shown)
        assert any(line.startswith(f"{both.server_ipv4}:20000 ") for line in shown)
        wrong = twctl("blame", *one.options, "--by", "weather")
        assert (2, "") == (wrong.returncode, wrong.stdout)
        assert "weather" in wrong.stderr


def test_owners_go_with_their_vestiges_when_the_timer_starts_anew(both: Link) -> None:
    """Behind the guard a late FIN moves the vestige to another slot: the owner goes with it."""
    with daemon(both.client, both.server, mode="vestigial") as one, both.server.socket(socket.AF_INET) as listener:
        listener.bind((both.server_ipv4, 0))
        listener.listen(101)
        clients = [both.client.socket(socket.AF_INET) for _ in range(101)]
        for each in clients:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 60)  # a vestige in FIN_WAIT2
            each.connect(listener.getsockname())
        servers = [listener.accept()[0] for _ in clients]
        for each in clients:
            each.close()
        wait_until(lambda: one.metric("twctl_time_wait_entered_total") == 101, what="101 entries")
        assert 0 == one.metric("twctl_time_wait_restarted_total")
        for each in servers:
            each.close()
        wait_until(lambda: one.metric("twctl_time_wait_restarted_total") == 101, what="101 restarts")
        assert [(101, 101, 0, 0)] == [numbers(row) for row in blamed(one, By.OWNER)]


def test_the_worst_have_series_if_asked_for(both: Link, cgroups: list[Path]) -> None:
    """Two of three owners and destinations, by name, and no local port: each was one session's."""
    with daemon(both.client, config="[blame]\nmetrics = 2") as one:
        for (count, uid), cgroup, port in zip(SERVICES, cgroups, (20001, 20002, 20003), strict=True):
            with serving(both.server, *at(both, port)):
                close_as(both, cgroup, uid, count, port)
        wait_until(lambda: one.metric("twctl_time_wait_entered_total") == 1133, what="1133 entries")
        found = {name: count for name, count in one.metrics().items() if re.match(r"twctl_(owner|remote)_", name)}
        where = f'netns="{both.client.name}",remote="{both.server_ipv4}"'
        names = [f"/{each.name}" for each in cgroups]
        assert found == {
            f'twctl_owner_time_wait_entered_total{{cgroup="{names[2]}",owner="{names[2]}",uid="65534"}}': 1009,
            f'twctl_owner_time_wait_entered_total{{cgroup="{names[1]}",owner="{names[1]}",uid="65534"}}': 101,
            f'twctl_remote_time_wait_entered_total{{{where},remote_port="20003"}}': 1009,
            f'twctl_remote_time_wait_entered_total{{{where},remote_port="20002"}}': 101,
        }
        assert not any(name.startswith("twctl_local_port_") for name in one.metrics())


def test_what_it_costs_in_memory_does_not_grow(both: Link) -> None:
    """The tallies are one map of 0.7 MB, and `status` counts it."""
    with daemon(both.client) as one:
        found = json.loads(twctl("status", *one.options, "--json").stdout)
        layout = Table(one.pins / "current").layout
        assert TALLIES_BYTES == found["blame_bytes"]
        assert sum(layout.bytes(family) for family in ("ipv4", "ipv6")) == found["table_bytes"]


WORKLOAD = 1 << 20
ZIPF = """
TABLE(u32, workload, WORKLOAD);
BPF_ARRAY(turn, u64, 1);

/* The next number of the workload, as a remote endpoint, a local port and an owner. */
int zipf(struct __sk_buff *skb)
{
	struct work *w = work_of(WORKER_ENTRY);
	u32 zero = 0, i, *number;
	u64 *n = turn.lookup(&zero);

	if (!w || !n)
		return 0;
	i = (*n)++ % WORKLOAD;
	number = workload.lookup(&i);
	if (!number)
		return 0;
	w->family = FAMILY_IPV4;
	w->session.tuple.remote[0] = *number;
	w->session.tuple.remote_port = bpf_htons(443);
	w->session.tuple.local_port = *number % 65536;
	w->session.tuple.netns = 0;
	name_ends(w);
	name_owner(w, *number, 0);
	w->now = *n >> 6;
	for (u32 kind = 0; kind < KINDS; kind++)
		tally(w, kind, true);
	return 0;
}
"""


@pytest.fixture(scope="module")
def zipf() -> tuple[Counter[int], mmap.mmap]:
    """A million entries toward a million destinations, the k-th with 1/k of the first one's share; and the tallies."""
    rng = random.Random(2011)  # noqa: S311 - the same workload each time
    weights = list(itertools.accumulate(1 / k for k in range(1, 1_000_001)))
    drawn = rng.choices(range(1_000_000), cum_weights=weights, k=WORKLOAD)
    programs = Programs(ZIPF.replace("WORKLOAD", str(WORKLOAD)), 256)
    memory = mmap.mmap(programs.map("workload"), WORKLOAD * 8, mmap.MAP_SHARED)
    for i, number in enumerate(drawn):
        memory[i * 8 : i * 8 + 4] = number.to_bytes(4, "little")
    programs.nanoseconds("zipf", WORKLOAD)
    return Counter(drawn), mmap.mmap(programs.map("tallies"), TALLIES_BYTES, mmap.MAP_SHARED)


def counted(memory: mmap.mmap, by: By, begin: int, end: int) -> dict[int, tuple[int, int]]:
    """Entries and error of each party, by the number that these bytes of its key are."""
    rows = places_of(memory, by)
    return {int.from_bytes(key[begin:end], "little"): (entries, error) for _, key, entries, error, _ in rows}


@pytest.mark.parametrize("by", [By.REMOTE, By.LOCAL_PORT])
def test_beyond_capacity_the_error_is_as_stated(zipf: tuple[Counter[int], mmap.mmap], by: By) -> None:
    """No entry is missing; a count is never too low, and too high by its error at most; the great are there."""
    drawn, memory = zipf
    true = drawn if by is By.REMOTE else Counter(n % 65536 for n in drawn.elements())
    found = counted(memory, by, 0, 4 if by is By.REMOTE else 2)
    assert WORKLOAD == sum(entries for entries, _ in found.values())
    assert LINES * PLACES == len(found)
    assert [] == [n for n, (entries, error) in found.items() if not entries - error <= true[n] <= entries]
    lines = WORKLOAD / LINES
    assert max(error for _, error in found.values()) < 2 * lines / PLACES
    great = [n for n, count in true.items() if count > 2 * lines / PLACES]
    assert len(great) > 50
    assert set(great) <= found.keys()


def test_an_owner_keeps_its_place_while_its_vestiges_may_live(zipf: tuple[Counter[int], mmap.mmap]) -> None:
    """Of a million owners those that came first have exact counts: nobody took their place within 18 minutes."""
    drawn, memory = zipf
    found = counted(memory, By.OWNER, 0, 8)
    assert 0.98 * LINES * PLACES < len(found) <= LINES * PLACES
    assert sum(drawn[n] == entries for n, (entries, _) in found.items()) > 0.5 * len(found)
    assert all(entries <= drawn[n] for n, (entries, _) in found.items())


def test_the_worst_of_all_is_found_while_all_cpus_count(both: Link) -> None:
    """Eight threads at once: what all of them do is counted exactly, or known to be missed by the probe."""
    with (
        daemon(both.client, config="reconcile_interval = 0.5\n") as one,
        serving(both.server, "--address", both.server_ipv4, "--port", "20000-20006"),
    ):
        options = ("--address", both.server_ipv4, "--port", "20000-20006", "--threads", "8")
        run(both.client, "--connect", "--count", "10007", *options)
        seen, missed = "twctl_time_wait_entered_total", "twctl_time_wait_unseen_total"
        wait_until(lambda: one.metric(seen) + one.metric(missed) == 10007, what="10,007 entries", timeout=20)
        rows, entries = blamed(one, By.REMOTE), one.metric(seen)
        assert entries > 9000
        assert (7, entries, 0) == (len(rows), sum(row["entered"] for row in rows), sum(row["error"] for row in rows))
        assert [entries] == [row["entered"] for row in blamed(one, By.OWNER) if row["owner"] != "unknown"]


def test_ports_toward_a_destination_that_has_live_connections_alone_are_told() -> None:
    """101 of 1,009 are a leak, perhaps; toward another one with 23, less than 5 %, nothing is in the way."""
    with (
        link(QUIET) as both,
        daemon(both.client) as one,
        client(over_link(both), 1, closes=False) as leaking,
        client(over_link(both), 1, closes=False) as other,
    ):
        for load, count in ((leaking, 101), (other, 23)):
            for _ in range(count):
                load.connect(closes=False)
        done = twctl("blame", *one.options, "--by", "remote", "--json")
        assert (0, "") == (done.returncode, done.stderr)
        [row] = map(json.loads, done.stdout.splitlines())
        found = [row[name] for name in ("by", "remote", "remote_port", "live", "time_wait")]
        assert ["ports", *map(str, leaking.address[:1]), leaking.address[1], 101, 0] == found
