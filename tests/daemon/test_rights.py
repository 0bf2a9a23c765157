"""What the daemon keeps of its rights, by its configuration."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from twctl.config.config import Config, load
from twctl.daemon import rights
from twctl.errors import TwctlError
from twctl.linux import capabilities
from twctl.linux.capabilities import Capability
from twctl.table.pins import Pins


def config(**changes: object) -> Config:
    """The defaults, but for these."""
    made = load(None, {}, default_file=Path("/nowhere")).config
    return dataclasses.replace(made, **cast("dict[str, Any]", changes))


@pytest.mark.parametrize(
    ("changes", "mounted", "expected"),
    [
        ({}, False, False),
        ({"mode": "vestigial"}, False, False),
        ({"netns": ("blue",)}, False, True),
        ({"all_netns": True}, False, True),
        ({}, True, True),
    ],
    ids=["default", "vestigial", "a namespace", "all namespaces", "a bpffs of ours"],
)
def test_cap_sys_admin_stays_only_where_it_has_a_use(
    changes: dict[str, object],
    mounted: bool,  # noqa: FBT001
    expected: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To enter namespaces, and to unmount at the end; what a reload needs stays always."""
    kept: list[Capability] = []
    monkeypatch.setattr(capabilities, "keep", lambda *them: kept.extend(them))
    rights.give_up(config(**changes), cast("Pins", SimpleNamespace(mounted=mounted)))
    assert {*rights.ALWAYS, *([Capability.SYS_ADMIN] if expected else [])} == set(kept)


def test_namespaces_are_refused_where_they_cannot_be_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line that says what to do; a configuration without is not."""
    monkeypatch.setattr(capabilities, "permitted", lambda _: False)
    rights.refuse(config())
    with pytest.raises(TwctlError, match=r"need CAP_SYS_ADMIN \(allow it as namespaces.conf does"):
        rights.refuse(config(netns=("blue",)))
    monkeypatch.setattr(capabilities, "permitted", lambda _: True)
    rights.refuse(config(netns=("blue",)))
