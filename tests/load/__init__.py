"""What kernel tests and benchmarks share: namespaces, counters, exact closes, load, daemons."""

import time
from collections.abc import Callable

# Seconds between two looks: short beside the kernel's own timers (delayed ACK 40 ms, first retransmission 200 ms).
PAUSE = 0.002


def wait_until(fact: Callable[[], object], *, what: str = "", timeout: float = 5.0) -> None:
    """Return as soon as `fact()` is true; AssertionError if it does not become so in `timeout` seconds."""
    end = time.monotonic() + timeout
    while not fact():
        assert time.monotonic() < end, f"not true after {timeout} s: {what or fact}"
        time.sleep(PAUSE)
