"""The dashboard: in the order of the data's way, each panel readable by itself, and no name in it made up."""

import itertools
import json
import re

from prometheus_client import ProcessCollector, generate_latest

from tests.daemon.test_metrics import BlamedTable, registry
from tests.load.monitoring import DASHBOARD, RULES, families_of, metrics_in, panel_expressions, panels, rules

WAY = ["Entries", "Sessions", "Ends", "Guard", "Saved", "Cost of twctl itself"]
VARIABLES = {"datasource", "instance", "class"}


def test_the_rows_are_the_data_s_way() -> None:
    """From entry to cost, top to bottom, and every panel belongs to the row above it."""
    everything = json.loads(DASHBOARD.read_text())["panels"]
    assert WAY == [panel["title"] for panel in everything if panel["type"] == "row"]
    places = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in everything]
    assert sorted(places) == places


def test_panels_have_places_of_their_own() -> None:
    """Inside of Grafana's 24 columns, none over another, and each with its own id."""
    everything = json.loads(DASHBOARD.read_text())["panels"]
    assert len(everything) == len({panel["id"] for panel in everything})
    boxes = [panel["gridPos"] for panel in everything]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    for one, other in itertools.combinations(boxes, 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"], (one, other)


def test_every_panel_says_what_it_shows_in_one_sentence() -> None:
    """A title, a sentence, a unit, a legend, and the chosen Prometheus."""
    for panel in panels():
        assert re.fullmatch(r"[A-Z0-9][^.]*(?:\.\w+[^.]*)*\.", panel["description"]), panel["title"]
        unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
        assert unit, panel["title"]
        for asking in (panel, *panel["targets"]):
            assert {"type": "prometheus", "uid": "${datasource}"} == asking["datasource"]
        assert all(target["legendFormat"] for target in panel["targets"])


def test_every_expression_is_of_the_chosen_hosts_and_classes() -> None:
    """$instance in each, $class in those of metrics by class, and no variable that the dashboard has not."""
    made = json.loads(DASHBOARD.read_text())["templating"]["list"]
    assert [variable["name"] for variable in made] == ["datasource", "instance", "class"]
    for title, expression in panel_expressions({}):
        assert 'instance=~"$instance"' in expression, title
        assert not re.search(r"by \([^)]*class", expression) or 'class=~"$class"' in expression, title
        assert set(re.findall(r"\$(\w+)", expression)) <= VARIABLES | {"__rate_interval"}


def test_the_dashboard_names_only_metrics_that_twctl_has() -> None:
    """They are in a scrape, or recorded by the rules."""
    made = registry(BlamedTable())
    ProcessCollector(registry=made)
    expressions = [expression for _, expression in panel_expressions({})]
    named = set().union(*map(metrics_in, expressions))
    assert "process_resident_memory_bytes" in named
    assert set() == named - families_of(generate_latest(made).decode())
    recorded = {rule["record"] for rule in rules(RULES)}
    assert set() == set(re.findall(r"\w+:\w+:\w+", " ".join(expressions))) - recorded
