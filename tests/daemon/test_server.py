"""The HTTP server: what is where, and what it says of a daemon whose loop hangs."""

import urllib.error
import urllib.request

import pytest
from prometheus_client.registry import CollectorRegistry

from twctl.config.keys import Listen
from twctl.daemon.server import Server


def ask(server: Server, path: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(("healthy", "expected"), [(True, (200, "healthy\n")), (False, (503, "the loop hangs\n"))])
def test_it_is_as_healthy_as_the_loop(healthy: bool, expected: tuple[int, str]) -> None:  # noqa: FBT001
    """Although the server itself has a thread of its own, and goes on."""
    server = Server(Listen("127.0.0.1", 0), None, CollectorRegistry(), lambda: healthy)
    try:
        assert expected == ask(server, "/healthy")
        assert [200, 200, 404] == [ask(server, path)[0] for path in ("/", "/metrics", "/nothing")]
    finally:
        server.close()
