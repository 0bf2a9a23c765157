"""`twctl events` beside real sessions: what it tells, that it loses nothing, and that nothing is told to the dead."""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.load import paths, wait_until
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.netns import Namespace, namespace
from tests.load.programs import Programs, set_clock
from twctl.classes import Class
from twctl.table.counters import TICK
from twctl.table.maps import META, Table

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

N = 23


def listened(pins: Path) -> int:
    """The tick until which somebody listens."""
    return Table(pins / "current").listened


@dataclass
class Listening:
    """A `twctl events` that listens, and what it has written to a file."""

    process: "subprocess.Popen[str]"
    file: Path

    def rows(self) -> list[dict[str, Any]]:
        """Its whole lines, of --json."""
        return [json.loads(line) for line in self.file.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def await_rows(self, count: int) -> list[dict[str, Any]]:
        """Wait for so many."""
        wait_until(lambda: len(self.rows()) >= count, what=f"{count} events", timeout=60)
        return self.rows()

    def stop(self) -> str:
        """SIGINT; what it says at the end."""
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, said
        return said


@contextmanager
def listening(pins: Path, *words: str) -> Iterator[Listening]:
    """Run it until the end of the block."""
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, "-m", "twctl", "events", "--pins", str(pins), *words]
        before = listened(pins)  # of one that was killed
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: process.poll() is not None or listened(pins) > before, what="it listens", timeout=60)
            yield Listening(process, Path(file.name))
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Namespace, Daemon]]:
    """Sessions over lo whose vestiges live for two seconds."""
    with namespace() as ns, daemon(ns, mode="vestigial") as one:
        yield ns, one


@pytest.mark.parametrize("family", [paths.IPV4, paths.IPV6, paths.MAPPED])
def test_each_session_is_told_as_it_enters_and_as_it_expires(place: tuple[Namespace, Daemon], family: str) -> None:
    """With the tuple, class and owner that table and blame have, and the lifetime that was planned."""
    ns, one = place
    with listening(one.pins, "--json") as listener:
        made = paths.fin_wait2(paths.over_lo(ns, family), N)
        rows = listener.await_rows(2 * N)
        assert "46 events told, 0 lost\n" == listener.stop()
    entries, ends = ([row for row in rows if row["event"] == event] for event in ("entry", "end"))
    tuples = {each.client.tuple for each in made}
    for found in (entries, ends):
        assert tuples == {(row["local"], row["local_port"], row["remote"], row["remote_port"]) for row in found}
    assert {("loopback", "TIME_WAIT", ns.name)} == {(row["class"], row["substate"], row["netns"]) for row in rows}
    assert {(None, None)} == {(row["reason"], row["lifetime"]) for row in entries}
    assert {("expired", None)} == {(row["reason"], row["expires_in"]) for row in ends}
    assert all(2 <= row["lifetime"] <= 2 + 3 * TICK for row in ends)
    blamed = twctl("blame", *one.options, "--by", "owner", "--json").stdout.splitlines()
    assert {row["owner"] for row in rows} <= {json.loads(line)["owner"] for line in blamed}


def test_an_early_end_has_its_reason(place: tuple[Namespace, Daemon]) -> None:
    """A new connection of the same tuple takes a session's place; nothing says later that it expired."""
    ns, one = place
    with listening(one.pins, "--json") as listener, ns.entered():
        with socket.create_server(("127.0.0.1", 0)) as server:
            for _ in range(2):
                client = socket.socket()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(("127.0.0.1", 4321))
                client.connect(server.getsockname())
                accepted = server.accept()[0]
                client.close()
                accepted.close()
                wait_until(listener.rows, what="an entry")
        rows = listener.await_rows(4)
    assert ["entry", "end", "entry", "end"] == [row["event"] for row in rows]
    assert [None, "reused", None, "expired"] == [row["reason"] for row in rows]


def test_the_filters_are_those_of_table_and_the_owner(place: tuple[Namespace, Daemon]) -> None:
    """Who asks for others is told nothing, and that an owner of whom nobody knows may be misspelt."""
    ns, one = place
    owner = None
    for words, told in (
        (("--class", "loopback", "--family", "ipv4", "--remote", "127.0.0.0/8"), True),
        (("--class", "remote"), False),
        (("--family", "ipv6"), False),
        (("--remote", "192.0.2.0/24"), False),
        (("--local-port", "1"), False),
        (("--owner", "nobody.service"), False),
    ):
        with listening(one.pins, "--json", *words) as listener:
            paths.fin_wait2(paths.over_lo(ns), 1)
            if told:
                owner = listener.await_rows(2)[0]["owner"]
            said = listener.stop()
        *doubts, last = said.splitlines()
        assert told == (not last.startswith("0 events"))
        assert (["twctl: no owner is named nobody.service yet"] if "--owner" in words else []) == [
            line.partition(" (")[0] for line in doubts
        ]
    assert owner is not None
    with listening(one.pins, "--json", "--owner", owner) as listener:
        paths.fin_wait2(paths.over_lo(ns), 1)
        assert {owner} == {row["owner"] for row in listener.await_rows(2)}
        assert "yet" not in listener.stop()


def test_one_listens_at_a_time(place: tuple[Namespace, Daemon]) -> None:
    """The other one says so in a line."""
    _, one = place
    with listening(one.pins):
        done = twctl("events", *one.options)
    assert (1, "") == (done.returncode, done.stdout)
    assert re.fullmatch(r"twctl: another 'twctl events' listens at \S+ \(.*\)\n", done.stderr)


def test_columns_stand_below_their_titles(place: tuple[Namespace, Daemon]) -> None:
    """As people read it."""
    ns, one = place
    with listening(one.pins) as listener:
        paths.fin_wait2(paths.over_lo(ns), 1)
        wait_until(lambda: len(listener.file.read_text().splitlines()) >= 3, what="a session")
        title, entry, end = listener.file.read_text().splitlines()
    for word, first, second in (
        ("event", "entry", "end"),
        ("class", "loopback", "loopback"),
        ("reason", "-", "expired"),
    ):
        at = title.index(word)
        assert entry[at:].startswith(first)
        assert end[at:].startswith(second)


def test_nothing_is_told_to_a_listener_that_was_killed(place: tuple[Namespace, Daemon]) -> None:
    """The programs write no more once its time is up, and the next one hears its own sessions alone."""
    ns, one = place
    with listening(one.pins) as listener:
        listener.process.kill()
        listener.process.wait()
    until = listened(one.pins)
    assert until > 0
    wait_until(lambda: time.monotonic() / TICK > until, what="its time is up")
    paths.fin_wait2(paths.over_lo(ns), N)
    assert until == listened(one.pins)
    with listening(one.pins, "--json") as another:
        assert another.rows() == []
        paths.fin_wait2(paths.over_lo(ns), 1)
        another.await_rows(2)
        assert another.stop() == "2 events told, 0 lost\n"


def test_a_listener_that_was_stopped_says_how_long(place: tuple[Namespace, Daemon]) -> None:
    """What happened meanwhile was neither told nor counted."""
    ns, one = place
    with listening(one.pins) as listener:
        listener.process.send_signal(signal.SIGSTOP)
        until = listened(one.pins)
        wait_until(lambda: time.monotonic() / TICK > until + 8, what="its time is up")
        paths.fin_wait2(paths.over_lo(ns), N)
        listener.process.send_signal(signal.SIGCONT)
        wait_until(lambda: listened(one.pins) > until, what="it listens again")
        assert re.fullmatch(
            r"0 events told, 0 lost, and all of \d+\.\d s in which this command did not run\n", listener.stop()
        )


def test_a_listener_ends_with_its_table() -> None:
    """`twctl release` takes it away: a line says so."""
    with namespace() as ns, daemon(ns) as one, listening(one.pins) as listener:
        one.stop()
        assert twctl("release", "--pins", str(one.pins)).returncode == 0
        assert listener.process.wait(60) == 1
        assert listener.process.stderr is not None
        assert "was removed or replaced (start 'twctl events' again)" in listener.process.stderr.read()


def test_what_truncate_ends_is_told(place: tuple[Namespace, Daemon]) -> None:
    """By the reason that the counters have."""
    del place
    with namespace() as ns, daemon(ns, mode="truncate") as one, listening(one.pins, "--json") as listener:
        paths.fin_wait2(paths.over_lo(ns), N)
        rows = listener.await_rows(2 * N)
    assert {"truncated": N, None: N} == dict(Counter(row["reason"] for row in rows))
    assert all(row["lifetime"] >= 2 - 2 * TICK for row in rows if row["event"] == "end")


INSERT = """
BPF_ARRAY(turn, u64, 1);

int insert(struct __sk_buff *skb)
{
	struct work *w = work_of(WORKER_ENTRY);
	u32 zero = 0;
	u64 *n = turn.lookup(&zero);

	if (!w || !n)
		return 0;
	w->family = FAMILY_IPV4;
	w->session.tuple.local[0] = 0x0100000a;
	w->session.tuple.remote[0] = 0x0200000a + ((*n >> 16) << 24);
	w->session.tuple.local_port = *n;
	w->session.tuple.remote_port = 0x901f;
	(*n)++;
	return vestige_insert(w, CLASS_REMOTE, 0, 60000000000ULL);
}
"""
A_LOOK, LOOKS = 2503, 59  # insertions in 50 ms: with as many evictions 100,000 events a second, once the ring is full


def cpu_seconds(pid: int) -> float:
    """That a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def inserting(capacity: int) -> Iterator[tuple[Path, Callable[[int], int]]]:
    """Pins of a full table without a daemon, and what inserts so many: it returns how many events that makes."""
    programs = Programs(INSERT, capacity)
    root = Path(f"/sys/fs/bpf/twctl-test-{os.getpid()}-events")
    root.mkdir(mode=0o700)
    try:
        with programs.pinned(root / "current"):
            table = Table(root / "current")
            set_clock(root / "current")  # else the programs' clock is not the listener's

            def insert(count: int) -> int:
                before = sum(table.counters().row("withdrawn", Class.REMOTE))
                programs.nanoseconds("insert", count)
                return count + sum(table.counters().row("withdrawn", Class.REMOTE)) - before

            insert(2 * capacity)
            yield root, insert
    finally:
        root.rmdir()


@pytest.mark.alone("counts what a CPU does in a second")
def test_a_hundred_thousand_events_a_second_pass_into_a_file() -> None:
    """None is lost, each has a line, and for so many the listener needs less than one CPU."""
    with inserting(8191) as (root, insert), listening(root, "--json") as listener:
        os.setpriority(os.PRIO_PROCESS, listener.process.pid, -20)  # others may be at work on this machine
        before, due, made = cpu_seconds(listener.process.pid), time.monotonic(), 0
        for _ in range(LOOKS):
            made += insert(A_LOOK)
            due = max(due + 0.05, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
        used = cpu_seconds(listener.process.pid) - before
        said = listener.stop()
        rows = Counter((row["event"], row["reason"]) for row in listener.rows())
    told, lost = map(int, re.findall(r"\d+", said)[:2])
    assert (made, 0) == (told, lost)
    assert {("entry", None): A_LOOK * LOOKS, ("end", "evicted"): made - A_LOOK * LOOKS} == rows
    assert made / used > 100_000


def test_what_a_listener_is_too_slow_for_is_counted() -> None:
    """More than its ring holds comes while it stands still: told and lost are all there was, and no end is made up."""
    with inserting(65536) as (root, insert), listening(root) as listener:
        listener.process.send_signal(signal.SIGSTOP)
        until = listened(root)
        made = insert(75_011)
        listener.process.send_signal(signal.SIGCONT)
        wait_until(lambda: listened(root) > until, what="it listens again", timeout=60)
        said = listener.stop()
    told, lost = map(int, re.findall(r"\d+", said)[:2])
    assert lost > 0
    assert made == told + lost
    assert "sessions the end was not told" in said


def test_the_flag_lies_beside_the_clock() -> None:
    """In the cache line that each entry reads anyway."""
    assert META.fields["epoch"].offset // 64 == META.fields["listened"].offset // 64
    assert struct.calcsize("=Q") == META.fields["listened"].size
