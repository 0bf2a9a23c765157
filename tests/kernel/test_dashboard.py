"""Every expression of rules, alerts and dashboard against a real Prometheus that scrapes real daemons under load."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.load.monitoring import ALERTS, DASHBOARD, RULES, panel_expressions, rule_expressions, rules, selectors_in
from tests.load.prometheus import Prometheus, watched
from twctl.classes import Class
from twctl.table.maps import MODES

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
)

LOAD_SECONDS = 120  # longer than all that follows; it ends with the last test
# The local class's 10 s, the comparison's 15 s, and room.
SHOWN_SECONDS = 60.0
# As Grafana replaces them; `All` is what `allValue` says.
VARIABLES = {"__rate_interval": "10s", "instance": ".*", "class": ".*"}
# All series are there, and 0: nothing went wrong, and of 28,232 ports none comes round within its class's time.
ALL_IS_WELL = {
    "Alerts that fire",
    "Guard put back",
    "Lost",
    "Mended by comparison",
    "Refused by conntrack",
    "Reuse ages",
    "Scrapes with errors",
    "Translated ports used",
}
# Only a host that translates has it (test_conntrack.py).
ELSEWHERE = {"twctl_translated_ports_used_ratio"}


@pytest.fixture(scope="module")
def prometheus() -> Iterator[Prometheus]:
    """It scrapes a daemon of each mode, while sessions of each class begin and end."""
    with watched(LOAD_SECONDS) as server:
        yield server


def until_none(missing: Callable[[], list[str]]) -> None:
    """Return when nothing is missing."""
    end = time.monotonic() + SHOWN_SECONDS
    while absent := missing():
        assert time.monotonic() < end, absent
        time.sleep(0.5)


def test_every_rule_is_evaluated_without_an_error(prometheus: Prometheus) -> None:
    """Prometheus itself says so of each record and alert, and none of them waits for its turn."""
    wanted = set(rule_expressions())

    def healthy() -> set[str]:
        found = [rule for group in prometheus.get("rules")["data"]["groups"] for rule in group["rules"]]
        assert [] == [rule for rule in found if rule.get("lastError")]
        return {rule["name"] for rule in found if rule["health"] == "ok"}

    until_none(lambda: sorted(wanted - healthy()))


def test_every_record_has_data(prometheus: Prometheus) -> None:
    """Its expression does, and the series that it records, of every mode."""
    recorded = [(rule["record"], rule["expr"]) for rule in rules(RULES)]
    until_none(lambda: [name for name, expression in recorded if not prometheus.query(expression)])
    until_none(lambda: [name for name, _ in recorded if set(MODES) != _labels(prometheus.query(name), "instance")])


def test_every_alert_asks_for_series_that_are_there(prometheus: Prometheus) -> None:
    """An alert of a host without trouble is empty; each selector in it is not."""
    asked = {rule["alert"]: selectors_in(rule["expr"]) for rule in rules(ALERTS)}
    assert all(asked.values())
    wanted = set().union(*asked.values()) - ELSEWHERE
    until_none(lambda: [each for each in wanted if not prometheus.query(each)])
    for rule in rules(ALERTS):
        prometheus.query(rule["expr"])


def test_every_panel_has_data(prometheus: Prometheus) -> None:
    """Of the hosts together and of each class alone, and something other than 0 where all is well."""
    until_none(lambda: _silent(prometheus, VARIABLES))
    alone = [VARIABLES | {"class": class_.label} for class_ in Class]
    until_none(lambda: [title for variables in alone for title in _empty(prometheus, variables)])


def test_the_variables_offer_every_host_and_class(prometheus: Prometheus) -> None:
    """What `label_values` finds."""
    found = {}
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").split(", ")
            found[variable["name"]] = set(prometheus.get(f"label/{label}/values", **{"match[]": metric})["data"])
    assert {"instance": set(MODES), "class": {class_.label for class_ in Class}} == found


def test_no_alert_fires_on_hosts_without_trouble(prometheus: Prometheus) -> None:
    """Under the load of these tests."""
    assert {} == prometheus.query('ALERTS{alertstate="firing"}')


def _labels(found: Mapping[str, float], label: str) -> set[str]:
    return {json.loads(labels)[label] for labels in found}


def _empty(prometheus: Prometheus, variables: Mapping[str, str]) -> list[str]:
    return [title for title, expression in panel_expressions(variables) if not prometheus.query(expression)]


def _silent(prometheus: Prometheus, variables: Mapping[str, str]) -> list[str]:
    """Titles of what has no data, or only zeros."""
    found = [(title, prometheus.query(expression)) for title, expression in panel_expressions(variables)]
    return [title for title, shown in found if not shown or not (title in ALL_IS_WELL or any(shown.values()))]
