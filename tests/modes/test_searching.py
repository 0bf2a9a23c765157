"""Why searches for a port cannot be measured here; tests/kernel/test_searches.py measures them."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from twctl.errors import TwctlError
from twctl.modes.searching import Searching
from twctl.table.maps import Table


def refusing(error: OSError) -> Table:
    """A table whose program the kernel does not attach."""

    def attach(*_: object) -> int:
        raise error

    return cast("Table", SimpleNamespace(has=lambda _: True, attach=attach))


def test_a_table_without_it_is_refused() -> None:
    """With the key that has the next one loaded with it."""
    with pytest.raises(TwctlError, match=r"loaded without it .*port_search"):
        Searching(cast("Table", SimpleNamespace(has=lambda _: False)))


def test_without_a_mount_of_the_root_it_says_what_to_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the cgroups would be a part of the calls."""
    monkeypatch.setattr("twctl.modes.searching.root_cgroup", lambda: None)
    with pytest.raises(TwctlError, match="no mount of cgroup v2 shows its root"):
        Searching(refusing(OSError()))


def test_a_program_that_the_kernel_refuses_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another that is there wants to be alone, say."""
    monkeypatch.setattr("twctl.modes.searching.root_cgroup", lambda: Path("/root"))
    one = Searching(refusing(PermissionError(1, "Operation not permitted")))
    with pytest.raises(TwctlError, match="attached to /root: Operation not permitted"), one:
        pass
    one.end()  # nothing is there to take away
