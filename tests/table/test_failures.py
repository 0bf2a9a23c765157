"""Since when connects find no port, from maps that a test wrote down."""

import ipaddress
import mmap

from tests.table.test_tallies import FakeTable, remote
from twctl.table.failures import FAILURE, FAILURES_BYTES, TIMES, Failing, failing
from twctl.table.tallies import By, Remote


class Table(FakeTable):
    """With the times, too."""

    def __init__(self) -> None:
        super().__init__()
        self.times = mmap.mmap(-1, FAILURES_BYTES)

    def map(self, name: str, size: int) -> mmap.mmap:
        """Either."""
        return self.times if (name, size) == ("failures", FAILURES_BYTES) else super().map(name, size)


def test_since_when_and_for_the_last_time() -> None:
    """Seconds ago, of those alone whose calls have failed; an earlier party's times are not another one's."""
    table = Table()
    for place, (address, no_port) in enumerate([("192.0.2.1", 23), ("192.0.2.2", 0), ("192.0.2.3", 1)]):
        table.put(By.REMOTE, place, remote(address, 443, 3), entered=5, no_port=no_port)
    TIMES.pack_into(table.times, 0, 60 * 10**9, 99 * 10**9)
    TIMES.pack_into(table.times, FAILURE.size, 60 * 10**9, 99 * 10**9)
    found = failing(table, 100.0)  # type: ignore[arg-type]
    assert {Remote(ipaddress.ip_address("192.0.2.1"), 443, 3): Failing(40.0, 1.0)} == found
