"""Runs in the guest: the tests marked `vm` for each mode and probe that `twctl check` allows (see tests/vm/run).

What is found is told on lines of its own, as it is found, so that a time limit or a dying kernel takes nothing back.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.load.daemon import twctl
from tests.vm import MODES, PROBES, SIGN

FILES = {
    "observe": ("kernel/test_observe.py", "kernel/test_blame.py", "kernel/test_clock.py"),
    "truncate": ("kernel/test_truncate.py",),
    "vestigial": (
        "kernel/test_vestigial.py",
        "kernel/test_orphans.py",
        "kernel/test_rights.py",
        "conformance/test_adversary.py",
        "conformance/test_vrf.py",
    ),
}
NEEDED = ("root", "BTF", "bpffs", "sock_diag")  # lines of `twctl check` without which nothing works


def tell(mode: str, probe: str, result: str, detail: str) -> None:
    """Print one fact for the table: passed or failed with the test's name, refused with the reason."""
    os.write(1, f"\n{SIGN}{json.dumps([mode, probe, result, detail])}\n".encode())


def refusals() -> dict[str, str]:
    """Modes and probes that this kernel refuses, with the reason."""
    done = twctl("check", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if not lines:
        return dict.fromkeys(PROBES, f"twctl check says nothing: {done.stderr.strip().splitlines()[-1:]}")
    bad = {line["what"]: line["reason"] for line in lines if line["verdict"] != "ok"}
    nothing = next((bad[what] for what in NEEDED if what in bad), None)
    return bad if nothing is None else dict.fromkeys(PROBES, nothing)


class Cells:
    """A plugin for pytest: leaves only what is chosen for a probe, tells how it went."""

    def __init__(self, probe: str) -> None:
        self._probe = probe

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep what is marked, for this probe."""
        kept = [item for item in items if self._chosen(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def _chosen(self, item: pytest.Item) -> bool:
        mark = item.get_closest_marker("vm")
        if mark is None or self._probe not in (mark.args or PROBES):
            return False
        # One that has no probe, as it is of the table or the guard alone, names in its mark with which it runs.
        parameters: dict[str, object] = item.callspec.params if hasattr(item, "callspec") else {}
        return self._probe == parameters.get("probe", self._probe)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Report a test. One that is skipped counts as failed, because it was chosen to run."""
        if report.when == "call" or report.outcome != "passed":
            if report.failed:
                os.write(1, f"\n{report.longreprtext}".encode())  # pytest prints it at the end, which may not come
            file = Path(report.location[0])
            mode = next(mode for mode, files in FILES.items() if f"{file.parent.name}/{file.name}" in files)
            tell(mode, self._probe, "passed" if report.outcome == "passed" else "failed", report.nodeid)


def main() -> int:
    """Run the tests of one probe after the other: at the same time would be no faster in an emulated machine."""
    refused = refusals()
    os.environ["TWCTL_TEST_FENTRY"] = "1"  # asked already; also longer time limits
    statuses = []
    for probe in PROBES:
        reasons = {mode: refused.get(probe) or refused.get(mode) for mode in MODES}
        for mode, reason in reasons.items():
            if reason:
                tell(mode, probe, "refused", reason)
        if files := [f"tests/{file}" for mode, reason in reasons.items() if not reason for file in FILES[mode]]:
            options = ("-q", "--tb=short", "-p", "no:cacheprovider", "--durations=0", "--durations-min=5")
            statuses.append(int(pytest.main([*options, *files], plugins=[Cells(probe)])))
    return max(statuses, default=0)


if __name__ == "__main__":
    sys.exit(main())
