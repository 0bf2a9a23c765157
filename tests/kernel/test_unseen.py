"""Entries that no probe sees: they are counted all the same, and taken over where the kernel has a list of them."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.load import paths, wait_until
from tests.load.closes import run
from tests.load.daemon import Daemon, daemon
from tests.load.netns import namespace
from tests.load.paths import CLIENT
from twctl.linux import libbpf
from twctl.table.maps import Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

QUIET = {"net.ipv4.tcp_rfc1337": 1}
CLOSES = ("--close", "client", "--inline")
UNSEEN = re.compile(r"(\d+) entries were not seen by the probe")  # a line a look: two looks may share the 11


@contextmanager
def unwatched(one: Daemon) -> Iterator[None]:
    """The probes take no namespace for theirs."""
    fd = Table(one.pins / "current").fd("namespaces")
    try:
        kept = libbpf.map_items(fd)
        for cookie in kept:
            libbpf.map_delete(fd, cookie)
        yield
        for cookie, index in kept.items():
            libbpf.map_update(fd, cookie, index)
    finally:
        os.close(fd)


def numbers(one: Daemon) -> tuple[float, ...]:
    """Entered, adopted, missed."""
    return tuple(one.metric(f"twctl_time_wait_{which}_total") for which in ("entered", "adopted", "unseen"))


def test_in_mode_vestigial_the_kernel_s_count_tells(probe: str) -> None:
    """7 are seen, 11 are not, 13 are; sessions that were refused a socket before twctl came count for nothing."""
    with namespace(QUIET | {"net.ipv4.tcp_max_tw_buckets": 0}) as ns:
        run(ns, "--count", "5", *CLOSES)
        ns.sysctl("net.ipv4.tcp_max_tw_buckets", "1000")
        with daemon(ns, probe=probe, mode="vestigial") as one:
            run(ns, "--count", "7", *CLOSES)
            with unwatched(one):
                run(ns, "--count", "11", *CLOSES)
            run(ns, "--count", "13", *CLOSES)
            wait_until(lambda: numbers(one) == (20, 0, 11), what="11 are unseen")
            wait_until(lambda: 11 == sum(map(int, UNSEEN.findall(one.log))), what="the lines say so")


def test_without_comparisons_the_kernel_s_count_tells(probe: str) -> None:
    """Nothing is taken over then."""
    with namespace(QUIET) as ns, daemon(ns, probe=probe, config="reconcile_interval = 0\n") as one:
        run(ns, "--count", "7", *CLOSES)
        with unwatched(one):
            run(ns, "--count", "11", *CLOSES)
        run(ns, "--count", "13", *CLOSES)
        wait_until(lambda: numbers(one) == (20, 0, 11), what="11 are unseen")


def test_in_mode_observe_the_kernel_s_list_tells() -> None:
    """What was missed is taken over with its class, and counted once."""
    with namespace(QUIET) as ns, daemon(ns, config="reconcile_interval = 0.2\n") as one:
        run(ns, "--count", "7", *CLOSES)
        with unwatched(one):
            run(ns, "--count", "11", *CLOSES)
        run(ns, "--count", "13", *CLOSES)
        rounds = one.metric("twctl_reconciliations_total")
        wait_until(
            lambda: one.metric("twctl_reconciliations_total") >= rounds + 3, what="three comparisons", timeout=20
        )
        wait_until(lambda: numbers(one) == (20, 11, 11), what="11 are missed and taken over")
        assert 31 == len(one.table())


def test_what_a_full_pool_has_discarded_is_not_taken_over_again() -> None:
    """The kernel's list has 51 sessions more than the pool has room for: each is discarded once."""
    config = "reconcile_interval = 0.2\n[capacity.ipv4]\nloopback = 256\n"  # of so many lines none is ever full
    with namespace(QUIET) as ns, daemon(ns, config=config) as one:
        run(ns, "--count", "307", *CLOSES)
        rounds = one.metric("twctl_reconciliations_total")
        wait_until(
            lambda: one.metric("twctl_reconciliations_total") >= rounds + 3, what="three comparisons", timeout=20
        )
        assert (307, 0, 0) == numbers(one)
        assert one.metric("twctl_time_wait_ended_total", reason="evicted") == 51


def test_a_fin_that_comes_later_takes_no_place_of_others() -> None:
    """A pool of 256 keeps 199 orphans in FIN_WAIT2 and then in TIME_WAIT: the same vestiges, which start anew."""
    config = "reconcile_interval = 0.2\n[capacity.ipv4]\nloopback = 256\n"
    with namespace(QUIET) as ns, daemon(ns, config=config) as one:
        with paths.orphan_fin_wait2(paths.over_lo(ns), 199, CLIENT):
            wait_until(lambda: {"FIN_WAIT2": 199} == substates(one), what="orphans")
        wait_until(lambda: {"TIME_WAIT": 199} == substates(one), what="their FINs came", timeout=20)
        assert one.metric("twctl_time_wait_ended_total", reason="evicted") == 0


def substates(one: Daemon) -> Counter[str]:
    """How many sessions of the table are in which."""
    return Counter(vestige.substate for vestige in one.table())
