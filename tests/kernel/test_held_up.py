"""A CPU is held up in the middle of an entry until its ring has come round: its slot is nobody else's meanwhile."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load.programs import Programs, set_clock
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.counters import DROPPED
from twctl.table.maps import Table
from twctl.table.records import Vestige

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

POOL = 16
SOCKET_PORT = 80
HALVES = r"""
BPF_ARRAY(numbers, u32, 1);

/* The session of the next number, from 1 on: its remote address and port. */
ALWAYS_INLINE void next_session(struct work *w, u32 flags)
{
	u32 zero = 0, *number = numbers.lookup(&zero);

	if (!number)
		return;
	w->family = FAMILY_IPV4;
	__builtin_memset(&w->session, 0, sizeof(w->session));
	++*number;
	w->session.tuple.local[0] = 0x0100000a;
	w->session.tuple.remote[0] = bpf_htonl(*number);
	w->session.tuple.remote_port = bpf_htons(*number);
	w->session.snd_nxt = *number;
	w->owner = OWNER_UNKNOWN;
	w->flags = flags;
	w->socket = w->session.tuple;
	w->socket.local_port = bpf_htons(80);
}

#define LIFE 100000000000

int first_half(struct __sk_buff *skb)
{
	struct work *w = work_of(WORKER_AGAIN);

	if (!w)
		return 0;
	next_session(w, TRANSLATED);
	return take_place(w, CLASS_REMOTE, 0, LIFE) != NULL;
}

int second_half(struct __sk_buff *skb)
{
	struct work *w = work_of(WORKER_AGAIN);
	struct ring *ring = w ? ring_of(w, CLASS_REMOTE) : NULL;

	return ring && fill_place(w, ring, CLASS_REMOTE);
}

int whole(struct __sk_buff *skb)
{
	struct work *w = work_of(WORKER_ENTRY);

	if (!w)
		return 0;
	next_session(w, 0);
	return vestige_insert(w, CLASS_REMOTE, 0, LIFE);
}

/* A session of the first slot ends just after a look at its line has seen its word. */
int ends_as_it_is_found(struct __sk_buff *skb)
{
	struct work *w = work_of(WORKER_ENTRY);
	struct line *line;

	if (!w)
		return -1;
	next_session(w, 0);
	if (!vestige_insert(w, CLASS_LOOPBACK, 0, LIFE))
		return -2;
	line = find_line(w, &w->session.tuple);
	if (!line)
		return -3;
	scan_line(w, line, false);
	if (!w->tagged)
		return -4;
	__builtin_memset(line, 0, sizeof(*line));
	return match_tuple(w, line);
}

/* An owner has its place, but nothing is counted there yet. */
int owner_begins(struct __sk_buff *skb)
{
	struct work *w = work_of(WORKER_ENTRY);
	struct tallies *line;
	u32 number;

	if (!w)
		return -1;
	w->now = 2 * HORIZON_TICKS;
	name_owner(w, 1, 1);
	number = tallies_at(w->keys[BY_OWNER], BY_OWNER);
	line = tallies.lookup(&number);
	if (!line || !claim_place(w, line, 0, w->keys[BY_OWNER], BY_OWNER))
		return -2;
	return is_active(line, 0, w->now) && is_active(line, 0, w->now - 1); /* of who read the clock just before */
}
"""


class Ring:
    """One of POOL slots, of which one entry can be held up."""

    def __init__(self, programs: Programs, table: Table) -> None:
        self._programs = programs
        self._table = table
        self._next = 1
        self._translated: set[int] = set()

    def begin(self) -> None:
        """A session begins to enter: one that has another tuple on the wire, and so takes two slots."""
        self._translated.add(self._next)
        self._next += 1
        assert self._programs.result("first_half")

    def go_on(self) -> bool:
        """It goes on; whether it has entered."""
        return bool(self._programs.result("second_half"))

    def enter(self, count: int) -> int:
        """So many sessions enter; returns how many found no place."""
        before = self._contended()
        self._programs.result("whole", count)
        self._next += count
        return self._contended() - before

    def result(self, name: str) -> int:
        """What a program returns."""
        return self._programs.result(name)

    def _contended(self) -> int:
        return self._table.counters().get("dropped", DROPPED.index("contention"))

    def numbers(self) -> list[int]:
        """Of those that live, each of which must be of one piece."""
        return sorted(self._number(each) for each in self._table.vestiges())

    def _number(self, vestige: Vestige) -> int:
        number = int.from_bytes(vestige.remote.packed, "big")
        assert (number, SOCKET_PORT if number in self._translated else 0) == (vestige.remote_port, vestige.local_port)
        return number


@pytest.fixture(scope="module")
def ring() -> Iterator[Ring]:
    """Both halves run on one CPU, as each has its own memory; the tests share the table, one after the other."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    programs = Programs(HALVES, 0, sizes=dict.fromkeys(FAMILIES, dict.fromkeys(Class, POOL)))
    folder = Path(f"/sys/fs/bpf/twctl-test-held-up-{os.getpid()}")
    with programs.pinned(folder):
        set_clock(folder)
        table = Table(folder)
        yield Ring(programs, table)
        table.close()
    os.sched_setaffinity(0, cpus)


def test_a_writer_that_is_not_held_up_enters(ring: Ring) -> None:
    """In halves, too."""
    ring.begin()
    assert 0 == ring.enter(3)
    assert ring.go_on()
    assert [1, 2, 3, 4] == ring.numbers()


@pytest.mark.parametrize("laps", [1, 2, 3, 4])
def test_a_writer_that_is_held_up_for_laps_destroys_no_record(ring: Ring, laps: int) -> None:
    """Who comes to its two slots finds no place, and nor does it itself; from the next lap on there is one for each."""
    ring.begin()
    assert 2 * laps == ring.enter(laps * POOL)
    before = ring.numbers()
    assert POOL - 2 == len(before)
    assert not ring.go_on()
    assert before == ring.numbers()
    assert 0 == ring.enter(POOL)
    assert POOL == len(ring.numbers())


def test_a_session_that_ends_as_it_is_looked_for_is_not_found(ring: Ring) -> None:
    """Its word is 0 then, which is not the first slot's: whoever took it for that would end the session once more."""
    assert 0 == ring.result("ends_as_it_is_found")


def test_an_owner_keeps_its_place_before_its_first_entry_is_counted(ring: Ring) -> None:
    """Or another would have its vestiges."""
    assert 1 == ring.result("owner_begins")
