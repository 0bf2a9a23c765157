"""What the modes need of a network namespace that the daemon works in."""

from typing import Protocol

from twctl.linux.procfs import PortRange, Sockstat
from twctl.linux.sockdiag import SockDiag
from twctl.routes.watcher import RouteWatcher


class Enrolled(Protocol):
    """An enrolled namespace, and what is open in it."""

    @property
    def index(self) -> int:
        """Its index in the table."""

    @property
    def name(self) -> str | None:
        """Its name; None: it is the daemon's own."""

    @property
    def diag(self) -> SockDiag:
        """Lists and looks up its sockets."""

    @property
    def ports(self) -> PortRange:
        """Its sysctls about local ports."""

    @property
    def sockstat(self) -> Sockstat:
        """The kernel's count of its sockets."""

    @property
    def routes(self) -> RouteWatcher:
        """Its routes, which say how near a peer is."""
