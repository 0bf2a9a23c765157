"""What kernel tests and benchmarks share: namespaces, counters, exact closes, load, daemons."""

import time
from collections.abc import Callable

# Seconds between two looks: short beside the kernel's own timers (delayed ACK 40 ms, first retransmission 200 ms).
SHORTEST, LONGEST = 0.002, 0.02


def wait_until(fact: Callable[[], object], *, what: str = "", timeout: float = 5.0) -> None:
    """Return as soon as `fact()` is true; AssertionError if it does not become so in `timeout` seconds.

    It pauses for as long as a look takes: what is waited for needs the CPU, too.
    """
    began = time.monotonic()
    end = began + timeout
    while not fact():
        now = time.monotonic()
        assert now < end, f"not true after {timeout} s: {what or fact}"
        time.sleep(min(max(SHORTEST, now - began), LONGEST))
        began = time.monotonic()
