"""The load generator: builds closes.c on demand and runs it in a namespace."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.load.netns import Namespace

SOURCE = Path(__file__).with_name("closes.c")
BUILD = ROOT / "build" / "tests"
FLAGS = ("-O2", "-Wall", "-Wextra", "-pthread")


def closes_binary(folder: Path = BUILD) -> Path:
    """The load generator."""
    return program(SOURCE, folder)


def program(source: Path, folder: Path = BUILD) -> Path:
    """A compiled program. Its name holds a hash of source and flags, so an old one is never run."""
    digest = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    binary = folder / f"{source.stem}-{digest}"
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{binary.name}.{os.getpid()}"
        subprocess.run(["gcc", *FLAGS, "-o", str(fresh), str(source)], check=True)
        fresh.replace(binary)  # whole or not at all: two test runs may build at once
    return binary


def run(ns: Namespace, *options: str, timeout: float = 120, niceness: int = 0) -> dict[str, Any]:
    """One run to its end inside `ns`; the program's own report."""
    command = ns.command("nice", "-n", str(niceness), str(closes_binary()), *options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@contextmanager
def connecting(ns: Namespace, *options: str) -> Iterator[None]:
    """The client half runs in `ns` until the end of the block."""
    client = ns.popen(str(closes_binary()), "--connect", "--seconds", "3600", *options)
    try:
        yield
        assert client.poll() is None
    finally:
        client.terminate()
        client.communicate(timeout=10)


@contextmanager
def serving(ns: Namespace, *options: str) -> Iterator[dict[str, Any]]:
    """The server half runs in `ns`; give the client half the same --close, --bytes, --address and --port.

    Once the block is over, what it yields has the server's report.
    """
    server = ns.popen(str(closes_binary()), "--serve", *options)
    report: dict[str, Any] = {}
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield report
    finally:
        server.terminate()
        said, _ = server.communicate(timeout=10)
        report.update(json.loads(said.splitlines()[-1]) if said else {})
