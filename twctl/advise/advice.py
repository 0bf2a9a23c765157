"""One piece of advice, and the words that the rules have in common."""

import dataclasses
import ipaddress

from twctl.addresses import host_port
from twctl.advise.snapshot import Destination, Namespace, Snapshot

PAGE = "docs/troubleshooting.md"
# From this weight on something fails or is lost; will soon; could be better. Below nothing has to be done.
NOW, SOON, BETTER = 90, 60, 20
# Of the ports: from this share on they count as scarce, and as used up. The kernel searches long above the first.
SCARCE, USED_UP = 0.5, 0.95
SOON_SECONDS = 600.0
# So many connections that the peer has closed, and this host has not, are forgotten ones.
FORGOTTEN = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Advice:
    """What is wrong, the evidence in numbers, what to do, and what that would bring here.

    weight: 0 to 100, the heaviest is said first; anchor: of the section of PAGE that says more.
    """

    weight: int
    what: str
    evidence: str
    remedy: str
    gain: str
    anchor: str

    @property
    def urgency(self) -> str:
        """In a word (str): now, soon, better or fine."""
        words = ((NOW, "now"), (SOON, "soon"), (BETTER, "better"))
        return next((word for least, word in words if self.weight >= least), "fine")


def endpoint(each: Destination) -> str:
    """A destination, as people write it."""
    return host_port(each.remote, each.remote_port) + (f" (from {each.netns})" if each.netns else "")


def prefix(each: Destination) -> str:
    """The prefix that is its address alone, as --remote takes it."""
    address = ipaddress.ip_address(each.remote.partition("%")[0])
    return f"{address}/{address.max_prefixlen}"


def is_loopback(each: Destination) -> bool:
    """Whether the kernel's tcp_tw_reuse=2 is for it: not for this host's other addresses."""
    return ipaddress.ip_address(each.remote.partition("%")[0]).is_loopback


def unit(each: Destination) -> str:
    """Who connects to it."""
    return called(each.owner, "the program that connects")


def called(owner: str, otherwise: str) -> str:
    """An owner, or other words where that is no name to look for."""
    return otherwise if owner in {"unknown", "other", "/"} else owner


def number(count: float) -> str:
    """With thousands apart; of small ones that are not whole one digit more."""
    return f"{count:,.1f}" if count < 10 and count != int(count) else f"{count:,.0f}"  # noqa: PLR2004 - small


def within(each: Namespace) -> str:
    """Where that is, if it is not the namespace that twctl was started in."""
    return f" in {each.name}" if each.name else ""


def held_by_time_wait(each: Destination) -> bool:
    """Whether sessions, and not connections, hold most of what is held."""
    return each.time_wait > 0 and each.time_wait >= each.live


def ends_soon(each: Destination) -> bool:
    """Whether the ports will be used up within ten minutes."""
    return each.seconds_left is not None and each.seconds_left <= SOON_SECONDS


def scarce(snapshot: Snapshot) -> Destination | None:
    """The destination toward which sessions in TIME_WAIT make ports scarce, the worst; None: there is none."""
    found = [each for each in snapshot.destinations if held_by_time_wait(each)]
    found = [each for each in found if each.used >= SCARCE or ends_soon(each)]
    return max(found, key=lambda each: (each.fails, each.used), default=None)


def held(each: Destination) -> str:
    """What holds the ports toward it."""
    connections = f"{number(each.live)} by connections"
    return (
        f"{number(each.held)} of {number(each.ports)} ports toward it are held, {number(each.time_wait)} by sessions "
        f"in TIME_WAIT, {connections}"
    )


def failures(each: Destination) -> str:
    """How many calls have failed, since when and how fast; empty: none lately."""
    if not each.fails:
        return ""
    since = "" if each.failing_since is None else f" for {number(each.failing_since)} s"
    rate = f", {number(each.no_port)} a second now" if each.no_port else ""
    return f"; connect() has found no port{since} (calls that failed: {number(each.failed)}{rate})"
