"""Conversations with clients that are slow, silent, greedy or a thousand: what each gets, and who has to go."""

import contextlib
import resource
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.load import wait_until
from tests.load.clients import certificate, client_hello, connect, crowd
from twctl.daemon import connections
from twctl.daemon.connections import ANSWER_BYTES, CONNECTIONS, REQUEST_BYTES, Connections

ASK = b"GET / HTTP/1.0\r\n\r\n"
COSTLY = b"GET /costly HTTP/1.0\r\n\r\n"
SOON = 2.0  # s, in which an answer must come on a busy machine
SHORT = 0.3  # s, instead of the times that a client has


class Served:
    """A server that answers each request with itself, those that name /costly at leisure.

    make: makes such an answer; made: the requests that it was called for.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self.listening.getsockname()[1]
        self.make: Callable[[bytes], bytes] = lambda request: request
        self.made: list[bytes] = []
        self.ended: Counter[str] = Counter()
        self.server = Connections(self.listening, lambda: tls, self._at_once, self._at_leisure, self.ended)

    def _at_once(self, request: bytes) -> bytes:
        if b"/fail" in request:
            raise ValueError(request)
        return b"" if b"/costly" in request else request

    def _at_leisure(self, request: bytes) -> bytes:
        self.made.append(request)
        return self.make(request)

    def ask(self, request: bytes = ASK, context: ssl.SSLContext | None = None) -> bytes:
        """All that comes back."""
        with connect(self.port) as plain, contextlib.ExitStack() as stack:
            client = stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1")) if context else plain
            client.sendall(request)
            return read(client)

    def close(self) -> None:
        """Stop."""
        self.server.close()
        self.listening.close()


def read(client: socket.socket) -> bytes:
    """All that comes until the end."""
    parts = []
    while part := client.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


@pytest.fixture
def served() -> Iterator[Served]:
    """A server until the end of the test."""
    with contextlib.closing(Served()) as made:
        yield made


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients have a fraction of a second."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", SHORT)
    monkeypatch.setattr(connections, "ANSWER_SECONDS", SHORT)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Certificate and key."""
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secret(files: tuple[Path, Path]) -> Iterator[Served]:
    """A server that speaks TLS, and wants to see a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files[0])
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(*files)
    with contextlib.closing(Served(context)) as made:
        yield made


def known(files: tuple[Path, Path]) -> ssl.SSLContext:
    """Of a client that has a certificate."""
    context = ssl.create_default_context(cafile=files[0])
    context.load_cert_chain(*files)
    return context


@pytest.mark.parametrize("request_", [ASK, b"GET / HTTP/1.0\n\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nand more"])
def test_a_request_ends_with_an_empty_line(served: Served, request_: bytes) -> None:
    """In one piece or in many; what comes behind it does not matter."""
    assert request_ == served.ask(request_)
    with connect(served.port) as client:
        for byte in ASK:
            client.sendall(bytes([byte]))
        assert ASK == read(client)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("sent", [b"", b"G", ASK[:-1]])
def test_a_request_that_is_not_complete_in_time_has_no_answer(served: Served, sent: bytes) -> None:
    """The time is that of the whole, not of a byte."""
    with connect(served.port) as client:
        started = time.monotonic()
        client.sendall(sent)
        assert read(client) == b""
        assert SHORT - 0.05 <= time.monotonic() - started <= SOON
    assert served.ended["late"] == 1


@pytest.mark.usefixtures("short")
def test_a_byte_at_a_time_gains_nobody_time(served: Served) -> None:
    """Slowloris: each byte comes long before any limit between two of them."""
    started = time.monotonic()
    with connect(served.port) as client, contextlib.suppress(ConnectionError):
        while time.monotonic() - started < SOON:
            client.sendall(b"G")
            time.sleep(0.02)
    assert (1, True) == (served.ended["late"], time.monotonic() - started < SOON)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("part", [0.0, 0.5])
def test_a_handshake_has_no_more_time(secret: Served, part: float) -> None:
    """With nothing, and with half of a ClientHello."""
    hello = client_hello()
    with connect(secret.port) as client:
        client.sendall(hello[: int(len(hello) * part)])
        assert client.recv(100) == b""
    assert secret.ended["late"] == 1


@pytest.mark.usefixtures("short")
def test_who_does_not_read_its_answer_is_not_waited_for_for_ever(served: Served) -> None:
    """The time for an answer begins when it is made."""
    served.make = lambda _: bytes(ANSWER_BYTES * 4)
    with connect(served.port) as client:
        client.sendall(COSTLY)
        wait_until(lambda: served.ended["late"] == 1, what="it is ended", timeout=SOON)


def test_a_request_that_is_too_long_is_not_kept(served: Served) -> None:
    """Its connection ends once it is."""
    with connect(served.port) as client, contextlib.suppress(ConnectionError):
        client.sendall(b"a" * (REQUEST_BYTES + 1))
        assert read(client) == b""
    assert ASK == served.ask()


@pytest.mark.parametrize("text", [b"GET / HTTP/1.0", b"\n"])
def test_a_thousand_connections_keep_nobody_out(served: Served, text: bytes) -> None:
    """Of those without an answer the oldest go, so that the newest has its own at once."""
    threads = threading.active_count()
    with crowd(served.port, 1009, text):
        for _ in range(23):
            started = time.monotonic()
            assert ASK == served.ask()
            assert time.monotonic() - started <= SOON
        assert served.ended["crowded"] >= 1009 - CONNECTIONS
        assert threading.active_count() <= threads + 1  # the crowd's


def test_a_thousand_idle_connections_keep_nobody_out_of_tls(secret: Served, files: tuple[Path, Path]) -> None:
    """Nobody's handshake holds up another one's."""
    with crowd(secret.port, 1009, client_hello()[:5]):
        for _ in range(5):
            started = time.monotonic()
            assert ASK == secret.ask(ASK, known(files))
            assert time.monotonic() - started <= SOON


def test_tls_wants_the_certificate(secret: Served, files: tuple[Path, Path]) -> None:
    """A client without one, or that speaks no TLS, has no answer; and an answer of many parts is complete."""
    with pytest.raises(OSError, match=r"certificate required|reset|EOF"):
        secret.ask(ASK, ssl.create_default_context(cafile=files[0]))
    with contextlib.suppress(ConnectionError):
        assert b"HTTP" not in secret.ask(ASK)
    secret.make = lambda _: bytes(1_000_003)
    assert bytes(1_000_003) == secret.ask(COSTLY, known(files))


def test_who_waits_for_the_same_gets_the_same(served: Served) -> None:
    """Of what is begun after it asked: an answer under way was begun too early."""
    begin, go_on = threading.Event(), threading.Event()

    def make(request: bytes) -> bytes:
        begin.set()
        assert go_on.wait(10)
        return request + str(len(served.made)).encode()

    served.make = make
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(served.port)) for _ in range(23)]
        clients[0].sendall(COSTLY)
        assert begin.wait(10)
        for client in clients[1:]:
            client.sendall(COSTLY)
        go_on.set()
        assert [COSTLY + b"1", *[COSTLY + b"2"] * 22] == [read(client) for client in clients]


def test_what_is_cheap_does_not_wait_for_what_is_costly(served: Served) -> None:
    """However many wait, at most one answer is made before; and costly ones leave half of the time."""

    def make(request: bytes) -> bytes:
        time.sleep(0.1)
        return request

    served.make = make
    with contextlib.ExitStack() as stack:
        for number in range(CONNECTIONS - 1):
            client = stack.enter_context(connect(served.port))
            client.sendall(COSTLY.replace(b"HTTP", b"%d HTTP" % number))
        started, before = time.monotonic(), len(served.made)
        for _ in range(10):
            assert ASK == served.ask()
        seconds = time.monotonic() - started
        assert seconds <= SOON
        wait_until(lambda: len(served.made) >= before + 3, what="and they are made meanwhile", timeout=30)
        assert (len(served.made) - before - 1) * 0.2 <= time.monotonic() - started


def test_clients_that_do_not_read_do_not_fill_the_memory(served: Served) -> None:
    """All answers together have a bound, but for a single one."""
    served.make = lambda request: request + bytes(ANSWER_BYTES * 2)
    with contextlib.ExitStack() as stack:
        for number in range(5):
            client = stack.enter_context(connect(served.port))
            client.sendall(COSTLY.replace(b"HTTP", b"%d HTTP" % number))
        wait_until(lambda: len(served.made) == 5, what="all are made")
        wait_until(lambda: served.ended["crowded"] == 4, what="the last one is kept")
        assert ASK == served.ask()


def test_a_request_that_fails_ends_its_own_connection_alone(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """And is logged."""
    assert served.ask(b"GET /fail HTTP/1.0\r\n\r\n") == b""
    assert "a request to the metrics' server failed" in caplog.text
    assert ASK == served.ask()


def test_a_process_without_descriptors_serves_as_soon_as_it_has_one(served: Served) -> None:
    """Until then the connection waits in the kernel's queue."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client, contextlib.ExitStack() as stack:
        client.settimeout(10)
        lowest = stack.enter_context(socket.socket()).fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, before[1]))
        try:
            client.connect(("127.0.0.1", served.port))
            client.sendall(ASK)
            time.sleep(3 * connections.STARVED_SECONDS)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert ASK == client.recv(100)


def test_it_stops_whatever_clients_do(served: Served) -> None:
    """Silent ones, those that do not read, and one whose answer takes for ever."""
    hang = threading.Event()
    served.make = lambda request: bytes(ANSWER_BYTES) if b"1.0" in request else bytes(hang.wait(10))
    with connect(served.port), connect(served.port) as greedy, connect(served.port) as slow:
        greedy.sendall(COSTLY)
        wait_until(lambda: len(served.made) == 1, what="it has its answer")
        slow.sendall(COSTLY.replace(b"1.0", b"1.1"))
        wait_until(lambda: len(served.made) == 2, what="it is being made")
        started = time.monotonic()
        served.close()
        assert time.monotonic() - started <= connections.STOP_SECONDS + 1
        hang.set()
