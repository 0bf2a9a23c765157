"""Durations by their length."""

from twctl.modes.histogram import Histogram


def test_each_duration_is_in_one_bucket() -> None:
    """An edge belongs to what is not longer; the last bucket has no edge."""
    made = Histogram((0.5, 2.0))
    for seconds in (0.1, 0.5, 0.6, 3.0):
        made.add(seconds)
    assert ([2, 1, 1], 4.2) == (made.buckets, made.seconds)
