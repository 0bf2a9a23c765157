"""`twctl advise` on the real kernel, beside what people come with (test_scenes.py): what is rarer, and what it prints.

With TWCTL_TEST_RECORD set a test writes its snapshots to tests/advise/, for the tests of the rules.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest

from tests.kernel.test_headroom import QUIET, client, drive
from tests.load import wait_until
from tests.load.advise import advised, anchors
from tests.load.closes import run, serving
from tests.load.daemon import daemon, twctl
from tests.load.netns import Link, link, namespace
from tests.load.obstacles import SAID, add_ipsec, remove_ipsec
from tests.load.paths import over_link, over_lo
from twctl.advise import take
from twctl.advise.rules import advise
from twctl.classes import Class
from twctl.modes import headroom
from twctl.table.maps import Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)


@pytest.fixture
def both() -> Iterator[Link]:
    """A client with 1,009 ports, and a server."""
    with link(QUIET) as made:
        yield made


def test_a_search_for_a_port_that_is_long_is_told_and_ends_with_what_holds_them(both: Link) -> None:
    """Sessions hold all ports of one parity, which the kernel tries first; once drained they are free again."""
    both.client.sysctl("net.ipv4.ip_local_port_range", "20000 36001")  # 16,002
    with daemon(both.client) as one, serving(both.server, *(ways := ("--address", both.server_ipv4))):
        run(both.client, "--connect", "--count", "8501", *ways)
        with ThreadPoolExecutor(1) as beside:
            going_on = beside.submit(run, both.client, "--connect", "--seconds", "8", "--rate", "101", *ways)
            found = advised(one, "searching")
            going_on.result()
        long = next(each for each in found if each["anchor"] == "connect-looks-long-for-a-port")
        assert "of 16,002 ports toward it are held" in long["evidence"]
        assert 0 == twctl("drain", *one.options, "--all").returncode
        with ThreadPoolExecutor(1) as beside:
            going_on = beside.submit(run, both.client, "--connect", "--seconds", "8", "--rate", "101", *ways)
            assert "connect-looks-long-for-a-port" not in anchors(advised(one))
            going_on.result()


def test_what_drain_frees_is_not_advised_any_more(both: Link) -> None:
    """The remedy that is named for at once; what else would help is said below it, on lines of 80 columns at most."""
    with daemon(both.client) as one, client(over_link(both), 500) as load:
        drive([load], lambda: load.failed, 30)
        first, *others = advised(one)
        assert "now" == first["urgency"]
        assert {"a-connection-for-each-request", "tcp_tw_reuse-helps-or-does-not", "which-mode-fits"} <= {
            *anchors(others)
        }

        text = twctl("advise", *one.options).stdout.splitlines()
        assert text[0].startswith("now:      connect() to ")
        assert max(map(len, text)) <= 80

        assert 0 == twctl("drain", *one.options, "--remote", f"{both.server_ipv4}/32").returncode
        load.failed = None
        load.connect(closes=True)
        assert load.failed is None
        assert "now" not in {each["urgency"] for each in advised(one, "drained")}


def test_a_load_on_loopback_without_timestamps_is_like_any_other() -> None:
    """Its ports are used up; that timestamps are off is named as the reason why tcp_tw_reuse does not help."""
    with namespace(QUIET | {"net.ipv4.tcp_timestamps": 0}) as ns, daemon(ns) as one, client(over_lo(ns), 900) as load:
        drive([load], lambda: load.failed, 30)
        first, *others = advised(one, "no_timestamps")
        assert "ports-are-used-up-by-sessions-in-time_wait" == first["anchor"]
        assert [each for each in others if "have no timestamps" in each["what"]]
        assert "a-load-on-loopback" not in anchors(others)


def test_connections_that_the_peer_has_closed_are_forgotten_ones(both: Link) -> None:
    """CLOSE_WAIT says so however few ports they have."""
    with daemon(both.client) as one, client(over_link(both), 900, closes=False) as load:
        drive([load], lambda: load.made >= 101, 30)
        for far in load.kept[1::2]:
            far.close()
        first = advised(one, "close_wait")[0]
        assert "connections-are-not-closed" == first["anchor"]
        assert f"{load.made} of them (CLOSE_WAIT)" in first["evidence"]


def test_a_burst_of_connections_that_peers_close_is_no_leak(both: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """101 are in CLOSE_WAIT at either look, and none of them at both."""
    with daemon(both.client) as one, client(over_link(both), 900, closes=False) as load:
        drive([load], lambda: load.made >= 202, 30)
        near, far = load.kept[::2], load.kept[1::2]

        def sleep(_seconds: float) -> None:
            for end in [*near[:101], *far[101:]]:
                end.close()

        for end in far[:101]:
            end.close()
        for module in (take, headroom):
            monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        snapshot = take.take(Table(one.pins / "current"), dict.fromkeys(Class, 60.0), daemon=True)
        said = advise(snapshot)
        assert [101] == [each.live for each in snapshot.destinations]
        assert "fine" == said[0].urgency, said[0]


def test_connections_that_a_server_does_not_close_are_told_by_owner(both: Link) -> None:
    """CLOSE_WAIT on a port that is no client's; once they are closed all is well."""
    with daemon(both.server) as one, client(over_link(both), 900, closes=False) as load:
        drive([load], lambda: load.made >= 101, 30)
        for near in load.kept[::2]:
            near.close()
        first = advised(one, "unclosed")[0]
        assert "connections-stay-in-close_wait" == first["anchor"]
        assert f"{load.made} sockets of it are in CLOSE_WAIT" in first["evidence"]
        for far in load.kept[1::2]:
            far.close()
        load.kept.clear()
        assert ["all-is-well"] == anchors(advised(one))


def test_a_limit_of_buckets_that_is_reached_is_named(both: Link) -> None:
    """Sessions find no place; with room for them none is lost."""
    both.client.sysctl("net.ipv4.tcp_max_tw_buckets", 23)
    with daemon(both.client) as one, client(over_link(both), 100) as load, ThreadPoolExecutor(1) as beside:
        for _ in range(30):
            load.connect(closes=True)
        load.begin()
        going_on = beside.submit(advised, one, "buckets")
        while not going_on.done():
            load.step()
            time.sleep(0.001)
        assert "tcp_max_tw_buckets-is-reached" == going_on.result()[0]["anchor"]
        both.client.sysctl("net.ipv4.tcp_max_tw_buckets", 65536)
        load.connect(closes=True)
        assert "tcp_max_tw_buckets-is-reached" not in anchors(advised(one))


NO_DAEMON = "no-daemon-runs"


def test_a_guard_that_is_left_alone_is_told_until_a_daemon_has_it_again(both: Link) -> None:
    """After SIGKILL its sessions have no sockets: nothing is to be drained, and no bucket is too few."""
    with daemon(both.client, mode="vestigial") as one, client(over_link(both), 1) as load:
        for _ in range(23):
            load.connect(closes=True)
        assert NO_DAEMON not in anchors(advised(one))
        one.kill()
        [first, *others] = advised(one, "alone")
        assert (NO_DAEMON, "now") == (first["anchor"], first["urgency"])
        assert "tcp_max_tw_buckets is 0 in 1 of 1 network namespaces" in first["evidence"]
        assert "tcp_max_tw_buckets-is-reached" not in anchors(others)
        one.start()
        assert NO_DAEMON not in anchors(advised(one))


@pytest.mark.parametrize("mode", ["truncate", "vestigial"])
def test_after_a_stop_the_mode_is_the_kernels(both: Link, mode: str) -> None:
    """Sessions hold their ports for 60 s: they can be drained; and that the mode is not in force is said."""
    with daemon(both.client, mode=mode) as one, client(over_link(both), 500) as load:
        assert 0 == one.stop()
        drive([load], lambda: load.failed, 30)  # the probes go on
        first, *others = advised(one, f"after_{mode}")
        assert "ports-are-used-up-by-sessions-in-time_wait" == first["anchor"]
        assert "twctl drain" in first["remedy"]
        [told] = [each for each in others if each["anchor"] == NO_DAEMON]
        assert ("better", f"no daemon runs: mode {mode} is not in force") == (told["urgency"], told["what"])


def test_a_table_that_is_too_small_is_told(both: Link) -> None:
    """Of 257 places, while it evicts; with room for all nothing is said."""
    both.client.sysctl("net.ipv4.ip_local_port_range", "20000 36001")
    ways = ("--address", both.server_ipv4)
    with daemon(both.client, config="capacity = 257\n") as one, serving(both.server, *ways):
        run(both.client, "--connect", "--count", "503", *ways)
        with ThreadPoolExecutor(1) as beside:
            going_on = beside.submit(run, both.client, "--connect", "--seconds", "8", "--rate", "101", *ways)
            found = advised(one, "evicting")
            going_on.result()
        [told] = [each for each in found if each["anchor"] == "the-table-is-too-small"]
        assert "better" == told["urgency"]
        assert told["what"].startswith("the table evicts local sessions")
        one.reload("capacity = 65536\n")
        assert "the-table-is-too-small" not in anchors(advised(one))


def test_a_guard_that_is_suspended_is_told_with_what_is_in_its_way(both: Link) -> None:
    """Until it goes on."""
    with daemon(both.client, mode="vestigial") as one:
        assert ["all-is-well"] == anchors(advised(one, "guarding"))
        add_ipsec(both.client)
        kept = partial(both.client.sysctl, "net.ipv4.tcp_max_tw_buckets")
        wait_until(lambda: kept() != "0", what="the kernel keeps sockets", timeout=30)
        [told] = advised(one, "suspended")
        assert ("the-guard-is-suspended", "better") == (told["anchor"], told["urgency"])
        assert SAID in told["evidence"]
        remove_ipsec(both.client)
        wait_until(lambda: kept() == "0", what="the guard goes on", timeout=30)
        assert ["all-is-well"] == anchors(advised(one))


def test_errors_are_told_in_a_line() -> None:
    """Where no table is."""
    done = twctl("advise", "--pins", "/sys/fs/bpf/twctl-test-none")
    assert 1 == done.returncode
    assert "no table is pinned" in done.stderr
