"""Events are decoded, and those sessions whose end nothing tells are told as expired when their time is up."""

import pytest

from twctl.table.counters import TICK
from twctl.table.events import ADOPTED, ENDED, ENTERED, EVENT, OWNER_MASK, RESTARTED, TRANSLATED, Book, Event, decode
from twctl.table.shared import CONSTANTS

V4, V6 = bytes([192, 0, 2, 1]).ljust(16, b"\xff"), bytes.fromhex("20010db8").ljust(16, b"\0")
# Words of an IPv4 tuple beyond the first are whatever was there.
TUPLES = (V4 * 2 + b"\x10\xe1\x00\x50" + bytes([3, 0, 0, 0]) + bytes(4), V6 * 2 + b"\x10\xe1\x00\x50" + bytes(8))


def told(  # noqa: PLR0913 - fields
    kind: int,
    number: int = 1,
    *,
    expiry: int = 100,
    lifetime: int = 30,
    reason: int = 0,
    family: int = 0,
    owner: int = 7,
) -> bytes:
    """A record, as the programs write it."""
    wire = TUPLES[family][:34] + b"\x00\x51" + TUPLES[family][36:]
    return EVENT.pack(number, 5_000_000_000, expiry, lifetime, owner, kind, reason, 2, family, 1, TUPLES[family], wire)


def decoded(book: Book, *records: bytes, wanted: bool = True) -> list[Event]:
    """What a piece of these records tells."""
    return list(decode(b"".join(records), book, lambda _: wanted))


@pytest.mark.parametrize(("family", "address"), [(0, "192.0.2.1"), (1, "2001:db8::")])
def test_a_record_is_decoded(family: int, address: str) -> None:
    """Into plain values, with the wire's tuple only where it differs."""
    (found,) = decoded(Book(), told(ENTERED, family=family, owner=7 | TRANSLATED))
    assert found[:5] == (5.0, None, False, ("ipv4", "ipv6")[family], "remote")
    assert (found.fin_wait2, found.lifetime, found.owner) == (True, 30 * TICK, 7)
    assert found.socket[:4] == (address, 4321, address, 80)
    assert found.wire is not None
    assert found.wire.remote_port == 81
    (plain,) = decoded(Book(), told(ADOPTED, owner=OWNER_MASK))
    assert (plain.wire, plain.adopted, plain.socket.netns) == (None, True, 3)


def test_a_session_expires_when_its_time_is_up() -> None:
    """Not before, and once."""
    book = Book()
    decoded(book, told(ENTERED))
    assert not list(book.expired(99))
    (found,) = book.expired(100)
    assert (found.ended, found.lifetime, found.time) == ("expired", 30 * TICK, 100 * TICK)
    assert not list(book.expired(200))
    assert not book.untold


def test_a_timer_that_starts_anew_puts_the_expiry_off() -> None:
    """By a later tick; no line tells of it."""
    book = Book()
    assert len(decoded(book, told(ENTERED), told(RESTARTED, expiry=150, lifetime=40))) == 1
    assert not list(book.expired(149))
    assert [40 * TICK] == [each.lifetime for each in book.expired(150)]


def test_what_has_ended_does_not_expire() -> None:
    """Whichever came last counts: the number is the session's own."""
    book = Book()
    reason = CONSTANTS["REASON_EVICTED"]
    rows = decoded(book, told(ENTERED), told(ENTERED, 2), told(ENDED, reason=reason, lifetime=4), told(RESTARTED))
    assert [None, None, "evicted"] == [each.ended for each in rows]
    assert len(list(book.expired(1000))) == 1


def test_after_a_loss_nothing_is_said_to_have_expired() -> None:
    """It may have ended otherwise; how many those are is kept."""
    book = Book()
    decoded(book, told(ENTERED), told(ENTERED, 2))
    book.forget()
    decoded(book, told(ENTERED, 3), told(RESTARTED, 2))
    assert (1, 2) == (len(list(book.expired(1000))), book.untold)


def test_the_book_has_an_end() -> None:
    """What finds no room is not told of when it expires, and counted."""
    book = Book(most=1)
    decoded(book, told(ENTERED), told(ENTERED, 2))
    assert (1, 1) == (len(list(book.expired(1000))), book.untold)


def test_what_is_not_wanted_is_not_kept() -> None:
    """A filter keeps the book small."""
    book = Book(most=0)
    assert not decoded(book, told(ENTERED), told(ENDED), wanted=False)
    assert not book.untold
