"""Network namespaces: a thread goes inside and brings back what it made, or what went wrong; mounts are heard of."""

import itertools
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from twctl.errors import TwctlError
from twctl.linux import netns
from twctl.linux.netns import Mounts, cookie, inode, inside, inside_new, opened, sees_names_beside

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def name() -> Iterator[str]:
    """Of a namespace that is there during the test."""
    made = f"twn-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", made], check=True)
    try:
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", made], check=True)


def where() -> int:
    """Inode of the calling thread's namespace."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def test_without_a_name_nothing_is_entered() -> None:
    """None is the calling thread's own namespace, and no thread is started."""
    assert inside(None, lambda: (where(), threading.get_ident())) == (where(), threading.get_ident())


@needs_root
def test_names_are_seen_where_their_folder_is_and_its_namespaces_can_be_entered(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may have neither: what is not found there is not gone."""
    assert sees_names_beside(name)
    assert not sees_names_beside(str(tmp_path / "none" / name))
    monkeypatch.setattr(netns, "permitted", lambda _capability: False)
    assert not sees_names_beside(name)


@needs_root
def test_only_what_is_made_inside_is_inside(name: str) -> None:
    """The name and its path lead to the same place; the caller stays, and no thread is left."""
    before = where()
    assert inside(name, where) == inode(name) == inside(f"/run/netns/{name}", where)
    assert where() == before != inode(name)
    assert threading.active_count() == 1
    with inside(name, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        assert int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, netns.SO_NETNS_COOKIE, 8), sys.byteorder) == cookie(
            name
        )


def descriptors() -> int:
    """How many are open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@needs_root
def test_every_namespace_is_reached_once(name: str) -> None:
    """Our own first, those with a name, and one that only a process has; whoever stops asking leaves nothing open."""
    process = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()
        nameless = inode(f"/proc/{process.pid}/ns/net")
        found = [inode(path) for path in netns.reachable()]
        assert (where(), len(set(found))) == (found[0], len(found))
        assert {inode(name), nameless} <= set(found)
        before = descriptors()
        assert [where()] == [inside(path, where) for path in itertools.islice(netns.reachable(), 1)]
        assert before == descriptors()
    finally:
        process.kill()
        process.communicate()


@needs_root
def test_an_open_namespace_outlives_its_name(name: str) -> None:
    """Its descriptor leads there, whatever has the name since."""
    descriptor, before = opened(name), inode(name)
    try:
        for words in ("del", "add"):
            subprocess.run(["ip", "netns", words, name], check=True)
        assert inside(f"/proc/self/fd/{descriptor}", where) == before != inode(name)
    finally:
        os.close(descriptor)


def test_a_namespace_that_is_not_there_is_an_error_that_names_it() -> None:
    """Of whoever wants to go there; its inode is 0."""
    with pytest.raises(TwctlError, match="twn-nowhere"):
        inside("twn-nowhere", where)
    with pytest.raises(TwctlError, match="twn-nowhere"):
        opened("twn-nowhere")
    assert inode("twn-nowhere") == 0


@needs_root
def test_what_goes_wrong_inside_reaches_the_caller(name: str) -> None:
    """Any exception, from the thread to the one that waits for it."""

    def fail() -> None:
        raise LookupError("inside")

    with pytest.raises(LookupError, match="inside"):
        inside(name, fail)


@needs_root
def test_a_new_namespace_has_only_lo() -> None:
    """It is another one than the caller's, and empty."""
    assert inside_new(lambda: [name for _, name in socket.if_nameindex()]) == ["lo"]
    assert inside_new(where) != where()


@needs_root
def test_mounts_are_heard_of_once(name: str) -> None:
    """A name that comes or goes makes Mounts readable until `clear`."""
    mounts = Mounts()
    try:
        assert not select.select([mounts], [], [], 0)[0]
        subprocess.run(["ip", "netns", "add", f"{name}-2"], check=True)
        assert select.select([mounts], [], [], 5)[0]
        assert f"{name}-2" in netns.present()
        mounts.clear()
        assert not select.select([mounts], [], [], 0)[0]
        subprocess.run(["ip", "netns", "del", f"{name}-2"], check=True)
        assert select.select([mounts], [], [], 5)[0]
    finally:
        mounts.close()
