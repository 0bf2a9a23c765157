"""Whether memory is low: on the whole machine (PSI, pressure stall information), and TCP's own."""

import errno
import os
import select
import time
from pathlib import Path


class Pressure:
    """Says whether memory is low now.

    stall_ms: from so many milliseconds in a second on that tasks stall for memory, it is low (0: PSI is not used);
    tcp_memory: bool, whether TCP's own memory counts, too. watching: for the log, what is used, what is not and why.
    """

    def __init__(self, stall_ms: int, *, tcp_memory: bool, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        # Only the machine's first network namespace has tcp_mem; that of a container has not.
        self._tcp_memory = tcp_memory and (proc / "sys/net/ipv4/tcp_mem").exists()
        self._fd, self._poll, self._until, self._hold = -1, select.poll(), 0.0, 0
        off = "no tcp_mem in this network namespace" if tcp_memory else "pressure.tcp_memory"
        told = "TCP memory" if self._tcp_memory else f"TCP memory off ({off})"
        self.watching = [*self._watch_psi(stall_ms), told]

    def _watch_psi(self, stall_ms: int) -> list[str]:
        if not stall_ms:
            return ["PSI off (pressure.psi_stall)"]
        try:
            self._fd = os.open(self._proc / "pressure/memory", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._hold = self._trigger(stall_ms)
        except OSError as error:
            self.close()
            return [f"PSI off ({error.strerror}; boot with psi=1)"]
        self._poll.register(self._fd, select.POLLPRI)
        return [f"PSI above {stall_ms} ms a second"]

    def _trigger(self, stall_ms: int) -> int:
        """Set the trigger; return its window (s), in which it fires at most once. Raises OSError.

        Without CAP_SYS_RESOURCE the window must be a multiple of 2 s, else EINVAL (psi_trigger_create()).
        """
        try:
            return self._set(stall_ms, 1)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        return self._set(stall_ms, 2)

    def _set(self, stall_ms: int, window: int) -> int:
        os.write(self._fd, f"some {window * stall_ms * 1000} {window * 1_000_000}\0".encode())
        return window

    def now(self) -> bool:
        """Whether memory is low, or was within the trigger's last window."""
        if self._fd >= 0 and self._poll.poll(0):
            self._until = time.monotonic() + self._hold
        return time.monotonic() < self._until or (self._tcp_memory and self._tcp_is_short())

    def _tcp_is_short(self) -> bool:
        """TCP's pages have reached the second number of tcp_mem, where the kernel enters memory pressure (tcp(7))."""
        sockstat = (self._proc / "net/sockstat").read_text().split()
        pages = int(sockstat[sockstat.index("mem", sockstat.index("TCP:")) + 1])
        return pages >= int((self._proc / "sys/net/ipv4/tcp_mem").read_text().split()[1])

    def close(self) -> None:
        """Remove the trigger."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
