"""Commands of those who cannot reach the table: one line that says why, and what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load.daemon import daemon, twctl
from tests.load.netns import namespace

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="making a folder in bpffs needs root; TWCTL_TEST_KERNEL=1 forces it",
)

COMMANDS = (
    *(["status"], ["table"], ["top", "--count", "1"], ["blame"], ["check"], ["config"]),
    *(["run"], ["drain", "--class", "local"], ["release"]),
)
# Prints exit status and output of commands (JSON) that nobody calls. Imports come first: the checkout may be root's.
AS_NOBODY = """
import contextlib, importlib, io, json, os, pkgutil, sys
import twctl.commands
from twctl.commands.main import main
for each in pkgutil.iter_modules(twctl.commands.__path__):
    importlib.import_module(f"twctl.commands.{each.name}")
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
told = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["twctl", *words]
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code
    told.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(told))
"""


@pytest.fixture
def pins() -> Iterator[Path]:
    """A folder as a daemon has it."""
    made = Path(f"/sys/fs/bpf/twctl-test-reach-{os.getpid()}")
    made.mkdir(mode=0o700)
    yield made
    made.rmdir()


def test_who_is_not_root_is_told_so_in_one_line(pins: Path) -> None:
    """By every command that looks at the pins, with what to type instead; exit status 1."""
    calls = [[*words, "--pins", str(pins)] for words in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, json.dumps(calls)], capture_output=True, text=True, check=True
    )
    told = dict(zip((" ".join(words) for words in calls), json.loads(done.stdout), strict=True))
    wanted = {line: [1, "", f"twctl: not root (run it as root: sudo twctl {line})\n"] for line in told}
    assert wanted == told


def test_inside_of_ip_netns_exec_the_pins_are_said_to_be_hidden(pins: Path) -> None:
    """Not to be absent; nor does `release` find nothing, or `run` pin there. With nsenter they are in sight."""
    with namespace() as ns:
        for words in (["status"], ["top", "--count", "1"], ["release"], ["config"], ["run", "--listen", "127.0.0.1:0"]):
            done = twctl(*words, "--pins", str(pins), prefix=("timeout", "30", "ip", "netns", "exec", ns.name))
            hint = f"run twctl outside, which sees every namespace, or with nsenter --net={ns.path}"
            assert (1, f"twctl: 'ip netns exec {ns.name}' hides {pins} ({hint})\n") == (done.returncode, done.stderr)
        done = twctl("status", "--pins", str(pins), prefix=tuple(ns.command()))
        assert f"twctl: no table is pinned at {pins}/current" in done.stderr


def test_where_the_daemon_does_not_run_the_kernels_numbers_are_unknown() -> None:
    """They would be those of another namespace. The line says why; the others that need them say the same."""
    why = "this is another network namespace than the daemon's (run this there)"
    with namespace() as ns, daemon(prefix=tuple(ns.command()), config="[sysctl]\ntcp_tw_reuse = 1\n") as one:
        told = json.loads(twctl("status", "--json", *one.options).stdout)
        assert (None, None, None, why) == (
            told["kernel_sockets"],
            told["sysctls"],
            told["would_free"]["truncate"]["ports"],
            told["unknown"],
        )
        assert f"unknown: {why}" in twctl("status", *one.options).stdout.splitlines()
        for words in (["blame"], ["advise"], ["drain", "--all"]):
            done = twctl(*words, *one.options)
            assert (1, f"twctl: {why}\n") == (done.returncode, done.stderr)
        told = json.loads(twctl("status", "--json", *one.options, prefix=tuple(ns.command())).stdout)
        assert (0, None, 0) == (told["kernel_sockets"], told["unknown"], told["would_free"]["truncate"]["ports"])
        assert ["net.ipv4.tcp_tw_reuse"] == [each["name"] for each in told["sysctls"]]
