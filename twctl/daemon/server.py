"""The HTTP server: the address it listens on, bound before anything is loaded, and what is where.

/metrics; /healthy, for whoever restarts what hangs; / says what this is.
"""

import os
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import prometheus_client
from prometheus_client.registry import CollectorRegistry

from twctl import __version__
from twctl.config.config import Tls
from twctl.config.keys import Listen
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


class Listener:
    """An address that is bound: the kernel takes connections, which wait for a Server. tls: what they are served with.

    :raises TwctlError: if the address cannot be bound or a TLS file cannot be used.
    """

    def __init__(self, listen: Listen, tls: Tls | None) -> None:
        self.tls = _context(tls) if tls else None
        self.socket = _bound(listen)
        self.port: int = self.socket.getsockname()[1]

    def close(self) -> None:
        """Let go of the address."""
        self.socket.close()


def _bound(listen: Listen) -> socket.socket:
    """A name is the first of its addresses; `::` is every address, of IPv4 as well."""
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, dualstack_ipv6=family == socket.AF_INET6)
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


class Server:
    """Serves a Listener until `close`. healthy: whether the daemon does its work."""

    def __init__(self, listener: Listener, registry: CollectorRegistry, healthy: Callable[[], bool]) -> None:
        self._server = _Threading(listener)
        self._server.set_app(_application(registry, healthy))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's own name
        """Say nothing of a request."""


class _Threading(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, listener: Listener) -> None:
        super().__init__(("", 0), _Silent, bind_and_activate=False)
        self.socket.close()
        self.socket = listener.socket
        if listener.tls:
            self.socket = listener.tls.wrap_socket(self.socket, server_side=True)
        self.server_name, self.server_port = "localhost", listener.port
        self.setup_environ()


def _application(registry: CollectorRegistry, healthy: Callable[[], bool]) -> Application:
    metrics = prometheus_client.make_wsgi_app(registry)

    def serve(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            scrape: Iterable[bytes] = metrics(environ, start_response)
            return scrape
        if environ["PATH_INFO"] == "/healthy":
            status, body = ("200 OK", b"healthy\n") if healthy() else ("503 Service Unavailable", b"the loop hangs\n")
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [body]
        found = environ["PATH_INFO"] == "/"
        start_response("200 OK" if found else "404 Not Found", [("Content-Type", "text/html; charset=utf-8")])
        return [LANDING.encode() if found else b"Not found; metrics are at /metrics\n"]

    return serve
