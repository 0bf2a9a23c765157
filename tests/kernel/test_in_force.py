"""What commands show is what the running daemon does, whatever the caller's own file says."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.load import paths
from tests.load.daemon import Daemon, daemon, twctl
from tests.load.netns import link
from tests.load.paths import CLIENT

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

TIMES = "[time_wait]\nloopback = 31.0\nlocal = 37.0\nremote = 41.0\n"


def told(noun: str, one: Daemon, file: Path) -> dict[str, Any]:
    """What a noun prints as JSON for a caller with a file of their own."""
    done = twctl(noun, "--config", str(file), "--pins", str(one.pins), "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_daemons_values_stand_above_the_callers(tmp_path: Path) -> None:
    """In `config` and in the dry run of `status`; once it has stopped, the next start's do."""
    file = tmp_path / "own.toml"
    file.write_text('mode = "observe"\n[time_wait]\nlocal = 5.0\n[capacity.ipv4]\nlocal = 512\n')
    with link() as both, daemon(both.client, mode="truncate", config=TIMES) as one:
        found = told("config", one, file)
        assert ["truncate", 37.0, 65536] == [
            found[key]["value"] for key in ("mode", "time_wait.local", "capacity.ipv4.local")
        ]
        assert f"from the daemon ({one.folder / 'twctl.toml'})" == found["time_wait.local"]["source"]
        status = told("status", one, file)
        assert ({"loopback": 31.0, "local": 37.0, "remote": 41.0}, "from the running daemon") == (
            status["time_wait"],
            status["configuration"],
        )
        one.stop()
        assert {"value": 5.0, "source": str(file)} == told("config", one, file)["time_wait.local"]
        assert 5.0 == told("status", one, file)["time_wait"]["local"]


def test_in_mode_truncate_table_shows_when_a_session_will_go(tmp_path: Path) -> None:
    """Its class's time, not the 60 s of the kernel's timer."""
    with link({"net.ipv4.tcp_rfc1337": 1}) as both, daemon(both.client, mode="truncate", config=TIMES) as one:
        paths.fin_wait2(paths.over_link(both), 23, CLIENT)
        done = twctl("table", "--config", str(tmp_path / "own.toml"), "--pins", str(one.pins), "--json")
        assert done.returncode == 1  # that file does not exist
        done = twctl("table", "--pins", str(one.pins), "--class", "local", "--json")
        times = [json.loads(line)["expires_in"] for line in done.stdout.splitlines()]
        assert 23 == len(times)
        assert 20 < min(times) <= max(times) <= 37.0


def test_a_reload_changes_what_is_in_force(tmp_path: Path) -> None:
    """The commands follow."""
    with link() as both, daemon(both.client, mode="observe") as one:
        assert "observe" == told("config", one, one.folder / "twctl.toml")["mode"]["value"]
        one.reload('mode = "truncate"\n' + TIMES)
        file = tmp_path / "own.toml"
        file.write_text("")
        found = told("config", one, file)
        assert ["truncate", 41.0] == [found[key]["value"] for key in ("mode", "time_wait.remote")]
