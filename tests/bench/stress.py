"""The table under stress: all CPUs enter, read, restart and end the same few sessions in tiny pools.

Each state that is read must be of the session that was asked for, and all of it of one entry: each number of a record
follows from the session's number and from what was drawn at its entry. Once all is quiet, those that live by a walk
of the table are as many as the cells say. On a weakly ordered CPU this is what tries the order of the table's steps.
"""

import argparse
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.load.programs import Programs, set_clock
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.counters import DROPPED
from twctl.table.layout import possible_cpus
from twctl.table.maps import Table
from twctl.table.sums import Sums

SECONDS, SHORT_SECONDS = 60, 3
POOL = 16  # slots of each class and family
RUNS = 256  # of a program in one go, before another one is drawn
STEPS = {"enter_one": 8, "read_one": 8, "restart_one": 2, "end_one": 1}  # by how often each is drawn
COUNTED = ("entered", "read", "restarted", "ended", "lost", "lapped", "torn", "foreign")

PROGRAMS = r"""
#define SESSIONS 64 /* of each family: more than have room in its pools */

struct found {
	u64 entered, read, restarted, ended;
	u64 lost;	/* ended or given away while it was read */
	u64 lapped;	/* a writer was held up until its ring had come round */
	u64 torn;	/* of two entries */
	u64 foreign;	/* of another session */
};
BPF_F_TABLE("array", u32, struct found, founds, CPUS, BPF_F_MMAPABLE);

ALWAYS_INLINE struct found *the_found(void)
{
	u32 cpu = bpf_get_smp_processor_id();

	return founds.lookup(&cpu);
}

/* Some session: its number is its remote address, and some are translated. */
ALWAYS_INLINE struct work *some_session(u32 *number)
{
	struct work *w = work_of(WORKER_ENTRY);
	struct tuple *t;
	u32 drawn = bpf_get_prandom_u32();

	if (!w)
		return NULL;
	*number = drawn % SESSIONS;
	t = &w->session.tuple;
	w->family = drawn >> 31;
	__builtin_memset(t, 0, sizeof(*t));
	t->local[0] = 0xfd;
	t->remote[0] = is_ipv4(w) ? *number : 0xfd;
	t->remote[3] = is_ipv4(w) ? 0 : *number;
	t->local_port = bpf_htons(40000);
	t->remote_port = bpf_htons(443);
	w->owner = OWNER_UNKNOWN;
	w->flags = *number % 3 ? 0 : TRANSLATED;
	w->socket = *t;
	w->socket.remote_port = ~*number;
	return w;
}

/* What an entry's state must be, by what was drawn for it. */
ALWAYS_INLINE u64 state_of(u32 number, u32 drawn)
{
	return mix(drawn, number);
}

int enter_one(struct __sk_buff *skb)
{
	struct found *f = the_found();
	u32 number, drawn = bpf_get_prandom_u32(), class = bpf_get_prandom_u32();
	struct work *w = some_session(&number);
	struct ring *ring;
	u64 state;

	if (!w || !f)
		return 1;
	state = state_of(number, drawn);
	w->session.fin_wait2 = drawn >> 30 & 1;
	w->session.snd_nxt = drawn;
	w->session.rcv_nxt = (u32)state + !w->session.fin_wait2;
	w->session.ts_recent = state >> 32 & 0xffff0000;
	w->session.ts_offset = number;
	w->session.window = state >> 16;
	w->session.bits = VESTIGE_TIMESTAMPS;
	w->session.device = 0;
	w->session.marking = state >> 8;
	f->entered += vestige_insert(w, class & 3 /* 3: nothing enters */, 0, (u64)(drawn % 1024) << TICK_SHIFT);
	ring = ring_of(w, class & 3);
	if (ring && turn_of(ring, w->slot) != w->turn)
		f->lapped++;
	return 0;
}

/* Whether a state that was read is of one entry, and of this session. */
ALWAYS_INLINE void look_at_state(struct found *f, const struct work *w, u32 number)
{
	const struct session *s = &w->session;
	u64 state = state_of(number, s->snd_nxt);
	u32 difference = peer_fin(s) ^ (u32)state;

	difference |= ((s->ts_recent ^ (u32)(state >> 32)) & 0xffff0000) | (s->window ^ (u16)(state >> 16));

	if (!is_ipv4(w))
		difference |= s->marking ^ (u32)(state >> 8);
	f->read++;
	if (s->ts_offset != number)
		f->foreign++;
	else if (difference)
		f->torn++;
}

int read_one(struct __sk_buff *skb)
{
	struct found *f = the_found();
	u32 number;
	struct work *w = some_session(&number);

	if (!w || !f || !vestige_find(w))
		return 1;
	w->socket.remote_port = 0;
	if (!vestige_socket(w)) {
		f->lost++;
		return 0;
	}
	if (w->flags & TRANSLATED && w->socket.remote_port != (u16)~number)
		f->foreign++;
	if (vestige_read(w))
		look_at_state(f, w, number);
	else
		f->lost++;
	return 0;
}

/* A timer starts anew, FIN_WAIT2 becomes TIME_WAIT, and the peer's timestamp moves. */
int restart_one(struct __sk_buff *skb)
{
	struct found *f = the_found();
	u32 number, drawn = bpf_get_prandom_u32();
	struct work *w = some_session(&number);

	if (!w || !f || !vestige_find(w) || !vestige_read(w))
		return 1;
	look_at_state(f, w, number);
	set_substate(&w->session, false);
	w->session.ts_recent = (w->session.ts_recent & 0xffff0000) | (drawn & 0xffff);
	if (!vestige_restart(w, 0, (u64)(drawn % 1024) << TICK_SHIFT))
		return 0;
	renew_timestamp(w, slot_of(w->word));
	f->restarted++;
	return 0;
}

int end_one(struct __sk_buff *skb)
{
	struct found *f = the_found();
	u32 number;
	struct work *w = some_session(&number);
	struct line *line;

	if (!w || !f || !vestige_find(w))
		return 1;
	line = line_at(w, w->home);
	if (line)
		f->ended += vestige_end(w, &line->word[in_line(w, w->spare)], w->word, REASON_RESET);
	return 0;
}
"""


def run(*, short: bool = False, seconds: float | None = None) -> dict[str, Any]:
    """What all CPUs found, in a minute or a few seconds."""
    programs = Programs(PROGRAMS, 0, sizes=dict.fromkeys(FAMILIES, dict.fromkeys(Class, POOL)))
    folder = Path(f"/sys/fs/bpf/twctl-stress-{os.getpid()}")
    with programs.pinned(folder, "founds"):
        set_clock(folder)
        drive(programs, seconds or (SHORT_SECONDS if short else SECONDS))
        table = Table(folder)
        found = sums_of(table) | {"miscounted": miscounted(table), "refused": refused(programs, table)}
        table.close()
    wrong = found["torn"] + found["foreign"] + found["miscounted"] + found["refused"]
    return {f"stress of the table, {os.cpu_count()} CPUs": found | {"wrong": wrong, "goal": 0, "met": not wrong}}


def drive(programs: Programs, seconds: float) -> None:
    """Run programs on each CPU at once, whichever is drawn, for so long."""
    for name in STEPS:
        programs.result(name)  # loads it
    until = time.monotonic() + seconds

    def run_on(cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})  # of this thread
        draw = random.Random(cpu)  # noqa: S311 - no secret
        while time.monotonic() < until:
            programs.result(draw.choices(list(STEPS), list(STEPS.values()))[0], RUNS)

    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        list(pool.map(run_on, os.sched_getaffinity(0)))


def sums_of(table: Table) -> dict[str, int]:
    """What the CPUs have counted."""
    numbers = memoryview(table.map("founds", len(COUNTED) * 8 * possible_cpus())).cast("Q")
    return {name: sum(numbers[i :: len(COUNTED)]) for i, name in enumerate(COUNTED)}


def miscounted(table: Table) -> int:
    """How many live by a walk of the table, against how many by the cells, in a moment in which none expires."""
    for _ in range(100):
        before, walked, after = (Sums.read(table), sum(1 for _ in table.vestiges()), Sums.read(table))
        counts = [
            sum(sums.sessions(class_, family) for class_ in Class for family in FAMILIES) for sums in (before, after)
        ]
        if counts[0] == counts[1]:
            return abs(counts[0] - walked)
        time.sleep(0.05)
    raise AssertionError("sessions expire in each look")


def refused(programs: Programs, table: Table) -> int:
    """How many entries find no place now that nobody is in their way: in slots that somebody has not left."""
    before = table.counters().get("dropped", DROPPED.index("contention"))
    programs.result("enter_one", 100 * POOL)
    return table.counters().get("dropped", DROPPED.index("contention")) - before


def main(words: list[str]) -> int:
    """Exit status 1 where a record was torn, or belonged to another tuple."""
    parser = argparse.ArgumentParser(prog="tests/bench/table --stress", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help="(default %(default)s)")
    figures = run(seconds=parser.parse_args(words).seconds)
    for what, each in figures.items():
        print(f"{what}: {', '.join(f'{key} {value}' for key, value in each.items())}")
    return int(not all(each["met"] for each in figures.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
