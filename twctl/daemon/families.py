"""How a metric is written: a family of series from rows of label values and numbers."""

import itertools
from collections.abc import Iterable
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily

from twctl.modes.histogram import Histogram

Metric = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | InfoMetricFamily
Rows = Iterable[tuple[tuple[str, ...], float]]
Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)
Value = TypeVar("Value", float, Histogram)


def counter(name: str, text: str, rows: Rows, *labels: str) -> CounterMetricFamily:
    """A counter; its series end in _total."""
    return _filled(CounterMetricFamily(name, text, labels=labels), rows)


def gauge(name: str, text: str, rows: Rows, *labels: str) -> GaugeMetricFamily:
    """A gauge."""
    return _filled(GaugeMetricFamily(name, text, labels=labels), rows)


def histogram(
    name: str, text: str, rows: Iterable[tuple[tuple[str, ...], Histogram]], *labels: str
) -> HistogramMetricFamily:
    """A histogram; each edge counts what is not longer."""
    metric = HistogramMetricFamily(name, text, labels=labels)
    for values, durations in rows:
        edges = [*map(str, durations.edges), "+Inf"]
        metric.add_metric(
            values, [*zip(edges, itertools.accumulate(durations.buckets), strict=True)], durations.seconds
        )
    return metric


def single(value: Value) -> list[tuple[tuple[str, ...], Value]]:
    """The one row of a family without labels."""
    return [((), value)]


def _filled(metric: Family, rows: Rows) -> Family:
    for labels, value in rows:
        metric.add_metric(labels, value)
    return metric
