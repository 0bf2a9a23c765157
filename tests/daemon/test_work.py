"""Which tasks and sources a daemon has; tests/kernel shows that each mode does what it should."""

from types import SimpleNamespace
from typing import Any

from twctl.daemon.work import Work


def work(*, follows_names: bool = False, **parts: Any) -> Any:  # noqa: ANN401 - fakes have no types
    """A daemon with these parts."""
    discovery = SimpleNamespace(follows_names=follows_names, namespaces=SimpleNamespace())
    return Work("reconciling", discovery, "reaper", **parts)  # type: ignore[arg-type]


def test_what_a_mode_does_not_have_is_no_task() -> None:
    """Comparing with the kernel's list is all that observe needs."""
    assert ["reconciling"] == list(work().tasks())
    assert ["reconciling", "guarding", "looking"] == list(work(guarding="guarding", port_look="looking").tasks())


def test_names_are_looked_at_only_where_namespaces_have_names() -> None:
    """The daemon's own namespace neither comes nor goes."""
    named = work(follows_names=True)
    assert [named.reconciling, named.discovery] == list(named.tasks())
    assert [1, 2] == [len(list(each.sources())) for each in (work(), named)]
