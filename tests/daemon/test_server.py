"""The HTTP server: its address, what is where, and what it says of a daemon whose loop hangs."""

import contextlib
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.registry import CollectorRegistry

from tests.load.clients import certificate
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
    return contextlib.closing(
        Server(listener, CollectorRegistry(), lambda: healthy, lambda private: f"private: {private}")
    )


@pytest.mark.parametrize(("healthy", "expected"), [(True, (200, "healthy\n")), (False, (503, "the loop hangs\n"))])
def test_it_is_as_healthy_as_the_loop(healthy: bool, expected: tuple[int, str]) -> None:  # noqa: FBT001
    """Although the server itself has a thread of its own, and goes on."""
    with contextlib.closing(Listener(ANY, None)) as listener, served(listener, healthy=healthy):
        assert expected == ask(listener, "/healthy")
        assert [200, 200, 404] == [ask(listener, path)[0] for path in ("/", "/metrics", "/nothing")]


@pytest.mark.parametrize(
    ("address", "host", "expected"),
    [
        ("127.0.0.1", "127.0.0.1:9815", True),
        ("127.0.0.1", "localhost", True),
        ("::1", "[::1]:9815", True),
        ("127.0.0.1", "evil.example:9815", False),
        ("127.0.0.1", "[evil", False),
        ("127.0.0.1", "", False),
        ("0.0.0.0", "127.0.0.1:9815", False),  # noqa: S104
    ],
)
def test_the_page_is_private_at_a_loopback_address_by_its_own_name(address: str, host: str, *, expected: bool) -> None:
    """A name of a page of the web may lead there, too."""
    with contextlib.closing(Listener(Listen(address, 0), None)) as listener:
        assert expected == listener.is_private(host)


def test_the_page_is_private_where_clients_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any address: who has no certificate gets no answer."""
    monkeypatch.setattr("twctl.daemon.server._context", lambda _: None)
    file = Path("/dev/null")
    for client_ca in (None, file):
        with contextlib.closing(Listener(Listen("0.0.0.0", 0), Tls(file, file, client_ca))) as listener:  # noqa: S104
            assert bool(client_ca) == listener.is_private("host.example")


def test_the_page_comes_with_a_policy_that_forbids_scripts() -> None:
    """And is told who asks: this client by the address itself."""
    with contextlib.closing(Listener(ANY, None)) as listener, served(listener):
        assert (200, "private: True") == ask(listener, "/")
        with urllib.request.urlopen(f"http://127.0.0.1:{listener.port}/?x=y") as answer:
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; ")
            assert answer.headers["Cache-Control"] == "no-store"


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


def encrypted(folder: Path) -> Path:
    """A key with a pass phrase."""
    key = folder / "encrypted.pem"
    made = ("openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:x", "-out", str(key))
    subprocess.run(made, check=True, capture_output=True)
    return key


@pytest.mark.parametrize("bad", ["certfile", "keyfile", "client_ca"])
def test_an_error_of_tls_names_the_file(tmp_path: Path, bad: str) -> None:
    """One that is not there, and one that is no PEM."""
    certfile, keyfile = certificate(tmp_path)
    files = {"certfile": certfile, "keyfile": keyfile, "client_ca": certfile}
    for path, reason in ((tmp_path / "none", "No such file or directory"), (Path("/dev/null"), "")):
        with pytest.raises(TwctlError, match=rf"TLS: .*{path}( with .*)?: {reason}"):
            Listener(ANY, Tls(**files | {bad: path}))


def test_a_pass_phrase_is_not_asked_for(tmp_path: Path) -> None:
    """A key that needs one is refused: nobody is there to type it."""
    certfile, _ = certificate(tmp_path)
    with pytest.raises(TwctlError, match=r"encrypted\.pem is encrypted \("):
        Listener(ANY, Tls(certfile, encrypted(tmp_path), None))


def test_a_renewed_certificate_is_served_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Behind a link, as a Secret's volume has it; while the files do not fit, the old one is."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        certificate(tmp_path / name)
    link = tmp_path / "now"
    link.symlink_to("old")
    tls = Tls(link / "cert.pem", link / "key.pem", None)

    def served_with() -> str:
        return ssl.get_server_certificate(("127.0.0.1", listener.port))

    with contextlib.closing(Listener(ANY, tls)) as listener, served(listener):
        old, new = ((tmp_path / name / "cert.pem").read_text() for name in ("old", "new"))
        assert (old, True) == (served_with(), old != new)
        link.unlink()
        assert old == served_with()
        assert "the certificate stays as it was" in caplog.text
        link.symlink_to("new")
        assert new == served_with()
