"""Tasks that destroy TIME_WAIT sockets: those whose time is over, and the oldest while memory is short.

They run in the daemon's thread and never in interrupt context: this work can take long, and sleep.
"""

import math

from twctl.classes import Class
from twctl.linux.pressure import Pressure
from twctl.modes.truncate import DRAIN_BATCH, Limits, Reaper

# What is due is destroyed in batches, so that the walk of a busy ring costs little (s); half of the lateness allowed.
TRUNCATE_SECONDS = 0.05
# One pass destroys about this many sockets of a class, 20 ms of work, before routes and signals have their turn.
TRUNCATE_BATCH = 2048
# How often memory is asked about (s): reclaim begins within a second.
PRESSURE_SECONDS = 0.5


class Truncating:
    """Destroy what is due, nearest class first."""

    def __init__(self, reaper: Reaper, limits: Limits) -> None:
        self._reaper, self._limits = reaper, limits

    def run(self) -> float:
        """One batch of each class."""
        waits = [self._reaper.reap(class_, self._limits, TRUNCATE_BATCH)[1] for class_ in Class]
        return max(TRUNCATE_SECONDS, min(waits))


class Draining:
    """While memory is short, destroy TIME_WAIT sockets: nearest class first, oldest first, a batch at a time."""

    def __init__(self, reaper: Reaper, pressure: Pressure) -> None:
        self._reaper, self._pressure = reaper, pressure
        # At any age; sockets in FIN_WAIT2 stay, for their peer's FIN is still to come.
        self._limits = Limits(dict.fromkeys(Class, 0.0), dict.fromkeys(Class, math.inf))

    def run(self) -> float:
        """One batch of the nearest class that has any, if memory is short."""
        if not self._pressure.now():
            return PRESSURE_SECONDS
        for class_ in Class:
            if self._reaper.reap(class_, self._limits, DRAIN_BATCH)[0]:
                return TRUNCATE_SECONDS
        return PRESSURE_SECONDS
