"""How a metric is written: a family of series from rows of label values and numbers."""

from collections.abc import Iterable
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily

Metric = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | InfoMetricFamily
Rows = Iterable[tuple[tuple[str, ...], float]]
Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)


def counter(name: str, text: str, rows: Rows, *labels: str) -> CounterMetricFamily:
    """A counter; its series end in _total."""
    return _filled(CounterMetricFamily(name, text, labels=labels), rows)


def gauge(name: str, text: str, rows: Rows, *labels: str) -> GaugeMetricFamily:
    """A gauge."""
    return _filled(GaugeMetricFamily(name, text, labels=labels), rows)


def single(value: float) -> Rows:
    """The one row of a family without labels."""
    return [((), value)]


def _filled(metric: Family, rows: Rows) -> Family:
    for labels, value in rows:
        metric.add_metric(labels, value)
    return metric
