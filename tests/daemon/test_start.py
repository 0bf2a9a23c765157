"""What becomes of the sysctls at the end of a run; tests/kernel/test_takeover.py takes tables over."""

import logging
from typing import cast

import pytest

from twctl.daemon.start import SysctlsRestored
from twctl.linux.sysctl import Journal


class FakeJournal:
    """Counts how often everything was put back."""

    def __init__(self) -> None:
        self.restored = 0

    def restore(self) -> list[str]:
        """One sysctl was changed by somebody else."""
        self.restored += 1
        return ["net.ipv4.tcp_tw_reuse is left at 1"]


def test_the_end_puts_the_sysctls_back_and_says_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """Once."""
    journal = FakeJournal()
    with caplog.at_level(logging.WARNING), SysctlsRestored(cast("Journal", journal)):
        assert 0 == journal.restored
    assert 1 == journal.restored
    assert ["net.ipv4.tcp_tw_reuse is left at 1"] == [record.getMessage() for record in caplog.records]


def test_an_error_puts_them_back_too() -> None:
    """And stays an error."""
    journal = FakeJournal()
    with pytest.raises(OSError, match="busy"), SysctlsRestored(cast("Journal", journal)):
        raise OSError("busy")
    assert 1 == journal.restored


def test_what_was_handed_over_is_left_to_the_next_start() -> None:
    """The configuration that follows may want the same values."""
    journal = FakeJournal()
    with SysctlsRestored(cast("Journal", journal)) as sysctls:
        sysctls.hand_over()
    assert 0 == journal.restored
