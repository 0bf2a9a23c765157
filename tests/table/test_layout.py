"""Sizes that follow from the capacities, and the files they are read from."""

from pathlib import Path

import pytest

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.layout import INDEX_BYTES, LINE_BYTES, Layout, possible_cpus
from twctl.table.shared import bpf_folder


@pytest.mark.parametrize(("text", "expected"), [("0\n", 1), ("0-1\n", 2), ("0-3,8-11\n", 12), ("0,2\n", 3)])
def test_cpus_are_counted_up_to_the_highest_number(tmp_path: Path, text: str, expected: int) -> None:
    """Also where numbers in between are missing."""
    (tmp_path / "devices/system/cpu").mkdir(parents=True)
    (tmp_path / "devices/system/cpu/possible").write_text(text)
    assert expected == possible_cpus(tmp_path)


@pytest.mark.parametrize("capacity", [256, 1021, 65536, 4_194_304])
def test_the_index_has_12_bytes_for_each_session(capacity: int) -> None:
    """Rounded up to whole lines."""
    layout = Layout({family: dict.fromkeys(Class, capacity) for family in FAMILIES})
    for family in FAMILIES:
        need = layout.slots(family) * INDEX_BYTES
        assert need <= layout.lines(family) * LINE_BYTES < need + LINE_BYTES


def test_the_c_code_gets_each_family_s_sizes() -> None:
    """By the names that it uses."""
    layout = Layout({"ipv4": dict.fromkeys(Class, 1021), "ipv6": dict.fromkeys(Class, 256)})
    defines = layout.defines()
    assert (3063, 575, 768, 144) == tuple(
        defines[name] for name in ("SLOTS_IPV4", "LINES_IPV4", "SLOTS_IPV6", "LINES_IPV6")
    )


def test_the_c_sources_are_found() -> None:
    """Beside the package in a checkout, inside it when installed."""
    assert (bpf_folder() / "vestige.h").is_file()
