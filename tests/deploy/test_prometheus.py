"""Rules and alerts: promtool takes them, each alert fires when it should, and no name in them is made up."""

import re
import subprocess
import tomllib

import pytest
import yaml
from prometheus_client import ProcessCollector, generate_latest

from tests import ROOT
from tests.daemon.test_metrics import BlamedTable, registry
from tests.docs.pages import anchors
from tests.load.monitoring import ALERTS, RULES, families_of, metrics_in, program, rule_expressions, rules

UNIT_TESTS = ROOT / "tests/prometheus/alerts.yml"


@pytest.mark.parametrize("words", [("check", "rules", str(RULES), str(ALERTS)), ("test", "rules", str(UNIT_TESTS))])
def test_promtool_has_no_finding(words: tuple[str, ...]) -> None:
    """The rules are valid, and do what their unit tests say."""
    done = subprocess.run([program("promtool"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test_in_which_it_fires() -> None:
    """Its name stands in an expected sample."""
    tests = yaml.safe_load(UNIT_TESTS.read_text())["tests"]
    cases = [case for test in tests for case in test["promql_expr_test"] if "firing" in case["expr"]]
    fired = " ".join(sample["labels"] for case in cases for sample in case["exp_samples"])
    assert [] == [rule["alert"] for rule in rules(ALERTS) if f'"{rule["alert"]}"' not in fired]


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    """A severity, a line that names the host, and a paragraph."""
    for rule in rules(ALERTS):
        assert rule["labels"]["severity"] in {"critical", "warning"}
        summary, description = rule["annotations"]["summary"], rule["annotations"]["description"]
        assert "$labels.instance" in summary or rule["alert"] == "TwctlAbsent"
        assert len(description.split()) > 30, rule["alert"]


def test_every_alert_leads_to_a_section_of_the_docs() -> None:
    """Where the package says that the docs are; the section is there."""
    documentation = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Documentation"]
    base = documentation.removesuffix("README.md")
    for rule in rules(ALERTS):
        page, _, section = rule["annotations"]["runbook_url"].removeprefix(base).partition("#")
        assert section in anchors(ROOT / "docs" / page), rule["alert"]


def test_an_hour_of_ordinary_load_has_every_series_that_an_alert_asks_for() -> None:
    """Else one might not fire for want of data."""
    ordinary = yaml.safe_load(UNIT_TESTS.read_text())["tests"][0]
    named = set().union(*map(metrics_in, rule_expressions().values()))
    assert set() == named - {re.match(r"\w+", row["series"])[0] for row in ordinary["input_series"]}  # type: ignore[index]


def test_the_rules_name_only_metrics_that_twctl_has() -> None:
    """Recorded ones are recorded, the others are in a scrape."""
    made = registry(BlamedTable())
    ProcessCollector(registry=made)
    known = families_of(generate_latest(made).decode())
    named = set().union(*(metrics_in(expression) for expression in rule_expressions().values()))
    assert "twctl_guard_reattached_total" in named
    assert set() == named - known
    recorded = {rule["record"] for rule in rules(RULES)}
    assert set() == set(re.findall(r"\w+:\w+:\w+", " ".join(rule_expressions().values()))) - recorded
