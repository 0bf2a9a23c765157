"""What is deployed for Prometheus and Grafana, as data: expressions, and the names of metrics in them."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import ROOT

RULES = ROOT / "deploy/prometheus/rules.yml"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/twctl.json"


def program(name: str) -> str:
    """The path of a program that `deploy/setup --test` unpacks, or that is installed. A forced run does not skip."""
    unpacked = ROOT / "build/programs" / name
    found = str(unpacked) if unpacked.exists() else shutil.which(name)
    if found:
        return found
    reason = f"{name} is not here: deploy/setup --test"
    if os.environ.get("TWCTL_TEST_KERNEL"):
        pytest.fail(reason)
    pytest.skip(reason)


def rules(file: Path) -> list[dict[str, Any]]:
    """Every rule of a file."""
    return [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def rule_expressions() -> dict[str, str]:
    """What the rules compute, by the name of the record or alert."""
    return {rule.get("record") or rule["alert"]: rule["expr"] for file in (RULES, ALERTS) for rule in rules(file)}


def panels() -> list[dict[str, Any]]:
    """Every panel of the dashboard that shows something."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def panel_expressions(variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What the panels show, with the title, and variables replaced as Grafana does."""
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in variables.items():
                expression = expression.replace(f"${name}", value)
            yield panel["title"], expression


def selectors_in(expression: str) -> set[str]:
    """Every series that an expression asks for, without its range: without them it has no result."""
    words = re.sub(r"\b(by|on)\s*\([^)]*\)", "", expression)
    return set(re.findall(r"(?<![:\w\"{])(?:up|(?:twctl|process)_\w+|\w+:\w+:\w+)\b(?:\{[^}]*\})?(?![:\w(])", words))


def metrics_in(expression: str) -> set[str]:
    """Names of metrics in an expression, without recorded names (with a colon) and labels (in braces or `by ()`)."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\b(by|on)\s*\([^)]*\)', "", expression)
    return set(re.findall(r"(?<![:\w])(?:twctl|process)_\w+(?![:\w])", bare))


def families_of(metrics: str) -> set[str]:
    """Names of all series of a scrape, those of histograms in full."""
    named = re.findall(r"^# TYPE (\S+) (\S+)$", metrics, re.MULTILINE)
    ends = {"histogram": ("_bucket", "_count", "_sum")}
    return {f"{name}{end}" for name, kind in named for end in ends.get(kind, ("",))}
