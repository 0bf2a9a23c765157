"""The task that has connect()'s search for a local port measured, for a second now and then.

As long as its program is attached a connection costs up to half a microsecond more at each end, most of which the
kernel spends on calling it; a second in ten makes that a twentieth (tests/bench/connects.py).
"""

import logging

from twctl.errors import TwctlError
from twctl.modes.searching import LINGER, Searching
from twctl.table.maps import Table

log = logging.getLogger("twctl")

SECONDS = 1.0  # of one measurement
ALWAYS = 60.0  # where there is no pause, until when a sign of life is needed (s)


class MeasuringSearches:
    """interval: from the beginning of one measurement to that of the next (s); not longer than one: all the time.

    :raises TwctlError: where it is not possible.
    """

    def __init__(self, table: Table, interval: float) -> None:
        self._searching, self._interval = Searching(table), interval
        self._searching.begin(0)
        self._searching.end()
        self._measures = self._failed = False

    def run(self) -> float:
        """Begin or end a measurement."""
        if self._measures and self._interval > SECONDS:
            self.close()
            return self._interval - SECONDS - LINGER
        try:
            self._searching.begin(SECONDS if self._interval > SECONDS else ALWAYS)
        except (TwctlError, OSError) as error:
            if not self._failed:
                log.warning("connect() is not measured now: %s", error)
            self._failed = True
            return max(SECONDS, self._interval)
        self._measures, self._failed = True, False
        return SECONDS + LINGER if self._interval > SECONDS else ALWAYS / 2

    def close(self) -> None:
        """Take the program away."""
        self._measures = False
        self._searching.end()


def measuring_searches(table: Table, interval: float) -> MeasuringSearches | None:
    """The task, or one line that says why there is none; none where it is not wanted."""
    if not interval:
        return None
    try:
        return MeasuringSearches(table, interval)
    except TwctlError as error:
        log.warning("connect() is not measured: %s", error)
        return None
