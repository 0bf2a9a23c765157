"""How a metric is written."""

from twctl.daemon.families import counter, gauge, single


def test_a_counter_ends_in_total_and_a_gauge_does_not() -> None:
    """As Prometheus wants their names."""
    assert ["x_total"] == [sample.name for sample in counter("x", "Text.", single(23)).samples]
    assert ["x"] == [sample.name for sample in gauge("x", "Text.", single(23)).samples]


def test_each_row_is_a_series_with_its_labels() -> None:
    """In the order of the rows."""
    made = gauge("x", "Text.", [(("local", "ipv4"), 1), (("remote", "ipv6"), 2)], "class", "family")
    assert [({"class": "local", "family": "ipv4"}, 1), ({"class": "remote", "family": "ipv6"}, 2)] == [
        (sample.labels, sample.value) for sample in made.samples
    ]
