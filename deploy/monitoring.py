"""Writes what deploy/kubernetes/monitoring has from deploy/prometheus and deploy/grafana, as objects of Kubernetes.

Usage: python deploy/monitoring.py

A kustomization reads no file outside of its own folder, so these are copies; a test compares.
"""

import textwrap
from pathlib import Path

DEPLOY = Path(__file__).parent
MADE = "# Written by deploy/monitoring.py: do not edit.\n"
RULE = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: twctl
  labels:
    app.kubernetes.io/name: twctl
spec:
  groups:
    - name: twctl
      rules:
"""
# The label is that which Grafana's sidecar looks for by default.
DASHBOARD = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: twctl-dashboard
  labels:
    app.kubernetes.io/name: twctl
    grafana_dashboard: "1"
data:
  twctl.json: |
"""


def files() -> dict[Path, str]:
    """Each with what is to stand in it."""
    folder = DEPLOY / "kubernetes/monitoring"
    # Records first: a group's rules are evaluated in their order. A name of a group may not come twice.
    rules = "\n".join(_rules(DEPLOY / "prometheus" / name) for name in ("rules.yml", "alerts.yml"))
    dashboard = (DEPLOY / "grafana/twctl.json").read_text()
    return {
        folder / "prometheusrule.yaml": MADE + RULE + textwrap.indent(rules, "  "),
        folder / "dashboard.yaml": MADE + DASHBOARD + textwrap.indent(dashboard, " " * 4),
    }


def _rules(file: Path) -> str:
    """All rules of a file, as they stand there."""
    return file.read_text().partition("    rules:\n")[2]


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
