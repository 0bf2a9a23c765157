"""A host with containers as a container engine makes them: on a bridge, masqueraded, each run by crun."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.load.closes import closes_binary
from tests.load.container import MOUNTS
from tests.load.netns import Link, Namespace, add_addresses, await_address, link, namespace
from tests.load.paths import IPV4, IPV6
from tests.load.translations import ADDRESSES, iptables

BRIDGE = "docker0"
# The server's RST to an ACK that came twice ends no session of those that have closed.
QUIET = {"net.ipv4.tcp_rfc1337": 1}
# Of a merged /usr: where its parts are looked for.
LINKS = ("bin", "lib", "lib64")
CLOSES = "/closes"
# crun refuses to start where both versions of cgroups are mounted; it makes none here.
_CGROUP2 = "findmnt -t cgroup2 /sys/fs/cgroup >&2 || mount -t cgroup2 cgroup2 /sys/fs/cgroup"


@dataclass(frozen=True)
class Container:
    """Its network namespace, as the engine has made it, and where its bundles are."""

    ns: Namespace
    folder: Path

    def closes(self, *options: str) -> "subprocess.Popen[str]":
        """Run the load generator as the container's only process."""
        bundle = self.folder / self.ns.name
        rootfs = bundle / "rootfs"
        if not rootfs.exists():
            rootfs.mkdir(parents=True)
            for name in LINKS:
                (rootfs / name).symlink_to(f"usr/{name}")
        (bundle / "config.json").write_text(json.dumps(self._spec([CLOSES, *options])))
        command = f"{_CGROUP2} && exec crun --cgroup-manager=disabled run --bundle {bundle} {self.ns.name}"
        words = ("unshare", "--mount", "--propagation", "slave", "sh", "-c", command)
        return subprocess.Popen(words, text=True, stdout=subprocess.PIPE)

    def _spec(self, arguments: list[str]) -> dict[str, object]:
        """As engines write it (OCI runtime-spec, config.md): no rights, and the namespace that has been made for it."""
        mounts = [
            *({"destination": to, "type": kind, "source": what, "options": [*how]} for to, kind, what, how in MOUNTS),
            *(
                {"destination": where, "type": "bind", "source": what, "options": ["rbind", "ro"]}
                for what, where in (("/usr", "/usr"), (str(closes_binary()), CLOSES))
            ),
        ]
        return {
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 65534, "gid": 65534}, "args": arguments, "cwd": "/", "noNewPrivileges": True},
            "root": {"path": "rootfs"},
            "mounts": mounts,
            "linux": {
                "namespaces": [
                    {"type": "network", "path": str(self.ns.path)},
                    *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
                ],
            },
        }


@dataclass(frozen=True)
class Engine:
    """The host (the link's client end), the server behind the link, and the containers."""

    link: Link
    containers: tuple[Container, ...]

    @property
    def host(self) -> Namespace:
        """Where the engine runs."""
        return self.link.client

    @property
    def server(self) -> Namespace:
        """Whom all dial."""
        return self.link.server

    @property
    def all(self) -> dict[str, Namespace]:
        """Every namespace, by what it is."""
        inside = {f"container {n}": each.ns for n, each in enumerate(self.containers)}
        return {"host": self.host, "server": self.server} | inside


@contextmanager
def engine(folder: Path, containers: int = 2) -> Iterator[Engine]:
    """A host with Docker's bridge and rules. folder: where bundles are put."""
    with ExitStack() as stack:
        both = stack.enter_context(link(QUIET))
        host = both.client
        host.sysctl("net.ipv4.ip_forward", 1)
        host.sysctl("net.ipv6.conf.all.forwarding", 1)
        host.ip("link", "add", BRIDGE, "type", "bridge")
        add_addresses(host, BRIDGE, ADDRESSES[IPV4]["bridge"], ADDRESSES[IPV6]["bridge"])
        iptables("docker")(host)
        inside = tuple(_container(stack, host, number) for number in range(containers))
        await_address(host, ADDRESSES[IPV6]["bridge"])
        yield Engine(both, tuple(Container(ns, folder) for ns in inside))


def _container(stack: ExitStack, host: Namespace, number: int) -> Namespace:
    """A namespace on the bridge, its routes by the host."""
    ns = stack.enter_context(namespace(QUIET))
    device = f"veth{number + 1}"
    host.ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", ns.name)
    host.ip("link", "set", device, "master", BRIDGE, "up")
    own = f"172.17.0.{number + 2}", f"fd17::{number + 2}"
    add_addresses(ns, "eth0", *own)
    await_address(ns, own[1])
    for option, family in (("-4", IPV4), ("-6", IPV6)):
        ns.ip(option, "route", "add", "default", "via", ADDRESSES[family]["bridge"])
    return ns
