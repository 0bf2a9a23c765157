"""The HTTP server: the address it listens on, bound before anything is loaded, and what is where.

/metrics; /healthy, for whoever restarts what hangs; / says what this is.
"""

import io
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

import prometheus_client
from prometheus_client.registry import CollectorRegistry

from twctl import __version__
from twctl.config.config import Tls
from twctl.config.keys import Listen
from twctl.daemon.connections import Connections
from twctl.errors import TwctlError

StartResponse = Callable[[str, list[tuple[str, str]]], Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

LANDING = f"""<!doctype html>
<html lang="en"><head><title>twctl</title></head><body>
<h1>twctl {__version__}</h1>
<p>Observes TCP sessions in TIME_WAIT on this host, by nearness of the peer.</p>
<p><a href="/metrics">Metrics</a></p>
</body></html>
"""


# Connections that the kernel keeps until they are accepted; one that finds no room tries again a second later.
BACKLOG = 1024


class Listener:
    """An address that is bound: the kernel takes connections, which wait for a Server. tls: what they are served with.

    ended: connections that the server ended before their answer, by the reason.

    :raises TwctlError: if the address cannot be bound or a TLS file cannot be used.
    """

    def __init__(self, listen: Listen, tls: Tls | None) -> None:
        self.tls = _context(tls) if tls else None
        self.socket = _bound(listen)
        self.ended: Counter[str] = Counter()
        self.port: int = self.socket.getsockname()[1]

    def close(self) -> None:
        """Let go of the address."""
        self.socket.close()


def _bound(listen: Listen) -> socket.socket:
    """A name is the first of its addresses; `::` is every address, of IPv4 as well."""
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(
            address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=family == socket.AF_INET6
        )
    except OSError as error:
        # Not strerror: create_server says there what it tried, too.
        reason = str(error.strerror) if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        message = f"cannot serve metrics on {listen}: {reason}"
        raise TwctlError(message, "choose another address with --listen") from error


def _context(tls: Tls) -> ssl.SSLContext:
    try:
        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.client_ca)
        if tls.client_ca:
            made.verify_mode = ssl.CERT_REQUIRED
        made.load_cert_chain(tls.certfile, tls.keyfile)
    except OSError as error:
        raise TwctlError(f"cannot serve metrics with TLS: {error}", "check the files of [tls]") from error
    return made


class Server(Connections):
    """Serves a Listener until `close`. healthy: whether the daemon does its work."""

    def __init__(self, listener: Listener, registry: CollectorRegistry, healthy: Callable[[], bool]) -> None:
        metrics, rest = prometheus_client.make_wsgi_app(registry), _pages(healthy)
        super().__init__(
            listener.socket,
            listener.tls,
            lambda request: b"" if _is_scrape(request) else _Request(request, rest).answer,
            lambda request: _Request(request, metrics).answer,
            listener.ended,
        )


def _is_scrape(request: bytes) -> bool:
    """Whether a request, its line and headers, is for /metrics."""
    words = request.split(maxsplit=2)
    return len(words) > 1 and words[1].partition(b"?")[0] == b"/metrics"


class _Request(WSGIRequestHandler):
    """The standard library's handler over memory: `request` is what was sent, `answer` all that is to be sent."""

    def __init__(self, request: bytes, application: Application) -> None:
        self.rfile = io.BytesIO(request)
        self.wfile = self._answer = io.BytesIO()
        server = SimpleNamespace(base_environ={}, get_app=lambda: application)
        super().__init__(request, ("", 0), server)  # type: ignore[arg-type] # neither a socket nor a server is behind it

    def setup(self) -> None:
        """Nothing: there are no files of a socket."""

    def finish(self) -> None:
        """Nothing, as there are none."""

    @property
    def answer(self) -> bytes:
        """Status, headers and body."""
        return self._answer.getvalue()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's own name
        """Say nothing of a request."""


def _pages(healthy: Callable[[], bool]) -> Application:
    """All but /metrics."""

    def serve(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/healthy":
            status, body = ("200 OK", b"healthy\n") if healthy() else ("503 Service Unavailable", b"the loop hangs\n")
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [body]
        found = environ["PATH_INFO"] == "/"
        start_response("200 OK" if found else "404 Not Found", [("Content-Type", "text/html; charset=utf-8")])
        return [LANDING.encode() if found else b"Not found; metrics are at /metrics\n"]

    return serve
