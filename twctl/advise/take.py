"""Takes the snapshot: table, tallies and counters, and the kernel's own numbers, over about a second."""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from twctl.addresses import Address, Endpoint
from twctl.advise.around import Around, cgroup_of, crowded, each_there, look_around
from twctl.advise.snapshot import Destination, Namespace, Orphaned, Search, Service, Snapshot, Unclosed
from twctl.advise.unclosed import HalfClosed, in_close_wait, look_unclosed
from twctl.classes import Class
from twctl.errors import TwctlError
from twctl.linux.limits import Limits, limits
from twctl.linux.netns import inside
from twctl.linux.ports import Ports
from twctl.linux.procfs import ephemeral_ports, socket_bytes
from twctl.modes.dry_run import freed
from twctl.modes.headroom import APART_SECONDS, Use, toward
from twctl.modes.obstacles import obstacles
from twctl.modes.searching import Searching
from twctl.modes.translation import look
from twctl.table.counters import DROPPED
from twctl.table.enrolments import reachable
from twctl.table.failures import Failing, failing
from twctl.table.looks import Look, rates
from twctl.table.maps import Table
from twctl.table.names import Names
from twctl.table.records import Vestige
from twctl.table.tallies import (
    LINES,
    PLACES,
    UNKNOWN,
    By,
    LocalPort,
    Owner,
    Party,
    Remote,
    Tally,
    main_owners,
    ranking,
)

# So many destinations are looked at by each of their numbers, and so many services.
LOOKED = 10
NONE = (None, 0, 0, 0)  # of a Tally: an endpoint without any

Key = tuple[str, Endpoint]  # namespace's name, remote endpoint


@dataclasses.dataclass(slots=True)
class Walk:
    """What one walk through the sessions finds of some endpoints: class, and how many have timestamps or have none.

    wanted: by endpoint, what connect() chooses ports from there; holding: how many of these ports of a local address
    sessions without timestamps have.
    """

    wanted: Mapping[Key, Ports]
    classes: dict[Key, Class] = dataclasses.field(default_factory=dict)
    stamped: Counter[Key] = dataclasses.field(default_factory=Counter)
    plain: Counter[Key] = dataclasses.field(default_factory=Counter)
    holding: Counter[tuple[Key, Address]] = dataclasses.field(default_factory=Counter)

    def passing(self, vestiges: Iterable[Vestige]) -> Iterator[Vestige]:
        """Count the sessions as they pass."""
        for each in vestiges:
            key = each.netns, (each.remote, each.remote_port)
            if key in self.wanted:
                self.classes[key] = each.class_
                if each.known and each.ts_recent is None:
                    self.plain[key] += 1
                    self.holding[key, each.local] += each.local_port in self.wanted[key]
                elif each.known:
                    self.stamped[key] += 1
            yield each

    def with_plain(self, use: Use) -> Use:
        """The same, but that sessions without timestamps hold their ports whatever tcp_tw_reuse says."""
        holding = self.holding[(use.netns, (use.remote, use.remote_port)), use.local]
        return dataclasses.replace(use, time_wait=min(use.ports, max(use.time_wait, holding)))


class Counted(NamedTuple):
    """Counters, tallies and limits of one moment. limits: by index of the namespace; one that has gone has none."""

    look: Look
    remotes: dict[Remote, Tally]
    limits: dict[int, Limits]


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """All that was found out. around, unclosed: by index of the namespace."""

    around: Mapping[int, Around]
    unclosed: Mapping[int, HalfClosed]
    before: Counted
    after: Counted
    uses: Mapping[Key, Use]
    failing: Mapping[Remote, Failing]
    walk: Walk
    owners: Mapping[Party, Owner]
    names: Names


def take(table: Table, time_wait: Mapping[Class, float], *, daemon: bool) -> Snapshot:
    """Look at everything. time_wait: the classes' times in force (s); daemon: whether one runs.

    :raises TwctlError: where the namespaces of the table cannot be entered.
    """
    names = reachable(table)
    lists = each_there(names, lambda index: look_around(names[index]))
    closed = each_there(lists, lambda index: in_close_wait(names[index]))
    with _searches_measured(table):
        before = _counted(table, lists)
        looked = _looked(before.remotes, lists)
        if not looked:
            time.sleep(APART_SECONDS)
        tallies = [before.remotes.get(each) or Tally(each, *NONE) for each in looked]
        uses = list(toward(table, tallies, daemon=daemon))
        after = _counted(table, lists)
    unclosed = each_there(closed, lambda index: look_unclosed(names[index], closed[index]))
    lists = {index: lists[index] for index in unclosed if index in before.limits and index in after.limits}
    looked = [each for each in looked if each.netns in lists]
    walk = Walk({_key(each, lists): lists[each.netns].ports for each in looked})
    would_free = freed(walk.passing(table.vestiges()), time_wait, ephemeral_ports(), socket_bytes())
    keeps = {each.name: after.limits[index].max_tw_buckets > 0 for index, each in lists.items()}
    worst = _worst(walk.with_plain(use) if keeps.get(use.netns) else use for use in uses)
    owners = main_owners(table, By.REMOTE, looked)
    facts = Facts(lists, unclosed, before, after, worst, failing(table, after.look.at), walk, owners, Names(table))
    more = rates(before.look, after.look.held(before.look))
    namespaces = each_there(lists, lambda index: _namespace(index, facts))
    return Snapshot(
        mode=table.mode,
        daemon=daemon,
        seconds=round(after.look.at - before.look.at, 3),
        entered=round(sum(more["entered", class_.label] for class_ in Class), 1),
        passive=round(more["closed", "passive"], 1),
        search=_search(before.look, after.look),
        freed=would_free,
        destinations=tuple(_destination(each, facts) for each in looked if each.netns in namespaces),
        services=tuple(_services(table, facts)),
        namespaces=tuple(namespaces.values()),
        full={class_.label: round(share, 3) for class_, share in after.look.full.items()},
        evicted=_some((class_.label, more["ended", class_.label, "evicted"]) for class_ in Class),
        dropped=_some((why, more["dropped", why]) for why in (*DROPPED, "nested")),
    )


@contextlib.contextmanager
def _searches_measured(table: Table) -> Iterator[None]:
    """Have connect()'s searches for a port measured meanwhile, where that is wanted and possible."""
    with contextlib.ExitStack() as measuring:
        with contextlib.suppress(TwctlError):
            measuring.enter_context(Searching(table))
        yield


def _counted(table: Table, lists: Mapping[int, Around]) -> Counted:
    tallies = ranking(table, By.REMOTE, LINES * PLACES)
    remotes = {tally.party: tally for tally in tallies if isinstance(tally.party, Remote)}
    found = each_there(lists, lambda index: limits(lists[index].name or None))
    return Counted(Look.read(table), remotes, found)


def _search(before: Look, after: Look) -> Search | None:
    if "found" not in before.searches or "found" not in after.searches:
        return None
    found = after.searches["found"].since(before.searches["found"])
    return Search(round(found.made / (after.at - before.at), 1), round(found.mean, 7))


def _some(found: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Those that there are."""
    return {name: round(rate, 1) for name, rate in found if rate}


def _rate(facts: Facts, before: float, after: float) -> float:
    """How many more a second."""
    return round(max(0, after - before) / (facts.after.look.at - facts.before.look.at), 1)


def _key(remote: Remote, lists: Mapping[int, Around]) -> Key:
    return lists[remote.netns].name, (remote.address, remote.port)


def _looked(remotes: Mapping[Remote, Tally], lists: Mapping[int, Around]) -> list[Remote]:
    """The endpoints that matter: with most sessions, with calls that failed, with many live connections."""
    mine = [party for party in remotes if party.netns in lists]
    # Toward a client's port there is one session: that is no destination.
    several = [each for each in mine if remotes[each].sessions > 1]
    busy = sorted(several, key=lambda each: -remotes[each].sessions)[:LOOKED]
    failed = sorted((each for each in mine if remotes[each].no_port), key=lambda each: -remotes[each].no_port)[:LOOKED]
    return list(dict.fromkeys([*busy, *failed, *crowded(lists, LOOKED)]))


def _worst(uses: Iterable[Use]) -> dict[Key, Use]:
    """Of each endpoint the local address with the most ports in use."""
    return {(each.netns, (each.remote, each.remote_port)): each for each in sorted(uses, key=lambda use: use.ratio)}


def _destination(remote: Remote, facts: Facts) -> Destination:
    here, key = facts.around[remote.netns], _key(remote, facts.around)
    before, after = (each.remotes.get(remote) or Tally(remote, *NONE) for each in (facts.before, facts.after))
    use, failing_, class_ = facts.uses.get(key), facts.failing.get(remote), facts.walk.classes.get(key)
    return Destination(
        netns=here.name,
        remote=str(remote.address),
        remote_port=remote.port,
        class_="" if class_ is None else class_.label,
        owner=facts.names.owner(facts.owners.get(remote) or Owner(cgroup_of(here, key[1]), None)),
        sessions=after.sessions,
        stamped=facts.walk.stamped[key],
        plain=facts.walk.plain[key],
        entered=_rate(facts, (before.entered or 0) - before.error, (after.entered or 0) - after.error),
        no_port=_rate(facts, before.no_port, after.no_port),
        failed=after.no_port,
        failing_since=round(failing_.since, 1) if failing_ else None,
        failed_last=round(failing_.last, 1) if failing_ else None,
        ports=len(here.ports),
        time_wait=use.time_wait if use else 0,
        live=use.live if use else 0,
        close_wait=facts.unclosed[remote.netns].closed_by[key[1]],
        rate=round(use.rate, 1) if use else 0.0,
        seconds_left=None if not use or use.seconds_left is None else round(use.seconds_left, 1),
    )


def _services(table: Table, facts: Facts) -> Iterator[Service]:
    """Ports that are no client's, with most of the sessions that this host closed there."""
    tallies = ranking(table, By.LOCAL_PORT, LINES * PLACES)
    parties = {
        tally.party: tally.sessions for tally in tallies if isinstance(tally.party, LocalPort) and tally.sessions
    }
    around = facts.around
    served = [each for each in parties if each.netns in around and each.port not in around[each.netns].ports][:LOOKED]
    owners = main_owners(table, By.LOCAL_PORT, served)
    for each in served:
        owner = facts.names.owner(owners.get(each, UNKNOWN))
        yield Service(around[each.netns].name, each.port, owner, parties[each])


def _namespace(index: int, facts: Facts) -> Namespace:
    each = facts.around[index]
    before, after = (counted.limits[index] for counted in (facts.before, facts.after))
    unclosed = facts.unclosed[index]
    most = unclosed.close_wait + unclosed.orphans
    return Namespace(
        name=each.name,
        ports=len(each.ports),
        listening=each.listening,
        bound=each.bound,
        overflowed=_rate(facts, before.overflow, after.overflow),
        obstacles=tuple(obstacle.text for obstacle in obstacles(each.name or None)),
        limits=after,
        translations=tuple(inside(each.name or None, lambda: look(each.name, LOOKED)[1])),
        unclosed=tuple(
            Unclosed(facts.names.owner(Owner(owner, None)), unclosed.close_wait[owner], unclosed.orphans[owner])
            for owner, _ in most.most_common(LOOKED)
        ),
        orphaned=tuple(
            Orphaned(str(address), port, count) for (address, port), count in unclosed.toward.most_common(LOOKED)
        ),
    )
