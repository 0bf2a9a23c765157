"""Clients of an HTTP server that mean no good: a thousand connections that say nothing, or a byte at a time."""

import contextlib
import resource
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

REQUEST = b"GET /metrics HTTP/1.0\r\n\r\n"
PAUSE_SECONDS = 0.1  # between two bytes


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that is its own authority, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1")
    files = ("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert))
    subprocess.run([*made, *files], check=True, capture_output=True)
    return cert, key


def client_hello() -> bytes:
    """With what a client of TLS begins."""
    sent = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), sent, server_hostname="127.0.0.1")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


def connect(port: int) -> socket.socket:
    """A connection to this host."""
    return socket.create_connection(("127.0.0.1", port), timeout=10)


@contextlib.contextmanager
def crowd(port: int, count: int, text: bytes) -> Iterator[None]:
    """So many connections until the end of the block: one of three says nothing, two say `text`, a byte at a time."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(count)]

        def trickle() -> None:
            for byte in text:
                for number, client in enumerate(clients):
                    if number % 3:
                        with contextlib.suppress(OSError):  # it has been thrown out
                            client.sendall(bytes([byte]))
                if over.wait(PAUSE_SECONDS):
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
