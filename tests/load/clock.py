"""A time machine: a table whose clock stands until a test moves it, by a tick or by weeks, and what it must hold then.

The programs take their ticks from meta.epoch alone here (there are no jiffies), and Python's monotonic clock is the
same. What the table should hold is kept beside it, in batches of sessions that entered together.
"""

import dataclasses
import itertools
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.load.programs import SMALL, Programs
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.modes.reconcile import Reconciler
from twctl.table.counters import PERIOD_SHIFT, TICK, TICK_SHIFT, Reason
from twctl.table.maps import META, Table
from twctl.table.pinned import store
from twctl.table.records import HORIZON_TICKS
from twctl.table.sums import Sums

LOCAL_PORT, REMOTE_PORT = 40_000, 443
SERVICE_PORT = 80  # what applications see instead where packets are translated

ORDERS = r"""
/* What the next run is to do, written by the test. */
struct order {
	u64 number, class, family, age, nanoseconds, fin_wait2, reason, translating, done;
};
BPF_F_TABLE("array", u32, struct order, orders, 1, BPF_F_MMAPABLE);

/* The session of this number: its remote address. Some are translated, and so take two slots. */
ALWAYS_INLINE struct work *ordered(struct order *o)
{
	struct work *w = work_of(WORKER_ENTRY);
	struct tuple *t;

	if (!w)
		return NULL;
	t = &w->session.tuple;
	w->family = o->family;
	__builtin_memset(t, 0, sizeof(*t));
	t->local[0] = 0x0100000a;
	t->remote[0] = bpf_htonl(o->number);
	t->local_port = bpf_htons(40000);
	t->remote_port = bpf_htons(443);
	if (!is_ipv4(w)) {
		t->local[0] = 0xfd;
		t->remote[0] = 0xfd;
		t->remote[3] = bpf_htonl(o->number);
	}
	w->owner = OWNER_UNKNOWN;
	w->flags = o->translating && !(o->number % o->translating) ? TRANSLATED : 0;
	w->socket = *t;
	w->socket.remote_port = bpf_htons(80);
	w->session.bits = VESTIGE_TIMESTAMPS;
	w->session.fin_wait2 = o->fin_wait2 != 0;
	w->session.snd_nxt = w->session.rcv_nxt = o->number;
	return w;
}

/* A session enters, and the next has the next number. */
int enter(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct order *o = orders.lookup(&zero);
	struct work *w = o ? ordered(o) : NULL;

	if (!w)
		return 1;
	o->number++;
	o->done += vestige_insert(w, o->class & 3, o->age, o->nanoseconds);
	sweep_some(w);
	return 0;
}

/* The timer of one starts anew. */
int restart(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct order *o = orders.lookup(&zero);
	struct work *w = o ? ordered(o) : NULL;

	if (!w)
		return 1;
	if (vestige_find(w) && vestige_read(w)) {
		set_substate(&w->session, o->fin_wait2 != 0);
		o->done += vestige_restart(w, o->age, o->nanoseconds);
	}
	return 0;
}

/* One ends. */
int end(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct order *o = orders.lookup(&zero);
	struct work *w = o ? ordered(o) : NULL;
	struct line *line;

	if (!w)
		return 1;
	if (vestige_find(w)) {
		line = line_at(w, w->home);
		o->done += line && vestige_end(w, &line->word[in_line(w, w->spare)], w->word, o->reason);
	}
	return 0;
}
"""
ORDER = struct.Struct("=9Q")


@dataclasses.dataclass
class Batch:
    """Sessions of consecutive numbers that entered together. start, expiry: ticks."""

    first: int
    count: int
    class_: Class
    family: str
    start: int
    expiry: int

    def lives(self, tick: int) -> bool:
        """Whether they do."""
        return tick < self.expiry


class Machine:
    """The table and its clock. sweeping: as the daemon's, which zeroes expired words every five minutes.

    translating: each session whose number this divides has another tuple on the wire (0: none).
    """

    translating = 3

    def __init__(self, programs: Programs, folder: Path, *, sweeping: bool) -> None:
        self.table = Table(folder, writable=True)
        self.ns = time.monotonic_ns()
        self.programs = programs
        self.batches: list[Batch] = []
        self.ended: Counter[tuple[Class, Reason]] = Counter()
        self.restarted = 0
        self._next = 1
        self._orders = self.table.map("orders", ORDER.size)
        self._meta = self.table.map("meta", META.size)
        self._reconciler = Reconciler(self.table, {}) if sweeping else None
        self._swept_ns = self.ns
        self.table.swept(self.ns)
        self._set_clock()

    @property
    def tick(self) -> int:
        """Now."""
        return self.ns >> TICK_SHIFT

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        """Let Python have the same clock."""
        patch.setattr(time, "monotonic_ns", lambda: self.ns)
        patch.setattr(time, "monotonic", lambda: self.ns / 1e9)

    def forward(self, seconds: float) -> None:
        """Time passes, and nothing happens but sweeps."""
        end = self.ns + int(seconds * 1e9)
        while self._reconciler and end - self._swept_ns >= 300 * 10**9:
            self._swept_ns += 300 * 10**9
            self.ns = max(self.ns, self._swept_ns)
            self._set_clock()
            self._reconciler.sweep()
        self.ns = end
        self._set_clock()

    def to_the_next_period(self) -> None:
        """Go on until a period of the cells begins: they hold those that live, and those that expire right then."""
        periods = -(-self.ns >> TICK_SHIFT + PERIOD_SHIFT)
        self.ns = periods << TICK_SHIFT + PERIOD_SHIFT
        self._set_clock()

    def _set_clock(self) -> None:
        store(self._meta, META.fields["epoch"].offset, "Q", self.ns)

    def enter(
        self, class_: Class, seconds: float, count: int = 1, family: str = "ipv4", *, fin_wait2: bool = False
    ) -> Batch:
        """So many sessions enter, for so long."""
        life = self._order(self._next, class_, family, seconds, fin_wait2=fin_wait2)
        self.programs.result("enter", count)
        self._done(count)
        made = Batch(self._next, count, class_, family, self.tick, self.tick + life)
        self._next += count
        self.batches.append(made)
        return made

    def restart(self, batch: Batch, seconds: float) -> Batch:
        """The first of a batch starts its timer anew, and leaves the batch."""
        life = self._order(batch.first, batch.class_, batch.family, seconds)
        self.programs.result("restart")
        self._done(1)
        self.restarted += 1
        made = Batch(batch.first, 1, batch.class_, batch.family, self.tick, self.tick + life)
        self._take_first(batch)
        self.batches.append(made)
        return made

    def end(self, batch: Batch, reason: Reason) -> None:
        """The first of a batch ends."""
        self._order(batch.first, batch.class_, batch.family, 0, reason=reason)
        self.programs.result("end")
        self._done(1)
        self._take_first(batch)
        self.ended[batch.class_, reason] += 1

    @staticmethod
    def _take_first(batch: Batch) -> None:
        batch.first += 1
        batch.count -= 1

    def _order(  # noqa: PLR0913 - keywords
        self, number: int, class_: Class, family: str, seconds: float, *, fin_wait2: bool = False, reason: int = 0
    ) -> int:
        """Write down what the next run does; returns the life in ticks (bpf/life.h)."""
        ns = int(seconds * 1e9)
        where = number, class_, FAMILIES.index(family), 0
        ORDER.pack_into(self._orders, 0, *where, ns, fin_wait2, reason, self.translating, 0)
        return min((ns >> TICK_SHIFT) + 2, HORIZON_TICKS)

    def _done(self, count: int) -> None:
        assert count == ORDER.unpack_from(self._orders)[-1]

    def living(self, tick: int | None = None) -> Counter[tuple[Class, str]]:
        """What should live, now or at another tick: sessions by class and family."""
        found: Counter[tuple[Class, str]] = Counter()
        for batch in self.batches:
            if batch.lives(self.tick if tick is None else tick):
                found[batch.class_, batch.family] += batch.count
        return found

    def forget_the_dead(self, tick: int) -> None:
        """Count those that have expired by then, and drop their batches."""
        for batch in self.batches:
            if not batch.lives(tick):
                self.ended[batch.class_, Reason.EXPIRED] += batch.count
        self.batches = [batch for batch in self.batches if batch.lives(tick) and batch.count]

    def look(self) -> None:
        """Table, cells and counters say what they should: how many live, entered, ended and why."""
        self.to_the_next_period()
        assert self.living() == self.walked()
        self.forget_the_dead(self.tick - 1)
        sums = Sums.read(self.table)
        assert self.living(self.tick - 1) == +Counter(
            {key: sums.sessions(*key) for key in itertools.product(Class, FAMILIES)}
        )
        reasons = itertools.product(Class, Reason)
        assert +self.ended == +Counter({(class_, each): sums.ended(class_, each) for class_, each in reasons})
        assert self.restarted == sum(sums.counters.values["restarted"])
        lanes = sum(sum(sums.lifetimes(class_)[0]) for class_ in Class)
        assert lanes == sum(self.ended.values())
        assert not any(sums.counters.values["dropped"])
        self.forget_the_dead(self.tick)

    def walked(self) -> Counter[tuple[Class, str]]:
        """What a walk of the index finds."""
        found: Counter[tuple[Class, str]] = Counter()
        for family in FAMILIES:
            for batch in itertools.chain.from_iterable(self.table.batches(family)):
                found[batch.class_, family] += len(batch.slots)
        return found

    def look_closely(self) -> None:
        """Each session has its age, and what is left of its life."""
        self.look()
        found = {(each.family, self.number(each.remote.packed)): each for each in self.table.vestiges()}
        for batch in self.batches:
            for number in range(batch.first, batch.first + batch.count):
                vestige = found.pop((batch.family, number))
                ticks = round(vestige.age / TICK), round(vestige.expires_in / TICK)
                assert (self.tick - batch.start, batch.expiry - self.tick) == ticks
                assert batch.class_ == vestige.class_
                wire = vestige.wire or vestige
                assert (REMOTE_PORT, vestige.local, vestige.remote) == (wire.remote_port, wire.local, wire.remote)
                translated = self.translating and number % self.translating == 0
                assert vestige.remote_port == (SERVICE_PORT if translated else REMOTE_PORT)
        assert not found

    @staticmethod
    def number(address: bytes) -> int:
        """Of the session with this remote address."""
        return int.from_bytes(address[-4:], "big")


@contextmanager
def machine(
    folder: Path, *, sizes: Mapping[str, Mapping[Class, int]] | None = None, sweeping: bool = True
) -> Iterator[Machine]:
    """A table of these capacities, by family and class, with a clock that stands."""
    sizes = sizes or dict.fromkeys(FAMILIES, SMALL)
    programs = Programs(ORDERS, 0, sizes=sizes, defines={"bpf_jiffies64()": "0ULL"})
    with programs.pinned(folder, "orders"):
        yield Machine(programs, folder, sweeping=sweeping)
