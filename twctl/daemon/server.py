"""The HTTP server, with TLS as prometheus-client offers it.

/metrics; /healthy, for whoever restarts what hangs; / says what this is.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any

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


class Server:
    """A running server; `close` stops it. healthy: whether the daemon does its work.

    :raises TwctlError: if the address cannot be bound or a TLS file cannot be used.
    """

    def __init__(
        self, listen: Listen, tls: Tls | None, registry: CollectorRegistry, healthy: Callable[[], bool]
    ) -> None:
        try:
            self._server, self._thread = _start(listen, tls, registry)
        except OSError as error:
            raise TwctlError(
                f"cannot serve metrics on {listen}: {error}",
                "choose another address with --listen, or check the [tls] files",
            ) from error
        self._server.set_app(_application(registry, healthy))
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _start(listen: Listen, tls: Tls | None, registry: CollectorRegistry) -> tuple[Any, threading.Thread]:
    if tls is None:
        return prometheus_client.start_http_server(listen.port, listen.host, registry)
    return prometheus_client.start_http_server(
        listen.port,
        listen.host,
        registry,
        certfile=str(tls.certfile),
        keyfile=str(tls.keyfile),
        client_cafile=str(tls.client_ca) if tls.client_ca else None,
        client_auth_required=tls.client_ca is not None,
    )


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
