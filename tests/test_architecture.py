"""The layout of the code: floors of packages, who may import what, sizes of files, and a test for each module."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

# From the ground up: a module imports its own floor and those below.
FLOORS = (
    {"addresses", "classes", "errors"},
    {"linux"},
    {"routes", "config"},
    {"table"},
    {"modes"},
    {"advise"},
    {"daemon"},
    {"commands"},
    {"__main__"},
)
MODULES = sorted(path for path in (ROOT / "twctl").rglob("*.py") if path.name != "__init__.py")
# Library: where it may be imported.
LIBRARIES = {
    "bcc": ("twctl/table/",),
    "prometheus_client": ("twctl/daemon/",),
    "typer": ("twctl/commands/",),
    "rich": ("twctl/commands/",),
    "pyroute2": ("twctl/linux/", "twctl/routes/", "twctl/modes/"),
}
PYTHON_LINES, BPF_LINES = 300, 400
# Declarations alone: there is nothing that could be tested.
WITHOUT_TEST = {"twctl/__main__.py", "twctl/linux/tcp.py", "twctl/modes/enrolled.py"}


def name_of(path: Path) -> str:
    """Path below the root, for messages."""
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor_of(dotted: str) -> int:
    """The floor that a module of ours stands on; the package itself, for its version, is the ground."""
    part = dotted.split(".")[1]
    return next((number for number, floor in enumerate(FLOORS) if part in floor), 0)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_floor_imports_one_above(path: Path) -> None:
    """Which also means that no circle goes through two packages."""
    own = floor_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    above = [each for each in imports(path) if each.split(".")[0] == "twctl" and floor_of(each) > own]
    assert [] == above


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Neither at once nor by way of others."""
    known = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    needs = {
        name: {other for each in imports(path) for other in (each, each.rpartition(".")[0]) if other in known} - {name}
        for name, path in known.items()
    }
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert {} == needs


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_in_its_place_alone(library: str) -> None:
    """Bcc brings LLVM along, prometheus_client and rich cost memory that others do not need."""
    users = [name_of(path) for path in MODULES if any(each.split(".")[0] == library for each in imports(path))]
    assert users
    assert [] == [user for user in users if not user.startswith(LIBRARIES[library])]


def test_bcc_is_imported_by_one_module() -> None:
    """The others must not carry LLVM."""
    assert 1 == sum(any(each.split(".")[0] == "bcc" for each in imports(path)) for path in MODULES)


def test_files_are_short_enough_to_be_read() -> None:
    """Python modules and BPF sources, without what bcc includes."""
    sources = [path for path in (ROOT / "bpf").rglob("*.[ch]") if "include" not in path.parts]
    sizes = {path: len(path.read_text().splitlines()) for path in [*MODULES, *sources]}
    most = {".py": PYTHON_LINES, ".c": BPF_LINES, ".h": BPF_LINES}
    assert {} == {name_of(path): lines for path, lines in sizes.items() if lines > most[path.suffix]}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_module_has_its_test(path: Path) -> None:
    """In the same folder of tests/, or among the kernel tests."""
    if name_of(path) in WITHOUT_TEST:
        assert not [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        return
    below = path.relative_to(ROOT / "twctl")
    places = [ROOT / "tests" / below.parent, ROOT / "tests/kernel"]
    assert [place for place in places if (place / f"test_{path.stem}.py").exists()], f"no test_{path.stem}.py"


def test_nobody_touches_the_table_of_imported_modules() -> None:
    """Imports are what they look like."""
    assert [] == [name_of(path) for path in MODULES if "sys.modules" in path.read_text()]
