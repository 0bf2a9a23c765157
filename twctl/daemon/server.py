"""The HTTP server: the address it listens on, bound before anything is loaded, and what is where.

/metrics; /healthy, for whoever restarts what hangs; / is the page for people.
"""

import contextlib
import dataclasses
import errno
import io
import ipaddress
import logging
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler

import prometheus_client
from prometheus_client.registry import CollectorRegistry

from twctl.config.config import Tls
from twctl.config.keys import Listen
from twctl.daemon.connections import Connections
from twctl.daemon.page import HEADERS
from twctl.errors import BusyError, TwctlError

log = logging.getLogger("twctl")

StartResponse = Callable[[str, list[tuple[str, str]]], Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]
Landing = Callable[[bool], str]  # the page; whether it may tell owners and addresses
# Connections that the kernel keeps until they are accepted; one that finds no room tries again a second later.
BACKLOG = 1024


class Listener:
    """An address that is bound: the kernel takes connections, which wait for a Server.

    ended: connections that the server ended before their answer, by the reason.

    :raises TwctlError: if the address cannot be bound or a TLS file cannot be used.
    """

    def __init__(self, listen: Listen, tls: Tls | None) -> None:
        self._tls, self._files = tls, _state(tls) if tls else []
        self._context = _context(tls) if tls else None
        self._knows_clients = bool(tls and tls.client_ca)
        self.socket = _bound(listen)
        self.ended: Counter[str] = Counter()
        self.port: int = self.socket.getsockname()[1]

    def is_private(self, host: str) -> bool:
        """Whether only who has a right to reads the answer to a request for this host (the header `Host`).

        A page of the web may have a name of its own lead to a loopback address, and its script read what is there: so
        there the name has to be the host's own.
        """
        own = ipaddress.ip_address(self.socket.getsockname()[0]).is_loopback
        return self._knows_clients or (own and _is_loopback(host))

    def tls(self) -> ssl.SSLContext | None:
        """What a connection is served with: certificates are renewed while the daemon runs, and nobody tells it."""
        if self._tls and (files := _state(self._tls)) != self._files:
            self._files = files
            try:
                self._context = _context(self._tls)
                log.info("the files of [tls] have changed: the new ones are in use")
            except TwctlError as error:  # half written, or wrong: tried again when they change
                log.warning("the certificate stays as it was: %s", error)
        return self._context

    def close(self) -> None:
        """Let go of the address."""
        self.socket.close()


def refuse(listen: Listen, tls: Tls | None, ours: int) -> None:
    """Refuse what cannot be listened on, while another Listener has the port `ours`.

    Where that port stays, only the address is tried: nobody can bind it as long as we have it.

    :raises TwctlError: if the address cannot be bound or a TLS file cannot be used.
    """
    Listener(dataclasses.replace(listen, port=0) if listen.port == ours else listen, tls).close()


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


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
        kind = BusyError if error.errno == errno.EADDRINUSE else TwctlError
        raise kind(message, "choose another address with --listen") from error


def _state(tls: Tls) -> list[tuple[int, int]]:
    """What differs once a file is another, or was written anew; links are followed, as those of a Secret's volume."""
    found = []
    for path in filter(None, (tls.certfile, tls.keyfile, tls.client_ca)):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((status.st_ino, status.st_mtime_ns))
    return found


def _context(tls: Tls) -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if tls.client_ca:
        with _named(tls.client_ca):
            made.load_verify_locations(tls.client_ca)
        made.verify_mode = ssl.CERT_REQUIRED

    def pass_phrase() -> str:  # without this, OpenSSL would ask on the terminal
        hint = "keep it without a pass phrase, as 'openssl pkey' writes it, readable by root alone"
        raise TwctlError(f"cannot serve metrics with TLS: {tls.keyfile} is encrypted", hint)

    with _named(tls.certfile, tls.keyfile):
        made.load_cert_chain(tls.certfile, tls.keyfile, pass_phrase)
    return made


@contextlib.contextmanager
def _named(*files: Path) -> Iterator[None]:
    """Say which files it was: OpenSSL does not. The one that cannot be opened, else all."""
    try:
        for file in files:
            names = str(file)
            file.open("rb").close()
        names = " with ".join(map(str, files))
        yield
    except OSError as error:
        # An SSLError has no strerror of the system's, but what OpenSSL says.
        raise TwctlError(
            f"cannot serve metrics with TLS: {names}: {error.strerror or error}", "check the files of [tls]"
        ) from error


class Server(Connections):
    """Serves a Listener until `close`. healthy: whether the daemon does its work."""

    def __init__(
        self, listener: Listener, registry: CollectorRegistry, healthy: Callable[[], bool], landing: Landing
    ) -> None:
        # What is read from the table takes some milliseconds: at leisure.
        slow = {b"/metrics": prometheus_client.make_wsgi_app(registry), b"/": _landing(listener, landing)}
        rest = _pages(healthy)
        super().__init__(
            listener.socket,
            listener.tls,
            lambda request: b"" if _path(request) in slow else _Request(request, rest).answer,
            lambda request: _Request(request, slow[_path(request)]).answer,
            listener.ended,
        )


def _path(request: bytes) -> bytes:
    """What a request, its line and headers, is for."""
    return [*request.split(maxsplit=2), b"", b""][1].partition(b"?")[0]


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


def _landing(listener: Listener, landing: Landing) -> Application:
    """The page for people."""

    def serve(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        body = landing(listener.is_private(environ.get("HTTP_HOST", ""))).encode()
        start_response("200 OK", list(HEADERS))  # wsgiref adds to it
        return [body]

    return serve


def _pages(healthy: Callable[[], bool]) -> Application:
    """All that takes no time."""

    def serve(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        status, body = "404 Not Found", b"Not found; metrics are at /metrics\n"
        if environ["PATH_INFO"] == "/healthy":
            status, body = ("200 OK", b"healthy\n") if healthy() else ("503 Service Unavailable", b"the loop hangs\n")
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [body]

    return serve
