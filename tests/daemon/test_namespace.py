"""One enrolled namespace, without a kernel."""

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from twctl.daemon.namespace import Namespace

FIELDS = Namespace.__dataclass_fields__


def made(**fields: object) -> Namespace:
    """A namespace of which these are known."""
    return Namespace(**cast("dict[str, Any]", dict.fromkeys(FIELDS) | fields))


@pytest.mark.parametrize("guarded", [False, True])
def test_what_counts_on_is_of_its_routes_and_guard(*, guarded: bool) -> None:
    """Without a guard it has none of its numbers."""
    guard = SimpleNamespace(counts=lambda: Counter(reattached=2, late=1)) if guarded else None
    one = made(routes=SimpleNamespace(changes=5, resyncs=3), guard=guard)
    expected = Counter(changes=5, resyncs=3) + Counter(reattached=2 * guarded, late=int(guarded))
    assert expected == one.counts()


def test_changed_routes_reach_the_classes_and_nothing_else_does() -> None:
    """The guard hears of each change, with the time since when."""
    synced, heard = list[str](), list[float]()
    for changed in (False, True):
        one = made(
            routes=SimpleNamespace(follow=lambda changed=changed: changed, trie=lambda: "trie"),
            tries=SimpleNamespace(sync=synced.append),
            guard=SimpleNamespace(follow=heard.append),
        )
        one.follow(11.0)
    assert (["trie"], [11.0, 11.0]) == (synced, heard)
