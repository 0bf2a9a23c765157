"""What the pages say of options, keys, metrics and alerts is what the code has."""

import re

import pytest
from typer.testing import CliRunner

from deploy.documents import commands
from tests import ROOT
from tests.daemon.test_metrics import BlamedTable, registry
from tests.docs.generated import generated
from tests.docs.pages import blocks
from tests.load.monitoring import ALERTS, rules
from twctl.commands.cli import app
from twctl.linux.sysctl import NAMES as SYSCTLS
from twctl.table.counters import ACTIONS, CLOSES, DROPPED, Reason

METRICS = (ROOT / "docs/metrics.md").read_text()
RENEW = "run `.venv/bin/python -m tests.docs.generated --write`"


def rows(text: str) -> dict[str, list[str]]:
    """Cells of each row of the page's tables by what the first names in backquotes."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if re.match(r"\| `", line):
            first, *others = [cell.strip() for cell in line.strip("|").split(" | ")]
            found |= dict.fromkeys(re.findall(r"`(\w+)`", first), others)
    return found


def test_options_and_keys_are_those_of_the_program() -> None:
    """Each block is what the command line and the template say now."""
    made = generated()
    shown = {name: text for _, name, text in blocks("code")}
    assert made == shown, RENEW


def test_every_command_has_a_heading_and_an_option_list() -> None:
    """And typer's own help has no option that the page lacks."""
    page = (ROOT / "docs/commands.md").read_text()
    assert sorted(commands()) == sorted(re.findall(r"^## (\w+)$", page, re.MULTILINE))
    shown = {name: text for _, name, text in blocks("code")}
    for command in commands():
        told = CliRunner().invoke(app, [command, "--help"]).stdout
        options = set(re.findall(r"^ +(--[a-z-]+)", told, re.MULTILINE)) - {"--help"}
        assert options == set(re.findall(r"^  (--[a-z-]+)", shown[f"help {command}"], re.MULTILINE)), command


def test_every_metric_has_a_row_and_there_are_no_others() -> None:
    """Names as a scrape has them."""
    ends = {"counter": "_total", "info": "_info"}
    told = [family.name + ends.get(family.type, "") for family in registry(BlamedTable(), blamed=1).collect()]
    assert sorted(told) == sorted(name for name in rows(METRICS) if name.startswith("twctl_"))


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("twctl_time_wait_ended_total", [reason.name.lower() for reason in Reason]),
        ("twctl_closed_without_time_wait_total", list(CLOSES)),
        ("twctl_guard_segments_total", list(ACTIONS)),
    ],
)
def test_every_value_of_a_label_is_named(metric: str, values: list[str]) -> None:
    """In the metric's row."""
    text = " ".join(rows(METRICS)[metric])
    assert [] == [value for value in values if not re.search(rf"\b{value}\b", text)]


def test_every_kind_of_loss_is_explained() -> None:
    """Those of the table, and the one of fentry."""
    lost = re.search(r"### What is lost\n(.*?)\n### ", METRICS, re.DOTALL)
    assert lost
    assert {*DROPPED, "nested"} == set(re.findall(r"^\| ([a-z]+) \|", lost[1], re.MULTILINE)) - {"reason"}


def test_every_alert_has_a_row_with_its_severity() -> None:
    """And no row is of an alert that is not there."""
    written = re.findall(r"^\| `(Twctl\w+)`( \(critical\))? \|", METRICS, re.MULTILINE)
    expected = {rule["alert"]: rule["labels"]["severity"] for rule in rules(ALERTS)}
    assert expected == {name: "critical" if critical else "warning" for name, critical in written}


def test_every_sysctl_is_explained() -> None:
    """That the configuration may set."""
    text = (ROOT / "docs/configuration.md").read_text().partition("## Sysctls")[2]
    assert list(SYSCTLS) == list(rows(text))


def test_messages_of_a_refused_start_are_real() -> None:
    """Each stands in the code, up to where something is filled in."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    table = re.search(r"\| message \| what to do \|\n(.*?)\n\n", page, re.DOTALL)
    assert table
    code = " ".join(file.read_text() for file in (ROOT / "twctl").rglob("*.py"))
    for message in rows_of(table[1]):
        for part in re.split(r"\.\.\.|/sys/\S+", message):
            assert part.strip(" :") in code, message


def rows_of(table: str) -> list[str]:
    """First cells, without their backquotes."""
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
