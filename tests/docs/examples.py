"""What the pages show of twctl's output: made by real commands over real connections, in network namespaces.

    sudo .venv/bin/python -m tests.docs.examples            print every block
    sudo .venv/bin/python -m tests.docs.examples --write    put them into README.md and docs/

The host is a namespace with a router beside it and a server behind that, as in the demonstration (vagrant/demo.sh).
Three services close first: `checkout` to a database on the subnet, `web` to a cache on the host itself, `backup` to a
store behind the router. Paths of the test are shown as those of an installed twctl; nothing else is changed.
"""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.docs import pages
from tests.load.closes import closes_binary, serving
from tests.load.daemon import Daemon, daemon
from tests.load.netns import Namespace, namespace

HOST, DATABASE, GATEWAY, STORE = "10.0.0.5", "10.0.0.9", "192.0.2.1", "192.0.2.10"
# Service, user, server's address and port, sessions.
LOADS = (("checkout", 33, DATABASE, 5432, 1000), ("web", 33, "127.0.0.1", 6379, 300), ("backup", 34, STORE, 443, 120))
PORTS = "32768 35767"  # few, so that a share of them shows
RATE = 60  # connections a second that `checkout` goes on to open while ports are looked at


@dataclass(frozen=True)
class Network:
    """The host that is shown, and the server of each load."""

    host: Namespace
    servers: dict[str, Namespace]


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Host, router (with the database), and store."""
    quiet = {"net.ipv4.tcp_rfc1337": 1}  # a late RST ends no session: only its time does
    with namespace(quiet) as host, namespace({"net.ipv4.ip_forward": 1}) as near, namespace() as far:
        host.ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", near.name)
        near.ip("link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", far.name)
        for where, address, device in (
            (host, HOST, "eth0"),
            (near, DATABASE, "eth0"),
            (near, GATEWAY, "eth1"),
            (far, STORE, "eth0"),
        ):
            where.ip("address", "add", f"{address}/24", "dev", device)
            where.ip("link", "set", device, "up")
        host.ip("route", "add", "default", "via", DATABASE)
        far.ip("route", "add", "default", "via", GATEWAY)
        yield Network(host, {DATABASE: near, "127.0.0.1": host, STORE: far})


def cgroups() -> Path:
    """Where the hierarchy of version 2 is mounted."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return next(Path(words[1]) for words in mounts if words[2] == "cgroup2")


@contextlib.contextmanager
def services() -> Iterator[dict[str, Path]]:
    """A cgroup for each service, named as systemd would."""
    slice_ = cgroups() / "twctl-docs.slice"
    made = {service: slice_ / f"{service}.service" for service, *_ in LOADS}
    try:
        for folder in made.values():
            folder.mkdir(parents=True, exist_ok=True)
        yield made
    finally:
        for folder in (*made.values(), slice_):
            folder.rmdir()


def close_as(host: Namespace, cgroup: Path, uid: int, *options: str) -> None:
    """Have a service connect and close."""
    enter = ("bash", "-c", 'echo 0 >"$0"; exec "$@"', str(cgroup / "cgroup.procs"))
    become = ("setpriv", f"--reuid={uid}", "--clear-groups")
    with host.popen(*enter, *become, str(closes_binary()), "--connect", *options) as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out


@contextlib.contextmanager
def served(net: Network) -> Iterator[None]:
    """The servers of all loads."""
    with contextlib.ExitStack() as stack:
        for _, _, address, port, _ in LOADS:
            stack.enter_context(serving(net.servers[address], "--address", address, "--port", str(port)))
        yield


def load(net: Network, groups: dict[str, Path]) -> None:
    """Every service closes as many connections as LOADS says."""
    for service, uid, address, port, count in LOADS:
        where = ("--address", address, "--port", str(port), "--count", str(count))
        close_as(net.host, groups[service], uid, *where)


@dataclass(frozen=True)
class Shell:
    """Runs twctl on the host that is shown, and tells it as a user would see it."""

    one: Daemon
    prefix: tuple[str, ...]

    def __call__(self, command: str, *, rows: int = 0) -> str:
        """A command line and its output. rows: leave the rest out."""
        noun, *words = command.split()
        pins = [] if noun == "classify" else ["--pins", str(self.one.pins)]
        options = ["--config", str(self.one.folder / "twctl.toml"), *pins]
        line = [*self.prefix, sys.executable, "-m", "twctl", noun, *options, *words]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        shown = lines[:rows] if rows else lines
        left = ["..."] if len(shown) < len(lines) else []
        return self.told("\n".join([f"$ twctl {command}", *shown, *left]))

    def told(self, text: str) -> str:
        """With the paths and the port of an installed twctl."""
        text = text.replace(str(self.one.pins), "/sys/fs/bpf/twctl")
        text = text.replace(str(self.one.folder / "twctl.toml"), "/etc/twctl.toml")
        return text.replace(f"port {self.one.port}", "port 9815")


@dataclass(frozen=True)
class Pace:
    """Seconds for which a service goes on to open connections while ports are looked at, and until times are over."""

    load: int = 14
    over: int = 11  # those of loopback and local are over by then, that of remote is not


def examples(pace: Pace) -> dict[str, str]:
    """Every block by name."""
    found: dict[str, str] = {}
    for mode, show in (("observe", observing), ("truncate", truncating), ("vestigial", guarding)):
        with network() as net, services() as groups, served(net):
            prefix = tuple(net.host.command())
            net.host.sysctl("net.ipv4.ip_local_port_range", PORTS)
            with daemon(mode=mode, prefix=prefix, probe="auto") as one:
                load(net, groups)
                found |= show(net, groups, Shell(one, prefix), pace)
    return {name: pages.fenced(text) for name, text in found.items()}


def observing(net: Network, groups: dict[str, Path], twctl: Shell, pace: Pace) -> dict[str, str]:
    """What changes nothing."""
    found = {
        "run": twctl.told(f"$ twctl run\n{twctl.one.log.strip()}"),
        "table": twctl("table --class local", rows=4),
        "blame": twctl("blame --limit 3"),
        "classify local": twctl(f"classify {DATABASE}"),
        "classify remote": twctl(f"classify {STORE}"),
        "check": twctl("check"),
        "config": twctl("config", rows=9),
    }
    where = ("--address", DATABASE, "--port", "5432", "--seconds", str(pace.load), "--rate", str(RATE))
    with ThreadPoolExecutor(1) as beside:
        going_on = beside.submit(close_as, net.host, groups["checkout"], 33, *where)
        time.sleep(pace.load / 2)
        # The first look has no rates; and the lists of two are enough to show what there is.
        top = twctl("top --count 2").rpartition("\ntwctl top")[2].partition("\n\nlocal port")[0]
        found["ports"] = twctl("blame --by remote --limit 3")
        going_on.result()
    found["top"] = f"$ twctl top\ntwctl top{top}"
    time.sleep(pace.over)
    return found | {
        "status": twctl("status"),
        "drain": twctl("drain --class loopback"),
        "metrics": scrape(net.host, twctl.one),
    }


def scrape(host: Namespace, one: Daemon) -> str:
    """What a Prometheus would have of sessions of class local."""
    with host.entered():
        text = one.get()
    return "\n".join(re.findall(r"^twctl_time_wait_(?:entered|sessions).*\"local\".*$", text, re.MULTILINE))


def truncating(_net: Network, _groups: dict[str, Path], twctl: Shell, pace: Pace) -> dict[str, str]:
    """Once the times of loopback and local are over."""
    found = {"run truncate": twctl.told(f"$ twctl run --mode truncate\n{twctl.one.log.strip()}")}
    found["table truncate"] = twctl("table --class local", rows=4)
    time.sleep(pace.over)
    return found | {"status truncate": twctl("status")}


def guarding(_net: Network, _groups: dict[str, Path], twctl: Shell, pace: Pace) -> dict[str, str]:
    """While all are remembered, and once the daemon has stopped."""
    found = {"run vestigial": twctl.told(f"$ twctl run --mode vestigial\n{twctl.one.log.strip()}")}
    time.sleep(pace.over)
    found["status vestigial"] = twctl("status")
    twctl.one.stop()
    return found | {"release": twctl("release"), "no table": twctl("table")}


def main(words: list[str]) -> int:
    """Print the blocks, or write them."""
    made = examples(Pace())
    if "--write" in words:
        for page in pages.write("output", made):
            print(page)
        return 0
    for name, text in made.items():
        print(f"== {name}\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
