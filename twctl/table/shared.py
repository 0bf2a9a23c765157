"""Numbers and layouts that C and Python share, each with one home: most in the C headers, a few here.

CONSTANTS and STRUCTS come from the text of the headers; GIVEN goes to the C compiler as macros (table/sources.py).
"""

from pathlib import Path

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.cheader import Header

# Headers that tell user space something, each after those that it needs.
HEADERS = ("vestige.h", "observe/messages.h", "guard/actions.h")
GIVEN = {
    **{f"CLASS_{class_.name}": int(class_) for class_ in Class},
    **{f"FAMILY_{family.upper()}": i for i, family in enumerate(FAMILIES)},
    "CLASSES": len(Class),
    "FAMILIES": len(FAMILIES),
}


def bpf_folder() -> Path:
    """Where the C sources lie: in the package when installed from a wheel, else beside it."""
    packaged = Path(__file__).parents[1] / "bpf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "bpf"


def read_headers(folder: Path) -> Header:
    """Everything that the shared headers below a folder define."""
    header = Header(constants=dict(GIVEN))
    for name in HEADERS:
        header.read((folder / name).read_text())
    return header


HEADER = read_headers(bpf_folder())
CONSTANTS, STRUCTS = HEADER.constants, HEADER.structs
