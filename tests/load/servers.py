"""Servers as they are packaged, run inside a namespace: nginx, Redis, PostgreSQL."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.load import wait_until
from tests.load.netns import Namespace

PROGRAMS = Path("build/programs")  # deploy/setup --test puts there what it does not install
NGINX = PROGRAMS / "nginx"
POSTGRESQL = PROGRAMS / "usr/lib/postgresql"
REDIS = ("bash", "-c", 'exec -a redis-server redis-check-rdb "$@"', "bash")  # one program; its name says which
NGINX_PORT, REDIS_PORT, POSTGRESQL_PORT = 8080, 7379, 7432
NGINX_CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error;
events {{ worker_connections 4096; }}
http {{
    access_log off; {settings}
    client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
    uwsgi_temp_path {folder}; scgi_temp_path {folder};
    server {{ listen {address}:8080 reuseport backlog=4096; location / {{ {answer} }} }}
}}
"""
ANSWER = 'return 200 "well";'
CLOSES_FIRST = "keepalive_timeout 0;"
LEAVES_OPEN = "keepalive_timeout 60; keepalive_requests 1000000;"
# Without a pool nginx closes each connection to its upstream, and before that as this one leaves it open.
PROXY = 'proxy_http_version 1.1; proxy_set_header Connection ""; upstream behind {{ server {upstream}:8080; {pool} }}'
# PostgreSQL refuses to be root; it may still have to read a checkout that is root's alone.
NOBODY = (
    *("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
    *("--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"),
)


@contextmanager
def served(ns: Namespace, port: int, *command: str) -> Iterator[None]:
    """A server that runs until the end of the block, and listens on this port at its beginning."""
    process = ns.popen(*command)
    try:
        wait_until(lambda: listening(ns, port), what=f"{command[0]} listens")
        yield
    finally:
        process.terminate()
        process.communicate(timeout=10)


def listening(ns: Namespace, port: int) -> bool:
    """Somebody listens on this port."""
    return any(
        line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in ns.read("tcp").splitlines()
    )


@contextmanager
def nginx(
    ns: Namespace, address: str, folder: Path, *, settings: str = CLOSES_FIRST, answer: str = ANSWER
) -> Iterator[None]:
    """Answers every request. settings: of all of it; answer: what it does with a request."""
    text = NGINX_CONFIGURATION.format(folder=folder, address=address, settings=settings, answer=answer)
    (folder / "conf").write_text(text)
    with served(ns, NGINX_PORT, str(NGINX), "-c", str(folder / "conf")):
        yield


@contextmanager
def proxy(ns: Namespace, address: str, folder: Path, upstream: str, pool: str = "") -> Iterator[None]:
    """An nginx before another one. pool: the line `keepalive` of its upstream."""
    settings = f"{LEAVES_OPEN} {PROXY.format(upstream=upstream, pool=pool)}"
    with nginx(ns, address, folder, settings=settings, answer="proxy_pass http://behind;"):
        yield


@contextmanager
def redis(ns: Namespace, address: str, folder: Path) -> Iterator[None]:
    """Keeps nothing on a disk."""
    options = ("--bind", address, "--port", str(REDIS_PORT), "--save", "", "--dir", str(folder))
    with served(ns, REDIS_PORT, *REDIS, *options, "--protected-mode", "no"):
        yield


def postgresql_program(name: str) -> Path | None:
    """One of PostgreSQL's programs, of any version; None if deploy/setup --test has not put them there."""
    return next(POSTGRESQL.glob(f"*/bin/{name}"), None)


@contextmanager
def postgresql(ns: Namespace, address: str, folder: Path) -> Iterator[None]:
    """A new cluster in `folder`; whoever can connect is trusted."""
    data, initdb, server = folder / "data", postgresql_program("initdb"), postgresql_program("postgres")
    assert initdb
    assert server
    folder.chmod(0o755)
    data.mkdir(mode=0o700)
    subprocess.run(["chown", "65534:65534", data], check=True)
    command = (*NOBODY, str(initdb), "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all trust\n")
    where = (f"listen_addresses={address}", f"port={POSTGRESQL_PORT}", f"unix_socket_directories={data}")
    settings = (*where, "fsync=off", "shared_buffers=16MB", "log_min_messages=fatal")
    options = [word for each in settings for word in ("-c", each)]
    with served(ns, POSTGRESQL_PORT, *NOBODY, str(server), "-D", str(data), *options):
        wait_until(lambda: "ready" in (data / "postmaster.pid").read_text(), what="PostgreSQL is ready")
        yield
