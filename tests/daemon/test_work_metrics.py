"""The metrics of ports, lateness and mode, from tasks of a test's own."""

import dataclasses
import math
import time
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from twctl.classes import Class
from twctl.config.config import load
from twctl.daemon.families import Metric
from twctl.daemon.work import Work
from twctl.daemon.work_metrics import mode_metrics, port_metrics, task_metrics
from twctl.modes.headroom import Use
from twctl.modes.histogram import Histogram
from twctl.modes.truncate import LATENESS_EDGES
from twctl.table.maps import Table

NOWHERE = Path("/nowhere/twctl.toml")
ENDLESS = Use("blue", ip_address("10.0.0.1"), ip_address("10.0.0.2"), 443, 1000, 200, 50, 7.0, None)
ENDING = dataclasses.replace(ENDLESS, remote=ip_address("2001:db8::2"), seconds_left=23.0)


def rows(families: Iterable[Metric], name: str) -> dict[tuple[str, ...], float]:
    """Values of a series by its labels' values."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def work(**parts: Any) -> Work:  # noqa: ANN401 - fakes have no types
    """What a daemon does that was given these parts."""
    idle = SimpleNamespace(rounds=0, errors=0, missing=13, drift={"missing": 0, "stale": 0})
    reaper = SimpleNamespace(errors=3, passed_over=5, lateness={class_: Histogram(LATENESS_EDGES) for class_ in Class})
    reaper.lateness[Class.LOCAL].add(0.07)
    return dataclasses.replace(
        Work(idle, SimpleNamespace(), reaper),  # type: ignore[arg-type]
        **parts,
    )


def test_ports_that_last_for_ever_are_left_for_infinite_time() -> None:
    """And others for as long as was foreseen, less the time since."""
    look = SimpleNamespace(uses=[ENDLESS, ENDING], looked_at=time.monotonic() - 3)
    families = list(port_metrics(work(port_look=look)))
    assert {("blue", "10.0.0.1", "10.0.0.2", "443"): 0.25, ("blue", "10.0.0.1", "2001:db8::2", "443"): 0.25} == rows(
        families, "twctl_ephemeral_ports_used_ratio"
    )
    endless, ending = rows(families, "twctl_ephemeral_ports_left_seconds").values()
    assert endless == math.inf
    assert 19 < ending <= 20


def test_without_a_look_at_the_ports_their_families_are_empty() -> None:
    """They are there all the same."""
    families = list(port_metrics(work()))
    assert 3 == len(families)
    assert all(not family.samples for family in families)


def test_a_destination_with_few_ports_has_its_own_time() -> None:
    """While port_headroom makes it shorter."""
    where = ("blue", "10.0.0.1", "10.0.0.2", "443")
    relieving = SimpleNamespace(seconds=lambda: {where: 5.0})
    assert {where: 5.0} == rows(port_metrics(work(relieving=relieving)), "twctl_pressure_time_wait_seconds")


def test_lateness_is_a_histogram_by_class() -> None:
    """One socket of class local was 70 ms late."""
    found = rows(task_metrics(work()), "twctl_truncate_lateness_seconds_bucket")
    assert [0, 1, 1] == [found["local", edge] for edge in ("0.05", "0.1", "+Inf")]
    assert 0 == found["remote", "+Inf"]


def test_what_the_kernel_refused_to_destroy_is_summed() -> None:
    """Of both ways to destroy sockets."""
    pressure = SimpleNamespace(refused=4)
    assert {(): 3} == rows(task_metrics(work()), "twctl_destroy_refused_total")
    assert {(): 7} == rows(task_metrics(work(port_pressure=pressure)), "twctl_destroy_refused_total")


def test_sessions_left_to_the_kernel_are_told() -> None:
    """Those that mode truncate cannot come back to."""
    assert {(): 5} == rows(task_metrics(work()), "twctl_truncate_passed_over_total")


def test_unseen_entries_are_the_kernels_count_where_there_is_one() -> None:
    """Else those that comparisons found missing."""
    assert {(): 13} == rows(task_metrics(work()), "twctl_time_wait_unseen_total")
    counted = work(unseen=SimpleNamespace(total=5))
    assert {(): 5} == rows(task_metrics(counted), "twctl_time_wait_unseen_total")


def test_in_mode_observe_the_kernels_own_time_is_in_force() -> None:
    """Whatever the configuration says for the other modes."""
    table = cast("Table", SimpleNamespace(probe="tracepoint"))
    for mode, expected in (("observe", [60, 60, 60]), ("truncate", [2, 10, 60])):
        families = list(mode_metrics(load(None, {"mode": mode}, default_file=NOWHERE).config, table))
        assert expected == list(rows(families, "twctl_time_wait_seconds").values())
        assert {(mode,): 1} == {k: v for k, v in rows(families, "twctl_mode").items() if v}
