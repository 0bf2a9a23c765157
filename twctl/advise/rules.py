"""All rules, and what they say of a snapshot, the heaviest first."""

from collections.abc import Callable

from twctl.advise.advice import Advice
from twctl.advise.host import (
    all_is_well,
    buckets_overflow,
    conntrack_full,
    mode_fits,
    orphans_overflow,
    peer_closes_first,
    peers_have_closed,
    server_closes_first,
    translation_used_up,
)
from twctl.advise.own import entries_lost, guard_suspended, no_daemon, table_too_small
from twctl.advise.ports import (
    connections_leak,
    keep_alive,
    loopback,
    ports_bound,
    ports_used_up,
    reuse_helps,
    reuse_needs_timestamps,
    search_is_long,
)
from twctl.advise.snapshot import Snapshot

Rule = Callable[[Snapshot], Advice | None]
RULES: tuple[Rule, ...] = (
    no_daemon,
    table_too_small,
    entries_lost,
    guard_suspended,
    ports_used_up,
    ports_bound,
    connections_leak,
    peers_have_closed,
    search_is_long,
    conntrack_full,
    translation_used_up,
    orphans_overflow,
    buckets_overflow,
    keep_alive,
    reuse_helps,
    reuse_needs_timestamps,
    mode_fits,
    server_closes_first,
    loopback,
    peer_closes_first,
)


def advise(snapshot: Snapshot) -> list[Advice]:
    """What the rules say, the heaviest first; that all is well where they say nothing."""
    said = [advice for rule in RULES if (advice := rule(snapshot))]
    return sorted(said, key=lambda each: -each.weight) or [all_is_well(snapshot)]
