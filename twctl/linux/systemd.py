"""Messages to systemd: ready, reloading, stopping, alive (sd_notify(3), without its library)."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """The service manager, by the environment; without $NOTIFY_SOCKET nothing is sent.

    `watchdog`: seconds (float) within which it expects the next message, 0: it expects none. `is_there`: bool.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.is_there = bool(self._address)
        ours = environment.get("WATCHDOG_PID") in {None, str(os.getpid())}
        self.watchdog = int(environment.get("WATCHDOG_USEC", "0")) / 1e6 if ours and self._address else 0.0

    def ready(self, status: str) -> None:
        """Tell that everything that was asked for is in force. Restarts the watchdog's time: a start takes long."""
        self._tell("READY=1", f"STATUS={status}", "WATCHDOG=1")

    def alive(self) -> None:
        """Tell that the loop still runs."""
        self._tell("WATCHDOG=1")

    def reloading(self) -> None:
        """Tell that the configuration is being read again; `ready` ends that state."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reading the configuration")

    def status(self, text: str) -> None:
        """Tell the status line that `systemctl status` shows."""
        self._tell(f"STATUS={text}")

    def stopping(self, status: str) -> None:
        """Tell that the end has begun."""
        self._tell("STOPPING=1", f"STATUS={status}")

    def _tell(self, *lines: str) -> None:
        """Send a datagram. Failures are ignored: a manager that gets no message notices it by its own time limits."""
        if not self._address:
            return
        # In the environment an abstract socket's leading zero byte is written as "@".
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        text = "\n".join(" ".join(line.splitlines()) for line in lines)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003 - socket's own signature
            sock.sendto(text.encode(), address)


class Reporting:
    """A task that tells the service manager that the loop goes round: twice in the time after which it would end us."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def run(self) -> float:
        """Tell it; return seconds until the next time."""
        self._notifier.alive()
        return self._notifier.watchdog / 2
