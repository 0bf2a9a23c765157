"""The daemon's look at the ports, on the real kernel: what is exported and blamed."""

import json
import os
import re
from contextlib import ExitStack

import pytest

from tests.kernel.test_headroom import QUIET, client, drive
from tests.load import wait_until
from tests.load.advise import advised
from tests.load.daemon import daemon, twctl
from tests.load.netns import link
from tests.load.paths import over_link

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)


def test_the_worst_destinations_are_exported_and_blamed() -> None:
    """No more than asked for, none below 5 %; with observe's own line for what only mode truncate can do."""
    config = "[blame]\ndestinations = 2\n[pressure]\nport_headroom = 0.2\n"
    with ExitStack() as stack:
        both = stack.enter_context(link(QUIET))
        one = stack.enter_context(daemon(both.client, config=config))
        clients = [stack.enter_context(client(over_link(both), 1)) for _ in range(4)]
        for count, each in zip((97, 401, 53, 211), clients, strict=True):
            for _ in range(count):
                each.connect(closes=True)
        name = "twctl_ephemeral_ports_used_ratio"
        ports = [each.address[1] for each in clients]

        def ratios() -> dict[int, float]:
            return {port: one.metric(name, remote_port=str(port)) for port in ports}

        wait_until(
            lambda: ratios() == {ports[0]: 0, ports[1]: 401 / 1009, ports[2]: 0, ports[3]: 211 / 1009}, timeout=15
        )
        rows = one.metrics()
        where = f'local="10.77.0.1",netns="{both.client.name}",remote="10.77.0.2",remote_port="{ports[1]}"'
        assert rows[f"twctl_ephemeral_ports_left_seconds{{{where}}}"] > 0
        assert sum(row.startswith(name) for row in rows) == 2
        assert 1 == one.log.count("pressure.port_headroom is ignored: only mode truncate shortens TIME_WAIT sockets")

        blamed = twctl("blame", *one.options, "--by", "remote")
        assert (0, "") == (blamed.returncode, blamed.stderr)
        assert max(map(len, blamed.stdout.splitlines())) <= 80
        assert re.search(rf"^10.77.0.2:{ports[1]} +40% +401 +0 +\d+ ", blamed.stdout, re.MULTILINE)


def test_in_mode_truncate_ports_come_back_in_time() -> None:
    """With 8 s of TIME_WAIT 101 sessions a second need 808 of 1,009 ports: there is no end."""
    with ExitStack() as stack:
        both = stack.enter_context(link(QUIET))
        one = stack.enter_context(daemon(both.client, mode="truncate", config="[time_wait]\nlocal = 8\n"))
        steady = stack.enter_context(client(over_link(both), 101))
        drive([steady], lambda: steady.made >= 303, 30)  # the first of them has 5 s left
        done = twctl("blame", *one.options, "--by", "remote", "--json")
        [row] = [row for row in map(json.loads, done.stdout.splitlines()) if row["by"] == "ports"]
        assert (303, None) == (row["time_wait"], row["seconds_left"])


def test_after_mode_truncate_nobody_gives_ports_back_in_time() -> None:
    """Once the daemon has ended, sessions hold their ports for 60 s again: their drain is what helps, not bind()."""
    with link(QUIET) as both, daemon(both.client, mode="truncate", config="[time_wait]\nlocal = 1\n") as one:
        assert 0 == one.stop()
        with client(over_link(both), 500) as load:
            drive([load], lambda: load.failed, 30)  # the probes go on
            first = advised(one)[0]
            done = twctl("blame", *one.options, "--by", "remote", "--json")
        assert "ports-are-used-up-by-sessions-in-time_wait" == first["anchor"]
        assert "twctl drain" in first["remedy"]
        [row] = [row for row in map(json.loads, done.stdout.splitlines()) if row["by"] == "ports"]
        assert 1008 <= row["time_wait"]  # of an odd number connect() may leave one out (__inet_hash_connect)
