"""When memory counts as short, on a /proc of our own."""

import errno
import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.load import wait_until
from twctl.linux.pressure import Pressure


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """TCP uses 100 of 200 pages; no PSI."""
    (tmp_path / "net").mkdir()
    (tmp_path / "sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "sys/net/ipv4/tcp_mem").write_text("100\t200\t300\n")
    tcp(tmp_path, 100)
    return tmp_path


def tcp(proc: Path, pages: int) -> None:
    """TCP uses so many pages."""
    text = f"sockets: used 9\nTCP: inuse 4 orphan 0 tw 5 alloc 6 mem {pages}\nUDP: inuse 1 mem 999\n"
    (proc / "net/sockstat").write_text(text)


def test_where_there_is_no_tcp_mem_it_is_not_asked(proc: Path) -> None:
    """Only the machine's first network namespace has it: a daemon in a container goes on without."""
    (proc / "sys/net/ipv4/tcp_mem").unlink()
    pressure = Pressure(0, tcp_memory=True, proc=proc)
    assert not pressure.now()
    assert "TCP memory off (no tcp_mem in this network namespace)" in pressure.watching


def test_tcp_s_memory_is_short_from_the_second_number_of_tcp_mem(proc: Path) -> None:
    """199 pages of 200 are not, 200 are, and back."""
    pressure = Pressure(0, tcp_memory=True, proc=proc)
    found = []
    for pages in (199, 200, 100):
        tcp(proc, pages)
        found.append(pressure.now())
    assert [False, True, False] == found


def test_what_is_off_is_never_short_and_says_so(proc: Path) -> None:
    """Both sources off."""
    tcp(proc, 1000)
    pressure = Pressure(0, tcp_memory=False, proc=proc)
    assert (False, ["PSI off (pressure.psi_stall)", "TCP memory off (pressure.tcp_memory)"]) == (
        pressure.now(),
        pressure.watching,
    )


def test_a_kernel_without_psi_is_told_apart(proc: Path) -> None:
    """The reason stands in what is watched, and TCP goes on being asked."""
    pressure = Pressure(150, tcp_memory=True, proc=proc)
    assert ["PSI off (No such file or directory; boot with psi=1)", "TCP memory"] == pressure.watching
    tcp(proc, 200)
    assert pressure.now()


def test_the_psi_trigger_is_in_the_kernel_s_words(proc: Path) -> None:
    """Stall and window in microseconds, ended by a zero byte (Documentation/accounting/psi.rst)."""
    (proc / "pressure").mkdir()
    (proc / "pressure/memory").write_text("")
    pressure = Pressure(150, tcp_memory=False, proc=proc)
    assert (proc / "pressure/memory").read_bytes() == b"some 150000 1000000\0"
    pressure.close()
    pressure.close()


def test_without_cap_sys_resource_the_window_is_2_s(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the stall in twice the time, where the kernel refuses a window of 1 s with EINVAL."""
    (proc / "pressure").mkdir()
    (proc / "pressure/memory").write_text("")
    write = os.write

    def kernel(fd: int, text: bytes) -> int:
        if text.endswith(b" 1000000\0"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return write(fd, text)

    monkeypatch.setattr(os, "write", kernel)
    pressure = Pressure(150, tcp_memory=False, proc=proc)
    monkeypatch.undo()
    assert (proc / "pressure/memory").read_bytes() == b"some 300000 2000000\0"
    assert pressure.watching[0] == "PSI above 150 ms a second"
    pressure.close()


def test_pressure_lasts_a_second_from_the_trigger(monkeypatch: pytest.MonkeyPatch) -> None:
    """POLLPRI, which a socket gives for an urgent byte, means pressure at once, and for a second after it is over."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        kernel = stack.enter_context(socket.create_connection(server.getsockname()))
        trigger = stack.enter_context(server.accept()[0])
        monkeypatch.setattr(os, "open", lambda *_: os.dup(trigger.fileno()))
        pressure = Pressure(150, tcp_memory=False)
        monkeypatch.undo()
        stack.callback(pressure.close)
        assert kernel.recv(64) == b"some 150000 1000000\0"
        assert pressure.watching[0] == "PSI above 150 ms a second"
        kernel.send(b"in order")
        assert not pressure.now()
        kernel.send(b"!", socket.MSG_OOB)
        wait_until(pressure.now, what="the trigger fires")
        trigger.recv(1, socket.MSG_OOB)
        assert pressure.now()
        fired = time.monotonic()
        wait_until(lambda: not pressure.now(), what="it is over")
        assert 0.9 <= time.monotonic() - fired <= 1.1
