"""When the local ports toward a destination are used up, from what holds them now: arithmetic alone."""

from bisect import bisect_right
from collections.abc import Sequence

from twctl.addresses import Address

RATE_SECONDS = 10.0  # the rate of use is that of the last 10 s
SHORTEST_SECONDS = 1.0  # or of this long at least, however young the load is
STEP_SECONDS = 0.25


def entry_rate(left: Sequence[float], life: float) -> float:
    """TIME_WAIT sockets a second, from what is left of their lives (s, sorted): those of the last seconds.

    Of the last 10 s; of fewer where half of these are younger than that says, as of a load that has just begun.
    """
    longest = min(RATE_SECONDS, life)
    first = bisect_right(left, life - longest)
    if first == len(left):
        return 0.0
    median = life - left[(first + len(left)) // 2]
    window = min(longest, max(SHORTEST_SECONDS, 2 * median))
    return (len(left) - bisect_right(left, life - window)) / window


def seconds_left(ports: int, left: Sequence[float], entries: float, life: float, growth: float = 0.0) -> float | None:
    """Seconds until so many ports are held, if sessions and live connections go on to come at this rate; None: never.

    left: what is left of the lives of the sessions that hold one (s, sorted). Once a life is over as many go as come,
    and only a growing number of live connections, so many a second, can still use the ports up.
    """
    for step in range(int(life / STEP_SECONDS) + 2):
        seconds = min(step * STEP_SECONDS, life)
        if len(left) - bisect_right(left, seconds) + (entries + growth) * seconds >= ports:
            return seconds
    return (ports - entries * life) / growth if growth > 0 else None


def blocked_for(reuse: int, delay: float, remote: Address, life: float) -> float:
    """Seconds that a TIME_WAIT socket keeps its port from connect() (tcp_twsk_unique).

    reuse: tcp_tw_reuse, 2: loopback only; delay: tcp_tw_reuse_delay (s). That both ends use timestamps is taken for
    granted.
    """
    applies = reuse == 1 or (reuse == 2 and remote.is_loopback)  # noqa: PLR2004 - the sysctl's values
    return min(life, delay) if applies else life
