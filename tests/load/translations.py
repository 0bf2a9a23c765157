"""Sessions whose packets are translated between socket and wire, in every way that Linux knows.

The host is a namespace with the scripted peer of peer.py behind a tun device. A Translation says what is put into the
namespace, and which end the host is: it dials, or it is dialled. The peer sees the wire alone, so what it gets shows
that packets are translated. Rules of Docker, kube-proxy and Istio are in the folder rules, as `iptables-save` and
`nft list ruleset` show them on hosts that have these.
"""

import errno
import functools
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.load.counters import plain
from tests.load.duty import CONFIG, LINGER2, TIME_WAIT, Duty, Subject, on_duty
from tests.load.netns import Namespace, namespace
from tests.load.paths import IPV4, IPV6, MAPPED
from tests.load.peer import Connection, TunPeer, Tuple, tun_peer
from tests.load.rewriting import rewrite
from tests.load.scripts import Script

RULES = Path(__file__).with_name("rules")
SOL_IP, SOL_IPV6, IP_TRANSPARENT, IPV6_TRANSPARENT = 0, 41, 19, 75

# Addresses, by their names here. HOST and PEER are those of the tun; POD is another one of the host's, OUTSIDE one that
# no device has, SERVICE one that nobody has.
ADDRESSES: dict[str, dict[str, str]] = {
    IPV4: {
        "any": "0.0.0.0",  # noqa: S104 - of a namespace
        "host": "10.78.0.1",
        "peer": "10.78.0.2",
        "pod": "10.79.0.1",
        "outside": "10.78.0.77",
        "elsewhere": "10.97.0.2",
        "service": "10.96.0.10",
        "node's service": "10.96.0.11",
        "bridge": "172.17.0.1",
        "loopback": "127.0.0.1",
    },
    IPV6: {
        "any": "::",
        "host": "fd78::1",
        "peer": "fd78::2",
        "pod": "fd79::1",
        "outside": "fd78::77",
        "elsewhere": "fd97::2",
        "service": "fd96::10",
        "node's service": "fd96::11",
        "bridge": "fd17::1",
        "loopback": "::1",
    },
}
# What the files of the folder say for IPv4, for IPv6.
_IPV6 = (
    (r"(--to-destination |dnat to )([\d.]+):", r"\1[\2]:"),
    (r"/32\b", "/128"),
    (r"172\.17\.0\.0/16", "fd17::/64"),
    (r"172\.17\.0\.(\d)", r"fd17::\1"),
    (r"127\.0\.0\.0/8", "::1/128"),
    (r"127\.0\.0\.1\b", "::1"),
    (r"127\.0\.0\.6\b", "::6"),
    (r"10\.244\.0\.0/16", "fd24::/64"),
    (r"__10\.78\.0\.(\d)", r"__fd78..\1"),  # a chain's name can have no colon
    (r"10\.78\.0\.(\d)", r"fd78::\1"),
    (r"10\.96\.0\.(\d+)", r"fd96::\1"),
    (r"\bip (saddr|daddr)", r"ip6 \1"),
    (r"table ip ", "table ip6 "),
    (r"ipv4_addr", "ipv6_addr"),
)


def _feed(ns: Namespace, text: str, *command: str) -> None:
    done = subprocess.run(ns.command(*command), input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}\n{text}"


def in_family(text: str, family: str) -> str:
    """Rules that were written for IPv4, for a family."""
    for pattern, meant in _IPV6 if family == IPV6 else ():
        text = re.sub(pattern, meant, text)
    return text


def iptables(name: str) -> Callable[[Namespace], None]:
    """Rules from the folder, put in place as `iptables-restore` does."""

    def install(ns: Namespace) -> None:
        text = (RULES / f"{name}.rules").read_text()
        _feed(ns, text, "iptables-nft-restore")
        _feed(ns, in_family(text, IPV6), "ip6tables-nft-restore")

    return install


def nftables(text: str) -> Callable[[Namespace], None]:
    """A table of nftables for each family; the names of ADDRESSES in braces stand for the addresses."""

    def install(ns: Namespace) -> None:
        for family, word in ((IPV4, "ip"), (IPV6, "ip6")):
            names = {name: f"[{one}]" if ":" in one else one for name, one in ADDRESSES[family].items()}
            bare = {f"{name}_": one for name, one in ADDRESSES[family].items()}
            chains = text.format(ip=word, **names, **bare)
            _feed(ns, f"table {word} translating {{\n{chains}\n}}\n", "nft", "-f", "-")

    return install


def nft_kube_proxy(ns: Namespace) -> None:
    """As kube-proxy's mode nftables writes it."""
    text = (RULES / "kube-proxy.nft").read_text()
    for family in (IPV4, IPV6):
        _feed(ns, in_family(text, family), "nft", "-f", "-")


def _tproxy(ns: Namespace) -> None:
    """As Documentation/networking/tproxy.rst has it: what is marked is delivered here, whoever it is for."""
    nftables(
        "chain divert {{ type filter hook prerouting priority mangle; "
        "{ip} daddr {service_} tcp dport 80 tproxy to :50080 meta mark set 1 accept; }}"
    )(ns)
    for option in ("-4", "-6"):
        ns.ip(option, "rule", "add", "fwmark", "1", "lookup", "100")
        ns.ip(option, "route", "add", "local", "default", "dev", "lo", "table", "100")


def _rewriting(ns: Namespace) -> None:
    """Both addresses and a port, by a TC program; conntrack sees what sockets see."""
    two = {
        end: {family: (ADDRESSES[family][end], ADDRESSES[family][wire]) for family in (IPV4, IPV6)}
        for end, wire in (("pod", "host"), ("elsewhere", "peer"))
    }
    rewrite(ns, "tun0", two["pod"], two["elsewhere"])


def _ipvs(ns: Namespace) -> None:
    """As kube-proxy's mode ipvs has it: the service's address is on a device of the host's."""
    ns.sysctl("net.ipv4.vs.conntrack", 1)
    ns.ip("link", "add", "kube-ipvs0", "type", "dummy")
    for family, length in ((IPV4, "32"), (IPV6, "128")):
        names = ADDRESSES[family]
        service, peer = (f"[{one}]" if family == IPV6 else one for one in (names["service"], names["peer"]))
        ns.ip("address", "add", f"{names['service']}/{length}", "dev", "kube-ipvs0")
        _feed(ns, "", "ipvsadm", "-A", "-t", f"{service}:80", "-s", "rr")
        _feed(ns, "", "ipvsadm", "-a", "-t", f"{service}:80", "-r", f"{peer}:8080", "-m")


@dataclass(frozen=True)
class Translation:
    """One way. `served`: the peer dials `target`, and the socket that listens is at `local`; else the host dials.

    Names of addresses are those of ADDRESSES. A port of 0 is another one for each session. `same`: the tuple is not
    changed, though the socket is none that the kernel would find by it. `tracked`: conntrack has it.
    """

    install: Callable[[Namespace], None]
    local: tuple[str, int] = ("any", 0)
    target: tuple[str, int] = ("peer", 0)
    served: bool = False
    same: bool = False
    tracked: bool = True
    device: str = "tun0"


POSTROUTING = "chain out {{ type nat hook postrouting priority srcnat; %s; }}"
OUTPUT = "chain local {{ type nat hook output priority -100; %s; }}"
PREROUTING = "chain in {{ type nat hook prerouting priority dstnat; %s; }}"
_TO_SERVICE = OUTPUT % "{ip} daddr {service_} tcp dport 80 dnat to {peer}:8080"

# What the others are compared with: the host dials, or (True) is dialled.
PLAIN: Mapping[bool, Translation] = {
    False: Translation(lambda _ns: None, same=True),
    True: Translation(lambda _ns: None, local=("any", 8080), target=("host", 8080), served=True, same=True),
}
TRANSLATIONS: Mapping[str, Translation] = {
    # ---- the host dials ----
    "service": Translation(nftables(_TO_SERVICE), target=("service", 80)),
    "snat": Translation(nftables(POSTROUTING % "{ip} saddr {pod_} snat to {host}"), local=("pod", 0)),
    "snat to nobody's address": Translation(nftables(POSTROUTING % 'oifname "tun0" snat to {outside}')),
    "masquerade": Translation(nftables(POSTROUTING % "{ip} saddr {pod_} masquerade"), local=("pod", 0)),
    "masquerade with other ports": Translation(
        nftables(POSTROUTING % 'oifname "tun0" meta l4proto tcp masquerade to :40000-64999')
    ),
    "dnat and snat": Translation(
        nftables(
            _TO_SERVICE + "\n" + POSTROUTING % "{ip} daddr {peer_} meta l4proto tcp snat to {outside}:40000-64999"
        ),
        target=("service", 80),
    ),
    "docker masquerade": Translation(iptables("docker"), local=("bridge", 0)),
    "docker published port": Translation(iptables("docker"), target=("host", 8080), device="docker0"),
    "kube-proxy service": Translation(iptables("kube-proxy"), target=("service", 80)),
    "kube-proxy service, nftables": Translation(nft_kube_proxy, target=("service", 80)),
    "ipvs": Translation(_ipvs, local=("host", 0), target=("service", 80)),
    "a tc program": Translation(_rewriting, local=("pod", 0), target=("elsewhere", 0), tracked=False),
    # ---- the host is dialled ----
    "dnat to a local socket": Translation(
        nftables(PREROUTING % 'iifname "tun0" tcp dport 80 dnat to {pod}:8080'),
        local=("pod", 8080),
        target=("host", 80),
        served=True,
    ),
    "redirect": Translation(
        nftables(PREROUTING % 'iifname "tun0" tcp dport 80 redirect to :8080'),
        local=("any", 8080),
        target=("host", 80),
        served=True,
    ),
    "kube-proxy node port": Translation(
        iptables("kube-proxy"), local=("host", 9090), target=("host", 30080), served=True
    ),
    "kube-proxy node port, nftables": Translation(
        nft_kube_proxy, local=("host", 9090), target=("host", 30080), served=True
    ),
    "mesh inbound": Translation(iptables("istio"), local=("any", 15006), target=("host", 8080), served=True),
    "tproxy": Translation(_tproxy, local=("any", 50080), target=("service", 80), served=True, same=True, tracked=False),
}


@functools.cache
def missing(name: str) -> str | None:
    """Why this machine cannot have a translation; None: it can."""
    if name != "ipvs":
        return None
    loads = "test -e /proc/net/ip_vs || modprobe -q ip_vs"
    if subprocess.run(("sh", "-c", loads), capture_output=True, check=False).returncode:
        return "the kernel has no ip_vs"
    return None if shutil.which("ipvsadm") else "there is no ipvsadm"


class TranslatedDuty(Duty):
    """A duty whose sessions are known to the application by other tuples than to the peer."""

    def __init__(self, ns: Namespace, peer: TunPeer, watch: object, translation: Translation) -> None:
        super().__init__(ns, peer, watch)  # type: ignore[arg-type]
        self.translation = translation
        self._ends: dict[Tuple, Tuple] = {}
        self._port = 20000

    def ends(self, connection: Connection) -> Tuple:
        """As the socket's own name and its peer's name said it."""
        return self._ends[connection.tuple]

    def session(
        self,
        state: str = TIME_WAIT,
        family: str = IPV4,
        *,
        timestamps: bool = True,
        isn: int = 1_000_000,
        prepare: Script | None = None,
    ) -> Subject:
        """A new session, which the host closes first."""
        sock, connection = self.open(family, timestamps=timestamps, isn=isn)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, LINGER2)
        if prepare:
            prepare(sock, connection)
        return self._closed(sock, connection, state)

    def open(
        self, family: str, *, timestamps: bool = True, isn: int = 1_000_000, port: int = 0, remote_port: int = 0
    ) -> tuple[socket.socket, Connection]:
        """A connection that is translated. Ports, where the host dials: its own, and the one dialled (0: new ones)."""
        if self.translation.served:
            with self.listening(family) as listener:
                return self.accepted(listener, family, timestamps=timestamps, isn=isn)
        self._port += 1
        sock = self._socket(family)
        sock.settimeout(0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port may have sessions with other peers
        sock.bind(self._named(self.translation.local[0], family, port or self._port))
        remote_port = remote_port or self.translation.target[1] or 1024 + self._port % 60000
        name = self._named(self.translation.target[0], family, remote_port)
        assert sock.connect_ex(name) == errno.EINPROGRESS
        connection = self.peer.answer(self.peer.caller(), timestamps=timestamps, isn=isn)
        sock.settimeout(None)
        return self._noted(sock, connection)

    def again(self, subject: Subject, family: str = IPV4) -> Subject:
        """A new session of the host's, with the tuple that the application has had for another."""
        _, port, _, remote_port = self.ends(subject.connection)
        return self._closed(*self.open(family, port=port, remote_port=remote_port), TIME_WAIT)

    def closed_from(self, port: int, remote_port: int, state: str, family: str) -> Subject:
        """A session with these ports of the host's and of the peer's."""
        sock, connection = self.open(family, port=port, remote_port=remote_port)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, LINGER2)
        return self._closed(sock, connection, state)

    def subject(self, connection: Connection) -> Subject:
        """A session of a connection that a script has closed."""
        return Subject(self, connection, TIME_WAIT, connection.seen(), time.monotonic())

    def accepted(  # noqa: PLR0913 - what a connection is
        self,
        listener: socket.socket,
        family: str,
        *,
        timestamps: bool = True,
        isn: int = 1_000_000,
        port: int = 0,
        own_port: int = 0,
    ) -> tuple[socket.socket, Connection]:
        """A connection that the peer opens to who listens. port: that it dials, own_port: its own (0: as usual)."""
        address, usual = self.translation.target
        wire = ADDRESSES[IPV6 if family == IPV6 else IPV4][address]
        connection = self.peer.connect(wire, port or usual, timestamps=timestamps, isn=isn, own_port=own_port)
        return self._noted(listener.accept()[0], connection)

    @contextmanager
    def listening(self, family: str) -> Iterator[socket.socket]:
        """The socket that a served session comes from."""
        with self._socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.translation.same:
                listener.setsockopt(SOL_IP, IP_TRANSPARENT, 1)
                if family != IPV4:
                    listener.setsockopt(SOL_IPV6, IPV6_TRANSPARENT, 1)
            listener.bind(self._named(self.translation.local[0], family, self.translation.local[1]))
            listener.listen()
            listener.settimeout(5)  # what is lost fails a test, and does not stop it
            yield listener

    @contextmanager
    def served(self, family: str = IPV4, *, timestamps: bool = True) -> Iterator[tuple[Subject, socket.socket]]:
        """A new session of a server, and the socket that goes on listening."""
        with self.listening(family) as listener:
            subject = self._closed(*self.accepted(listener, family, timestamps=timestamps), TIME_WAIT)
            yield subject, listener

    def _socket(self, family: str) -> socket.socket:
        return self.ns.socket(socket.AF_INET if family == IPV4 else socket.AF_INET6)

    @staticmethod
    def _named(name: str, family: str, port: int) -> tuple[str, int]:
        address = ADDRESSES[IPV6 if family == IPV6 else IPV4][name]
        return f"::ffff:{address}" if family == MAPPED else address, port

    def _noted(self, sock: socket.socket, connection: Connection) -> tuple[socket.socket, Connection]:
        """What the application sees is not what the peer does: else nothing was translated, and nothing is tested."""
        (local, local_port, *_), (remote, remote_port, *_) = sock.getsockname(), sock.getpeername()
        own = plain(local), local_port, plain(remote), remote_port
        translated = connection.tuple[2:] + connection.tuple[:2] != own
        assert translated != self.translation.same, (own, connection.tuple)
        self._ends[connection.tuple] = own
        return sock, connection


@contextmanager
def translated_duties(
    kind: str,
    translations: Mapping[str, Translation],
    sysctls: Mapping[str, object] | None = None,
    config: str = CONFIG,
) -> Iterator[dict[str, TranslatedDuty]]:
    """For each translation a namespace with it and the scripted peer; the kernel, or one daemon, on duty in all."""
    with ExitStack() as stack:
        places: dict[str, tuple[Namespace, TunPeer]] = {}
        for name, one in translations.items():
            ns = stack.enter_context(namespace(sysctls))
            places[name] = ns, stack.enter_context(tun_peer(ns, one.device))
            add_addresses(ns, one.device)
            one.install(ns)
        watch = stack.enter_context(on_duty(kind, *(ns for ns, _ in places.values()), config=config))
        made = {name: TranslatedDuty(*place, watch, translations[name]) for name, place in places.items()}
        for duty in made.values():
            stack.callback(duty.close)
        yield made


@contextmanager
def translated_duty(
    kind: str, translation: Translation, sysctls: Mapping[str, object] | None = None
) -> Iterator[TranslatedDuty]:
    """The same for one."""
    with translated_duties(kind, {"": translation}, sysctls) as made:
        yield made[""]


def add_addresses(ns: Namespace, device: str) -> None:
    """The host's other addresses; and all else is behind the tun."""
    for family, length in ((IPV4, "32"), (IPV6, "128")):
        for name in ("pod", "bridge"):
            ns.ip("address", "add", f"{ADDRESSES[family][name]}/{length}", "dev", "lo")
        ns.ip("-4" if family == IPV4 else "-6", "route", "add", "default", "dev", device)


def _conntrack(duty: TranslatedDuty, subject: Subject, word: str) -> str:
    """Ask for the entry of a session, which conntrack knows as the end that dialled sees it."""
    local, local_port, remote, remote_port = subject.connection.tuple
    if not duty.translation.served:
        local, local_port, remote, remote_port = duty.ends(subject.connection)
    where = ("-s", local, "-d", remote, "--sport", str(local_port), "--dport", str(remote_port))
    command = ("conntrack", word, "-f", "ipv6" if ":" in local else "ipv4", "-p", "tcp", *where)
    return subprocess.run(duty.ns.command(*command), capture_output=True, text=True, check=False).stdout


def entries(duty: TranslatedDuty, subject: Subject) -> list[str]:
    """What conntrack knows of a session."""
    return _conntrack(duty, subject, "-L").splitlines()


def forget(duty: TranslatedDuty, subject: Subject) -> None:
    """Let conntrack forget a session."""
    assert _conntrack(duty, subject, "-D"), "conntrack did not know it"
