"""A namespace joins and leaves: what is open and enrolled in between, and what is refused."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.load.daemon import daemon
from tests.load.netns import Namespace, namespace
from twctl.config.config import load
from twctl.daemon.namespaces import FullError, Namespaces
from twctl.errors import TwctlError
from twctl.linux.sysctl import Journal
from twctl.modes.filters import Ours
from twctl.modes.sysctls import FIN_TIMEOUT
from twctl.table.maps import NAME_BYTES, Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

NOWHERE = Path("/nowhere/twctl.toml")
SYSCTL, VALUE = "net.ipv4.tcp_tw_reuse", 1


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A pinned table whose daemon is gone."""
    with namespace() as ns, daemon(ns) as one:
        one.kill()
        yield one.pins / "current"


@pytest.fixture
def namespaces(folder: Path, tmp_path: Path) -> Iterator[Namespaces]:
    """Those of a daemon that sets a sysctl."""
    config = load(None, {"sysctl": {"tcp_tw_reuse": VALUE}}, default_file=NOWHERE).config
    table = Table(folder, writable=True)
    with contextlib.closing(
        Namespaces(
            table, folder, config, Journal(tmp_path / "journal.json"), Ours(frozenset(), frozenset(), Path("/nowhere"))
        )
    ) as made:
        made.keep()
        yield made


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """A namespace to join."""
    with namespace() as made:
        yield made


def descriptors() -> int:
    """How many this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def names(folder: Path) -> set[str]:
    """Names of the namespaces that the probes watch."""
    return {name for _, name in Table(folder).enrolments().values()}


def test_one_that_joins_is_watched_and_its_sysctls_are_set(namespaces: Namespaces, folder: Path, ns: Namespace) -> None:
    """Until it leaves: then they are as they were, and nothing of it is open."""
    before, open_before = ns.sysctl(SYSCTL), descriptors()
    joined = namespaces.join(ns.name)
    assert ({ns.name}, str(VALUE)) == (names(folder), ns.sysctl(SYSCTL))
    assert [joined] == list(namespaces)
    assert joined.diag is namespaces.diags[joined.index]
    assert [] == namespaces.leave(joined)
    assert (set(), before) == (names(folder), ns.sysctl(SYSCTL))
    assert ([], {}) == (list(namespaces), namespaces.diags)
    assert open_before == descriptors()


def test_when_orphans_are_too_many_only_their_time_is_set(namespaces: Namespaces, ns: Namespace) -> None:
    """What somebody else has set meanwhile stays, and when they stay again their time is as long as it should be."""
    joined = namespaces.join(ns.name)
    ns.sysctl(SYSCTL, 0)
    ns.sysctl(FIN_TIMEOUT, 90)
    namespaces.let_orphans_stay(False)  # noqa: FBT003 - the new state
    assert ("0", "60") == (ns.sysctl(SYSCTL), ns.sysctl(FIN_TIMEOUT))
    namespaces.let_orphans_stay(True)  # noqa: FBT003 - the new state
    assert ("0", "150") == (ns.sysctl(SYSCTL), ns.sysctl(FIN_TIMEOUT))
    assert [f"{SYSCTL} is left at 0: somebody else changed it from {VALUE}"] == namespaces.leave(joined)
    assert "90" == ns.sysctl(FIN_TIMEOUT)


def test_what_counted_in_one_that_left_counts_on(namespaces: Namespaces, ns: Namespace) -> None:
    """A counter of the metrics never falls."""
    joined = namespaces.join(ns.name)
    ns.ip("link", "add", "veth7", "type", "veth", "peer", "name", "veth8")
    joined.follow(0.0)
    before = namespaces.counts()["changes"]
    assert before > 0
    namespaces.leave(joined)
    assert before == namespaces.counts()["changes"]


def test_devices_without_the_guard_count_only_where_it_is_to_work(namespaces: Namespaces, ns: Namespace) -> None:
    """Where it is suspended the kernel answers."""
    joined = namespaces.join(ns.name)
    assert 0 == namespaces.missing_devices()
    object.__setattr__(joined, "guard", SimpleNamespace(missing=2))
    assert 2 == namespaces.missing_devices()
    namespaces.suspended.add(joined)
    assert 0 == namespaces.missing_devices()


def test_a_change_of_routes_makes_it_readable(namespaces: Namespaces, ns: Namespace) -> None:
    """And tells in which namespace."""
    joined = namespaces.join(ns.name)
    assert [] == namespaces.changed()
    ns.ip("link", "add", "veth7", "type", "veth", "peer", "name", "veth8")
    assert [joined] == namespaces.changed()
    joined.follow(0.0)
    assert [] == namespaces.changed()


def test_one_namespace_joins_under_one_name(namespaces: Namespaces, ns: Namespace) -> None:
    """A second name of it is refused, and so is a name that the table has no room for."""
    namespaces.join(ns.name)
    with pytest.raises(TwctlError, match="joined under another name"):
        namespaces.join(f"/run/netns/{ns.name}")
    with pytest.raises(TwctlError, match="too long"):
        namespaces.join("n" * (NAME_BYTES + 1))


def test_a_full_table_has_no_index_left(namespaces: Namespaces, ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to do, and nothing of the namespace stays open."""
    monkeypatch.setattr("twctl.daemon.namespaces.index_for", lambda *_: None)
    before = descriptors()
    with pytest.raises(FullError, match="name those that matter"):
        namespaces.join(ns.name)
    assert before == descriptors()


def test_a_sysctl_that_cannot_be_set_undoes_the_join(
    namespaces: Namespaces, folder: Path, ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither watched nor half set."""

    def refuse(*_: object) -> None:
        raise TwctlError("cannot set it", "run as root")

    monkeypatch.setattr(Journal, "set", refuse)
    with pytest.raises(TwctlError, match="cannot set it"):
        namespaces.join(ns.name)
    assert set() == names(folder)
    assert [] == list(namespaces)


def test_where_time_wait_sockets_cannot_be_had_back_the_probes_go_on(
    namespaces: Namespaces, folder: Path, ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does the guard: without it nobody would do TIME_WAIT's duty. A line says so."""

    def refuse(*_: object, strict: bool) -> None:
        assert strict
        raise TwctlError("cannot put it back", "run twctl release")

    joined = namespaces.join(ns.name)
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "leave", refuse)
        assert ["cannot put it back (run twctl release)"] == namespaces.leave(joined)
    assert {ns.name} == names(folder)
    assert [] == list(namespaces)
    assert [] == namespaces.leave(namespaces.join(ns.name))
    assert set() == names(folder)
