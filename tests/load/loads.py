"""Loads as people make them, in a namespace: ab, redis-benchmark, pgbench, Python's http.client."""

import http.client
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.load.netns import Namespace
from tests.load.servers import NGINX_PORT, POSTGRESQL_PORT, REDIS_PORT, postgresql_program


def _run(ns: Namespace, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(ns.command(*command), capture_output=True, text=True, timeout=300, check=False)


def ab(ns: Namespace, address: str, count: int, *options: str) -> int:
    """So many requests to nginx, by two at a time; how many of them it has answered well."""
    done = _run(ns, "ab", "-q", "-n", str(count), "-c", "2", *options, f"http://{address}:{NGINX_PORT}/")
    assert done.returncode == 0, done.stderr
    counts = dict(re.findall(r"(.+):\s+(\d+)\n", done.stdout))
    return int(counts["Complete requests"]) - int(counts.get("Non-2xx responses", 0))


def redis_benchmark(ns: Namespace, address: str, count: int, *options: str) -> "subprocess.CompletedProcess[str]":
    """So many queries to Redis, of two clients."""
    where = ("-h", address, "-p", str(REDIS_PORT))
    return _run(ns, "redis-benchmark", *where, "-n", str(count), "-c", "2", "-t", "incr", "--csv", *options)


def pgbench(ns: Namespace, address: str, folder: Path, count: int, *options: str) -> "subprocess.CompletedProcess[str]":
    """So many queries to PostgreSQL, of one client. folder: for the query."""
    program = postgresql_program("pgbench")
    assert program
    (folder / "select.sql").write_text("SELECT 1;\n")
    where = ("-h", address, "-p", str(POSTGRESQL_PORT), "-U", "postgres")
    return _run(
        ns, str(program), *where, "-n", "-t", str(count), "-f", str(folder / "select.sql"), *options, "postgres"
    )


@dataclass
class Getter:
    """Gets objects of nginx one by one. session: over one connection; else each has its own, which is closed first."""

    session: bool = False
    got: int = 0
    failed: str = ""


@contextmanager
def getting(ns: Namespace, address: str, rate: float) -> Iterator[Getter]:
    """A program that gets so many objects a second at most, until the end of the block."""
    over, made = threading.Event(), Getter()

    def work() -> None:
        with ns.entered(), closing(http.client.HTTPConnection(address, NGINX_PORT, timeout=60)) as connection:
            while not over.wait(1 / rate):
                connection.request("GET", f"/{made.got % 23}")
                answer = connection.getresponse()
                if answer.status != http.HTTPStatus.OK or not answer.read():
                    made.failed = f"object {made.got}: {answer.status}"
                    return
                made.got += 1
                if not made.session:
                    connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield made
    finally:
        over.set()
        thread.join()
