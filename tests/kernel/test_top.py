"""`twctl top` as a user sees it: in a terminal of tmux, and where there is none."""

import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.load import paths, wait_until
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.netns import link, namespace
from tests.load.paths import CLIENT, IPV6, SERVER
from twctl.addresses import FAMILIES
from twctl.table.maps import Table
from twctl.table.records import Vestige, decode

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

SECONDS = 15.0  # until a screen must show what it should: a start takes 1, each look another one
PROMPT = "prompt-of-the-shell>"


@dataclass
class Pane:
    """A terminal, with a shell in it."""

    server: Path

    def tmux(self, *words: str) -> str:
        """What a command of tmux prints."""
        done = subprocess.run(["tmux", "-S", self.server, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def type(self, *keys: str) -> None:
        """Press keys, by tmux's names."""
        self.tmux("send-keys", *keys)

    def run(self, command: str) -> None:
        """Type a line."""
        self.tmux("send-keys", "-l", command)
        self.type("Enter")

    @property
    def lines(self) -> list[str]:
        """What stands there."""
        return self.tmux("capture-pane", "-p").splitlines()

    def shows(self, pattern: str) -> None:
        """Return when it stands there."""
        wait_until(lambda: re.search(pattern, "\n".join(self.lines), re.MULTILINE), what=pattern, timeout=SECONDS)

    @property
    def state(self) -> str:
        """Whether the alternate screen is on, and whether there is a cursor."""
        return self.tmux("display-message", "-p", "#{alternate_on} #{cursor_flag}").strip()

    def rows(self, title: str = "remote endpoint") -> list[tuple[str, int]]:
        """One of the lists: names and sessions."""
        lines = self.lines
        start = next(i for i, line in enumerate(lines) if re.search(rf"\b{title} .*growth/s", line))
        begin = lines[start].index(title)
        end = lines[start].index("growth/s", begin)
        found = [line[begin:end].rsplit(maxsplit=1) for line in lines[start + 1 : -1]]
        return [(words[0].strip(), int(words[1].replace(",", ""))) for words in found if words]


@contextmanager
def terminal(width: int = 80, height: int = 24) -> Iterator[Pane]:
    """A tmux of our own, that goes with the block."""
    folder = Path(tempfile.mkdtemp(prefix="twctl-test-"))
    pane = Pane(folder / "tmux")
    shell = f"env PS1='{PROMPT}' bash --norc --noprofile"
    subprocess.run(
        [
            *("tmux", "-S", pane.server, "-f", "/dev/null", "new-session", "-d"),
            "-x",
            str(width),
            "-y",
            str(height),
            shell,
        ],
        check=True,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    try:
        pane.shows(PROMPT)
        yield pane
    finally:
        pane.tmux("kill-server")
        shutil.rmtree(folder)


def command(one: Daemon, *words: str) -> str:
    """The line that runs it."""
    return shlex.join([sys.executable, "-m", "twctl", "top", *one.options, *words])


class Place:
    """A daemon, and sessions whose endpoints are known: remote by count, and a local port."""

    def __init__(self, stack: ExitStack) -> None:
        both = stack.enter_context(link({"net.ipv4.tcp_rfc1337": 1}))
        self.daemon = stack.enter_context(daemon(both.client))
        far = [
            *paths.fin_wait2(paths.over_link(both), 23, CLIENT),
            *paths.fin_wait2(paths.over_link(both, IPV6), 7, CLIENT),
            *paths.fin_wait2(paths.over_lo(both.client), 41, CLIENT),
        ]
        self.remotes = {each.client.remote: f"{each.client.remote}:{each.client.remote_port}" for each in far}
        ipv6 = self.remotes[both.server_ipv6]
        self.remotes[both.server_ipv6] = f"[{both.server_ipv6}]:{ipv6.rsplit(':', 1)[1]}"
        served = paths.fin_wait2(paths.over_link(both), 13, CLIENT)
        self.other = f"{served[0].client.remote}:{served[0].client.remote_port}"
        self.port = paths.fin_wait2(paths.over_lo(both.client), 11, SERVER)[0].server.local_port
        self.loopback, self.local, self.ipv6 = "127.0.0.1", both.server_ipv4, both.server_ipv6

    @property
    def ranked(self) -> list[tuple[str, int]]:
        """The first rows by sessions."""
        counts = (self.remotes[self.loopback], 41), (self.remotes[self.local], 23), (self.other, 13)
        return [*counts, (self.remotes[self.ipv6], 7)]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """One for all tests that only look."""
    with ExitStack() as stack:
        yield Place(stack)


def test_the_screen_has_exact_counts_in_order_and_keys_change_it(place: Place) -> None:
    """In 80x24: classes, both lists, another order by name, one class alone, help, and a stop."""
    with terminal() as pane:
        pane.run(command(place.daemon, "--interval", "0.2"))
        pane.shows("^of 95 sessions")
        lines = pane.lines
        assert (24, "q quit") == (len(lines), lines[-1][:6])
        assert ["loopback", "52"] == next(line.split()[:2] for line in lines if line.startswith("loopback"))
        assert ["local", "43"] == next(line.split()[:2] for line in lines if line.startswith("local"))
        assert ["all", "95"] == next(line.split()[:2] for line in lines if line.startswith("all"))
        assert place.ranked == pane.rows()[:4]
        ((name, sessions),) = pane.rows("owner")
        assert (95, "root") == (sessions, name.split()[-1])
        assert "daemon running" in lines[0]
        pane.type("n")
        wait_until(lambda: pane.rows()[:4] != place.ranked, timeout=SECONDS)
        names = [name for name, _ in pane.rows()]
        assert names.index(place.remotes[place.local]) < names.index(place.remotes[place.loopback])
        assert names.index(place.remotes[place.loopback]) < names.index(place.remotes[place.ipv6])
        pane.type("s", "c", "c")
        pane.shows("^of 43 sessions of class local")
        assert [place.ranked[1], place.ranked[2], place.ranked[3]] == pane.rows()
        pane.type("c", "c", "l", "l", "l")
        pane.shows("^local port +sessions")
        assert (str(place.port), 11) == pane.rows("local port")[0]
        pane.type("?")
        pane.shows("^s  lists by sessions")
        pane.type("x", "Space")
        pane.shows(r"\d STOPPED$")


def test_batches_are_the_vestiges(place: Place) -> None:
    """What is counted is what `twctl table` lists: the same records of the same classes."""
    table = Table(place.daemon.pins / "current")
    for family in FAMILIES:
        steps = list(table.batches(family))
        assert table.steps(family) == len(steps)
        found = [
            decode(family, record, class_=batch.class_, expires_in=0, age=0, names={})
            for batches in steps
            for batch in batches
            for record in batch.records
        ]
        assert sorted(map(identity, table.vestiges((family,)))) == sorted(map(identity, found))


def identity(vestige: Vestige) -> tuple[str, str, int, str, int]:
    """Class and tuple."""
    ends = str(vestige.local), vestige.local_port, str(vestige.remote), vestige.remote_port
    return (vestige.class_.label, *ends)


def test_it_fits_whatever_size_the_terminal_has_and_gets(place: Place) -> None:
    """From 80x24 to 60x20, 200x50, and 12x3: nothing is wrapped, and the keys are on the last line."""
    with terminal() as pane:
        pane.run(command(place.daemon, "--interval", "0.2"))
        for width, height in ((60, 20), (200, 50), (12, 3), (80, 24)):
            pane.tmux("resize-window", "-x", str(width), "-y", str(height))
            wait_until(partial(drawn, pane, height), timeout=SECONDS)
            if height > 3:
                pane.shows("^of 95 sessions")
                assert (width >= 112) == any("local port" in line for line in pane.lines)
                assert f"{place.ranked[0][0]} " in "\n".join(pane.lines)


def drawn(pane: Pane, height: int) -> bool:
    """The first line is at the top, and the keys are at the bottom."""
    lines = pane.lines
    return (height, "twctl top", "q quit") == (len(lines), lines[0][:9], lines[-1][:6])


@pytest.mark.parametrize("way", ["q", "C-c", "TERM", "HUP", "QUIT"])
def test_the_terminal_is_as_it_was_however_it_ends(place: Place, way: str) -> None:
    """The shell's own lines, its prompt, the cursor and the line discipline, and exit status 0."""
    with terminal() as pane:
        pane.run("stty -g")
        pane.shows("^[0-9a-f:]{20,}$")
        before = pane.lines[1]
        pane.run(command(place.daemon))
        pane.shows("^of 95 sessions")
        assert pane.state == "1 0"
        if way in {"q", "C-c"}:
            pane.type(way)
        else:
            (shell,) = pane.tmux("list-panes", "-F", "#{pane_pid}").split()
            child = int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])
            os.kill(child, signal.Signals[f"SIG{way}"])
        wait_until(lambda: pane.state == "0 1", timeout=SECONDS)
        pane.run("echo status $?; stty -g")
        pane.shows("^status 0$")
        pane.shows(f"{PROMPT}$")
        assert [before, before] == [line for line in pane.lines if re.fullmatch("[0-9a-f:]{20,}", line)]


def test_it_stops_and_goes_on_as_ctrl_z_and_fg_want_it(place: Place) -> None:
    """The shell has its screen meanwhile."""
    with terminal() as pane:
        pane.run(command(place.daemon))
        pane.shows("^of 95 sessions")
        pane.type("C-z")
        pane.shows(r"^\[1\]\+ +Stopped")
        assert pane.state == "0 1"
        pane.run("fg")
        pane.shows("^of 95 sessions")
        pane.type("q")
        pane.shows(f"{PROMPT}$")


def test_a_dumb_terminal_gets_lines(place: Place) -> None:
    """No escape code, and the same numbers."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "twctl", "top", *place.daemon.options, "--interval", "0.2", "--count", "2"]
    process = subprocess.Popen(words, stdout=theirs, stdin=theirs, env=os.environ | {"TERM": "dumb"})
    os.close(theirs)
    text = b""
    while chunk := read(ours):
        text += chunk
    os.close(ours)
    assert process.wait(10) == 0
    assert (2, 2) == (text.count(b"of 95 sessions"), text.count(b"twctl top"))
    assert b"\x1b" not in text


def read(fd: int) -> bytes:
    """A piece of what a terminal got; empty when the last who had it open is gone."""
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""


def test_without_a_terminal_it_prints_blocks(place: Place) -> None:
    """As many as asked, of 80 columns, one class's lists if asked; a reader who goes away ends it."""
    done = twctl("top", *place.daemon.options, "--interval", "0.2", "--count", "3", "--class", "loopback")
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.count("of 52 sessions of class loopback") == 3
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout
    piped = subprocess.run(
        ["bash", "-c", f"{command(place.daemon, '--interval', '0.1')} | head -n 1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert (["twctl", "top"], "1", "") == (piped.stdout.split()[:2], piped.stdout.split()[-1], piped.stderr)


BAD = (("--interval", "0"), ("--interval", "-1"), ("--interval", "nan"), ("--count", "0"), ("--sort", "up"))


def test_bad_input_is_usage_and_no_table_an_error() -> None:
    """Exit status 2 and 1, each with one line that says why."""
    for words in (*BAD, ("--class", "near")):
        done = twctl("top", *words)
        assert (2, "") == (done.returncode, done.stdout)
        assert re.search(r"^Error: Invalid value for .+$", done.stderr, re.MULTILINE), done.stderr
    none = twctl("top", "--pins", "/sys/fs/bpf/twctl-test-none")
    assert (1, "") == (none.returncode, none.stdout)
    assert re.fullmatch(r"twctl: no table is pinned at .+ \(.+\)\n", none.stderr), none.stderr


def test_in_a_terminal_it_waits_for_the_first_table() -> None:
    """And says why; elsewhere that is an error."""
    with namespace() as ns, terminal() as pane:
        pins = Path(f"/sys/fs/bpf/twctl-test-{os.getpid()}-first")
        pane.run(shlex.join([sys.executable, "-m", "twctl", "top", "--pins", str(pins), "--interval", "0.2"]))
        pane.shows("^waiting for a table")
        made = Daemon((ns,), pins=pins)
        try:
            made.start()
            pane.shows("^of 0 sessions")
        finally:
            made.kill()
            shutil.rmtree(made.folder)
            assert twctl("release", "--pins", str(pins)).returncode == 0


def test_it_outlives_the_daemon_and_the_table() -> None:
    """It says that the daemon is down; that there is no table; and shows the next one's sessions."""
    with namespace({"net.ipv4.tcp_rfc1337": 1}) as ns, daemon(ns) as one, terminal() as pane:
        paths.fin_wait2(paths.over_lo(ns), 17, CLIENT)
        pane.run(command(one, "--interval", "0.2"))
        pane.shows("^of 17 sessions")
        one.kill()
        pane.shows("no daemon running")
        assert "of 17 sessions, read now" in pane.lines
        assert twctl("release", "--pins", str(one.pins)).returncode == 0
        pane.shows("^waiting for a table")
        why = f"no table is pinned at {one.pins}/current (start 'twctl run' as root first)"
        wait_until(lambda: why in " ".join(pane.lines[1:]), what="a line that says why")
        assert not Path(one.pins).exists()
        one.start()
        pane.shows("^of 17 sessions")  # taken over from the kernel's list
        paths.fin_wait2(paths.over_lo(ns), 3, CLIENT)
        pane.shows("^of 20 sessions")
        assert "Traceback" not in "\n".join(pane.lines)
