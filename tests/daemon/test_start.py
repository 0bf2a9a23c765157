"""What becomes of the sysctls at the end of a run, and of those that an earlier one left; tables: test_takeover.py."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from twctl.config.config import load
from twctl.daemon import start
from twctl.daemon.start import Sysctls, put_back, take_over_or_load
from twctl.errors import TwctlError
from twctl.linux.sysctl import Wanted
from twctl.modes import guard
from twctl.modes.filters import Ours
from twctl.table.loader import Request
from twctl.table.pins import Pins

NOWHERE = Path("/nowhere/twctl.toml")


class FakeJournal:
    """Counts how often everything was put back, and remembers what was kept."""

    def __init__(self) -> None:
        self.restored, self.kept = 0, list[list[str]]()

    def restore(self, *, strict: bool) -> list[str]:  # noqa: ARG002 - as Journal
        """One sysctl was changed by somebody else."""
        self.restored += 1
        return ["net.ipv4.tcp_tw_reuse is left at 1"]

    def keep(self, wanted: Wanted, *, strict: bool) -> list[str]:
        """All others are put back."""
        assert strict
        self.kept.append([*wanted])
        return []


@pytest.fixture
def journals(monkeypatch: pytest.MonkeyPatch) -> dict[Path, FakeJournal]:
    """Of each folder of pins that was asked for; the folder /here is known as /there, too."""
    made: dict[Path, FakeJournal] = {}
    monkeypatch.setattr(guard, "journal_at", lambda pins, name=None: made.setdefault(name or pins, FakeJournal()))
    monkeypatch.setattr(start, "known_as", lambda pins: {"/here", "/there"} if pins == Path("/here") else {str(pins)})
    return made


def test_the_end_puts_the_sysctls_back_and_says_what_is_left(
    journals: dict[Path, FakeJournal], caplog: pytest.LogCaptureFixture
) -> None:
    """Once."""
    with caplog.at_level(logging.WARNING), Sysctls(Path("/one")):
        assert 0 == journals[Path("/one")].restored
    assert 1 == journals[Path("/one")].restored
    assert ["net.ipv4.tcp_tw_reuse is left at 1"] == [record.getMessage() for record in caplog.records]


def test_an_error_puts_them_back_too(journals: dict[Path, FakeJournal]) -> None:
    """And stays an error."""
    with pytest.raises(OSError, match="busy"), Sysctls(Path("/one")):
        raise OSError("busy")
    assert 1 == journals[Path("/one")].restored


def test_what_was_handed_over_is_left_to_the_next_start(journals: dict[Path, FakeJournal]) -> None:
    """The configuration that follows may want the same values."""
    with Sysctls(Path("/one")) as sysctls:
        sysctls.hand_over()
    assert 0 == journals[Path("/one")].restored


def test_by_another_name_of_the_folder_a_journal_is_put_back_before_anything_is_set(
    journals: dict[Path, FakeJournal],
) -> None:
    """Else what another daemon set would count as what was there before."""
    with Sysctls(Path("/here")):
        assert (0, 1) == (journals[Path("/here")].restored, journals[Path("/there")].restored)


def test_what_a_mode_does_not_set_is_put_back_first(journals: dict[Path, FakeJournal]) -> None:
    """Of mode vestigial's nothing stays for mode observe."""
    sysctls = Sysctls(Path("/one"))
    for mode in ("observe", "vestigial"):
        sysctls.leave_only(load(None, {"mode": mode}, default_file=NOWHERE).config)
    of_lo = [f"net.ipv4.conf.lo.{name}" for name in ("forwarding", "accept_local", "route_localnet")]
    sets = [*of_lo, "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_max_tw_buckets"]
    assert [[], sets] == journals[Path("/one")].kept


def test_a_start_that_is_refused_puts_back_what_an_earlier_one_left(
    journals: dict[Path, FakeJournal], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where a daemon has the lock it is left alone; without a bpffs there can be none."""
    one, other, third = (tmp_path / name for name in ("one", "other", "third"))
    monkeypatch.setattr(Pins, "on_bpffs", lambda self: self.root != third)
    daemon = Pins(other)
    daemon.lock()
    for folder in (one, other, third):
        put_back(folder)
    assert {one: 1, third: 1} == {folder: journal.restored for folder, journal in journals.items()}
    assert [other] == [*tmp_path.iterdir()]
    daemon.unlock()


@pytest.mark.parametrize("left", [True, False])
def test_sysctls_are_put_back_before_a_table_is_loaded(monkeypatch: pytest.MonkeyPatch, *, left: bool) -> None:
    """And the new table is told for how long an earlier guard is needed: as long as any of its vestiges lives."""
    order = list[str]()
    monkeypatch.setattr("twctl.modes.guard.is_left", lambda _: left)

    def refused(request: Request) -> None:
        order.append(f"load {request.earlier}")
        raise TwctlError("the kernel does not take it", "")

    pins = SimpleNamespace(root=Path("/one"), current=Path("/one/current"), load=refused)
    config = load(None, {}, default_file=NOWHERE).config
    with pytest.raises(TwctlError, match="does not take it"):
        take_over_or_load(
            cast("Pins", pins),
            config,
            Ours(frozenset(), frozenset(), Path("/nowhere")),
            lambda: order.append("sysctls"),
        )
    seconds = [2, 10, 60, 60, 60, 60] if left else []
    assert ["sysctls", f"load {[each * 10**9 for each in seconds]}"] == order
