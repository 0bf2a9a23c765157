"""What a line of `twctl check` says; tests/kernel runs it on a real kernel."""

import pytest

from twctl.commands import check
from twctl.commands.check import Line, Verdict, _conntrack, _line
from twctl.errors import TwctlError
from twctl.linux.conntrack import Fill
from twctl.modes.translation import PORTS, Translation

SHORTER = "a shorter nf_conntrack_tcp_timeout_time_wait in [sysctl]"


def test_what_works_is_ok_with_its_reason() -> None:
    """No hint is needed."""
    found = _line("BTF", lambda: "has all fields")
    assert Line("BTF", Verdict.OK, "has all fields") == found
    assert "ok   BTF        has all fields" == str(found)


def test_what_fails_has_reason_and_hint() -> None:
    """From the error itself."""

    def attempt() -> str:
        raise TwctlError("no BTF", "another kernel")

    assert Line("BTF", Verdict.FAIL, "no BTF", "another kernel") == _line("BTF", attempt)
    assert "fail BTF        no BTF (another kernel)" == str(_line("BTF", attempt))


@pytest.mark.parametrize(
    ("entries", "taken", "verdict", "hint"),
    [
        (60000, 0, Verdict.OK, ""),
        (60000, 51600, Verdict.OK, ""),
        (60000, 51700, Verdict.LESS, f"{SHORTER}, connections that are kept alive, or more addresses to translate to"),
        (90000, 0, Verdict.LESS, f"a greater net.netfilter.nf_conntrack_max, or {SHORTER}"),
        (90000, 51700, Verdict.LESS, f"a greater net.netfilter.nf_conntrack_max, or {SHORTER}"),
    ],
)
def test_conntrack_has_room_for_entries_and_ports(
    monkeypatch: pytest.MonkeyPatch, entries: int, taken: int, verdict: Verdict, hint: str
) -> None:
    """By the bounds of the alerts; of the translation's ports the worst destination is told."""
    worst = [Translation("", "10.0.0.1", "2001:db8::9", 443, taken, 0)] if taken else []
    monkeypatch.setattr(check, "look", lambda _, most: (Fill(entries, 100000, {"drop": 3}), worst[:most]))
    ports = f", {PORTS - taken} of 64512 ports of 10.0.0.1 are left toward [2001:db8::9]:443" if taken else ""
    expected = Line("conntrack", verdict, f"{entries} of at most 100000 connections, drop 3{ports}", hint)
    assert expected == _conntrack()
