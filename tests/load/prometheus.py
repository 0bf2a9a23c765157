"""A real Prometheus that scrapes real daemons, one of each mode, while sessions of each class begin and end."""

import json
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import ROOT
from tests.load import wait_until
from tests.load.closes import closes_binary, serving
from tests.load.daemon import daemon
from tests.load.monitoring import ALERTS, RULES, program
from tests.load.netns import Link, link
from twctl.table.maps import MODES

RATE = 200  # connections a second of each generator: little load, and enough that no rate is 0
FAR = "10.99.0.2"  # of the server, behind its own address: a remote peer
QUIET = {"net.ipv4.tcp_rfc1337": 1}
START_SECONDS = 60.0
# conntrack works where a rule asks it.
TRACKED = "table inet t { chain c { type filter hook output priority 0; ct state new counter; }; }"


@dataclass(frozen=True)
class Prometheus:
    """A running server, by its API."""

    port: int

    def get(self, path: str, **words: str) -> dict[str, Any]:
        """An answer; an AssertionError with the server's own words where it is an error."""
        query = urllib.parse.urlencode(words)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}") as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{words}: {json.load(error)['error']}") from error

    def query(self, expression: str) -> dict[str, float]:
        """What an expression is now: values by their labels."""
        rows = self.get("query", query=expression)["data"]["result"]
        return {json.dumps(row["metric"], sort_keys=True): float(row["value"][1]) for row in rows}

    def ready(self) -> bool:
        """It serves."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready"):
                return True
        except OSError:
            return False


@contextmanager
def prometheus(targets: Mapping[str, int], *options: str) -> Iterator[Prometheus]:
    """Run it with our rules over ports of 127.0.0.1, each with the instance that it is to be called, every second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="twctl-prometheus-"))
    jobs = [{"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}} for name, port in targets.items()]
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(file.relative_to(ROOT)) for file in (RULES, ALERTS)],
        "scrape_configs": [{"job_name": "twctl", "static_configs": jobs}],
    }
    (folder / "deploy").symlink_to(
        ROOT / "deploy"
    )  # its pages name files as they are called here, without the checkout
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    command = [
        program("prometheus"),
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address=127.0.0.1:{port}",
        *options,
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        made = Prometheus(port)
        wait_until(lambda: process.poll() is not None or made.ready(), what="it serves", timeout=START_SECONDS)
        assert process.poll() is None, (folder / "log").read_text()
        yield made
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


@contextmanager
def host() -> Iterator[Link]:
    """A client that has loopback, local and remote peers, and the server that is the latter two."""
    with link(QUIET) as both:
        both.server.ip("address", "add", f"{FAR}/32", "dev", "lo")
        both.client.ip("route", "add", f"{FAR}/32", "via", both.server_ipv4)
        subprocess.run(both.client.command("nft", TRACKED), check=True)
        yield both


@contextmanager
def load(both: Link, seconds: int) -> Iterator[None]:
    """The client connects to all of them for so many seconds, and closes first."""
    outside = ("--close", "client", "--address", f"{both.server_ipv4},{FAR}")
    rate = ("--rate", str(RATE), "--seconds", str(seconds))
    with ExitStack() as stack:
        stack.enter_context(serving(both.server, *outside))
        for options in ((*outside, "--connect"), ("--close", "client", "--inline")):
            command = both.client.command(str(closes_binary()), *options, *rate)
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        yield


@contextmanager
def watched(seconds: int, *options: str) -> Iterator[Prometheus]:
    """Prometheus that scrapes a daemon of each mode; instances bear the mode's name. Under load for so many seconds."""
    with ExitStack() as stack:
        hosts = {mode: stack.enter_context(host()) for mode in MODES}
        ports = {mode: stack.enter_context(daemon(both.client, mode=mode)).port for mode, both in hosts.items()}
        server = stack.enter_context(prometheus(ports, *options))
        for both in hosts.values():
            stack.enter_context(load(both, seconds))
        yield server
