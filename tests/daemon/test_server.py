"""The HTTP server: its address, what is where, and what it says of a daemon whose loop hangs."""

import contextlib
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.registry import CollectorRegistry

from twctl.config.config import Tls
from twctl.config.keys import Listen
from twctl.daemon.server import Listener, Server
from twctl.errors import TwctlError

ANY = Listen("127.0.0.1", 0)


def ask(listener: Listener, path: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{listener.port}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def connected(listener: Listener) -> socket.socket:
    """A client's connection."""
    return socket.create_connection(("127.0.0.1", listener.port))


def served(listener: Listener, *, healthy: bool = True) -> "contextlib.closing[Server]":
    """A server without a metric, until the end of the block."""
    return contextlib.closing(Server(listener, CollectorRegistry(), lambda: healthy))


@pytest.mark.parametrize(("healthy", "expected"), [(True, (200, "healthy\n")), (False, (503, "the loop hangs\n"))])
def test_it_is_as_healthy_as_the_loop(healthy: bool, expected: tuple[int, str]) -> None:  # noqa: FBT001
    """Although the server itself has a thread of its own, and goes on."""
    with contextlib.closing(Listener(ANY, None)) as listener, served(listener, healthy=healthy):
        assert expected == ask(listener, "/healthy")
        assert [200, 200, 404] == [ask(listener, path)[0] for path in ("/", "/metrics", "/nothing")]


def test_who_comes_before_the_server_is_there_waits_for_it() -> None:
    """A bound address takes connections."""
    with contextlib.closing(Listener(ANY, None)) as listener, connected(listener) as early:
        early.sendall(b"GET /healthy HTTP/1.0\r\n\r\n")
        with served(listener):
            assert early.recv(100).startswith(b"HTTP/1.0 200 OK")


def test_an_address_in_use_is_one_line() -> None:
    """It is bound by the first, also while that serves nobody yet."""
    with contextlib.closing(Listener(ANY, None)) as listener:
        taken = Listen("127.0.0.1", listener.port)
        with pytest.raises(TwctlError, match=rf"^cannot serve metrics on {taken}: Address already in use \("):
            Listener(taken, None)


def test_bad_tls_files_are_found_before_the_address_is_bound() -> None:
    """And the line says what to look at."""
    nothing = Path("/dev/null")
    with pytest.raises(TwctlError, match=r"^cannot serve metrics with TLS: .*\(check the files of \[tls\]\)$"):
        Listener(ANY, Tls(nothing, nothing, None))
