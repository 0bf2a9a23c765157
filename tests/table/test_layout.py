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


def test_a_session_of_capacity_takes_48_bytes_with_its_index() -> None:
    """32 of record, 14 of index and 2 of start for IPv4; 80 for IPv6."""
    sessions = dict.fromkeys(Class, 1_048_576)
    layout = Layout({"ipv4": sessions, "ipv6": sessions})
    assert [48, 80] == [round(layout.bytes(family) / layout.slots(family), 3) for family in ("ipv4", "ipv6")]


@pytest.mark.parametrize("capacity", [256, 257, 1021, 65536, 4_194_304])
def test_a_lap_has_at_most_sixteen_blocks_and_rings_do_not_overlap(capacity: int) -> None:
    """The last slot's block is below 16, and each ring begins where the one before ends."""
    layout = Layout({"ipv4": dict.fromkeys(Class, capacity)})
    rings = [layout.ring("ipv4", class_) for class_ in Class]
    assert all((ring.capacity - 1) >> ring.block_shift < 16 for ring in rings)
    assert [0, capacity, 2 * capacity] == [ring.base for ring in rings]
    assert layout.slots("ipv4") < 2**24
