"""The table of kernels: what stands in docs/kernels.md, and how tests/vm/run changes it."""

import json
import re
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs import pages
from tests.vm import MODES, PROBES, SIGN
from tests.vm.__main__ import arguments
from tests.vm.kernels import RELEASES, release_of
from tests.vm.machine import Outcome
from tests.vm.rows import Row, minutes_of, parse, rows, table, write, written

PASSED = Row("6.1", "amd64", "6.1.0-50-amd64", "observe", "fentry", "passed 4", "2026-11-27", "30")


def told(*cells: tuple[str, str, str, str]) -> Outcome:
    """A run in which cells.py said this."""
    return Outcome(0, "passed", "".join(f"noise\n{SIGN}{json.dumps(cell)}\n" for cell in cells))


def test_each_kernel_of_the_page_has_a_row_for_each_cell() -> None:
    """With a date and the minutes, and none twice; the page holds no failure."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in written():
        assert not row.is_failure
        assert row.minutes.isdigit()
        found.setdefault(row.whose, []).append((row.mode, row.probe))
    assert found
    for cells in found.values():
        assert sorted((mode, probe) for mode in MODES for probe in PROBES) == sorted(cells)


def test_a_row_comes_back_as_it_was_written() -> None:
    """The table is read again before it is changed."""
    assert [PASSED] == parse(table([PASSED]))


def test_a_run_replaces_the_rows_of_its_kernel_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All other rows stay, with their dates; those of the same version on another architecture, too."""
    other = Row("6.1", "arm64", "6.1.0-50-arm64", "observe", "fentry", "refused: no", "2026-01-01", "90")
    page = tmp_path / "kernels.md"
    page.write_text(f"before\n<!-- cells: kernels -->\n{table([PASSED, other])}\n<!-- end -->\nafter\n")
    monkeypatch.setattr(pages, "PAGES", [page])
    fresh = Row("6.1", "amd64", "6.1.0-51-amd64", "observe", "fentry", "passed 5", "2026-12-01", "28")
    assert [page] == write([fresh])
    assert [fresh, other] == written()
    assert page.read_text().startswith("before\n")


def test_a_cell_says_what_its_tests_said() -> None:
    """How many passed, which failed, why it was refused; and that none ran to its end."""
    outcome = told(
        ("observe", "fentry", "passed", "a::b"),
        ("observe", "fentry", "passed", "a::c"),
        ("observe", "tracepoint", "passed", "a::b"),
        ("observe", "tracepoint", "failed", "a::c"),
        ("truncate", "fentry", "refused", "too old"),
    )
    vmlinuz = Path("boot/vmlinuz-6.1.0-50-amd64")
    found = {(row.mode, row.probe): row.result for row in rows("amd64", "6.1", vmlinuz, outcome, 90)}
    assert found["observe", "fentry"] == "passed 2"
    assert found["observe", "tracepoint"] == "failed: c"
    assert found["truncate", "fentry"] == "refused: too old"
    assert found["truncate", "tracepoint"] == "failed: no test ran to its end"


def test_a_kernel_of_your_own_is_called_by_its_release() -> None:
    """The path is no name for a page."""
    row = rows("amd64", "./boot/vmlinuz-5.15.200", Path("/boot/vmlinuz-5.15.200"), told(), 60)[0]
    assert ("5.15.200", "5.15.200") == (row.kernel, row.linux)


def test_a_release_is_known_by_where_the_kernel_lies() -> None:
    """From 7.x on Debian has it in the folder of the modules."""
    assert release_of(Path("/usr/lib/modules/7.3.4-amd64/vmlinuz")) == "7.3.4-amd64"


@pytest.mark.parametrize(
    ("architecture", "kernel", "probe", "failure"),
    [
        ("amd64", "6.1", "fentry", True),
        ("amd64", "5.10", "fentry", False),
        ("amd64", "5.15.200", "tracepoint", False),
        ("arm64", "6.1", "fentry", False),
        ("arm64", "6.1", "tracepoint", True),
    ],
)
def test_a_refusal_is_a_failure_where_it_is_not_expected(
    architecture: str, kernel: str, probe: str, *, failure: bool
) -> None:
    """kernels.py says what a version may refuse; a kernel of your own may refuse anything."""
    row = Row(kernel, architecture, kernel, "observe", probe, "refused: so", "2026-11-27", "1")
    assert failure == row.is_failure


def test_how_long_it_takes_is_known_from_the_rows() -> None:
    """Or is not known."""
    assert {PASSED.whose: 30, ("amd64", "sid"): None} == minutes_of([PASSED.whose, ("amd64", "sid")], [PASSED])


def test_every_kernel_is_of_an_architecture_that_can_be_emulated() -> None:
    """One line adds a kernel."""
    assert {"amd64", "arm64"} == {architecture for architecture, _ in RELEASES}


def test_all_kernels_are_all() -> None:
    """What `tests/run --all-kernels` asks for."""
    (asked,) = re.findall(r"--all-kernels\) (.*) ;;", (ROOT / "tests/run").read_text())
    words = {name: kernels.split() for name, kernels in re.findall(r"(\w+)=\((.*?)\)", asked)}
    wanted = {"amd64": words["kernels"], "arm64": words["arm64"]}
    found = {(each, kernel) for each in wanted for kernel in arguments(["--arch", each, *wanted[each]]).kernels}
    assert RELEASES.keys() == found
