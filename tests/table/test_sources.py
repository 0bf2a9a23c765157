"""The text of the C sources, and what tells one version of them from another."""

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.table.layout import Layout, possible_cpus
from twctl.table.sources import compile_flags, guard_identity, source, table_identity


def test_the_identity_changes_with_sizes_and_probe_and_nothing_else() -> None:
    """What cannot be taken over has another identity."""
    one = Layout({"ipv4": dict.fromkeys(Class, 256), "ipv6": dict.fromkeys(Class, 256)})
    other = Layout({"ipv4": dict.fromkeys(Class, 257), "ipv6": dict.fromkeys(Class, 256)})
    ways = [(one, "auto", True), (other, "auto", True), (one, "fentry", True), (one, "auto", False)]
    found = [table_identity(layout, probe, searches=searches) for layout, probe, searches in (*ways, ways[0])]
    assert found[0] == found[-1]
    assert len({*found}) == len(ways)


def test_the_source_is_one_text_with_each_header_once() -> None:
    """No header of ours stays an include, for bcc rewrites map accesses only in the text it is given."""
    text = source("observe.c")
    assert '#include "' not in text
    assert text.count("struct vestige4 {") == 1
    assert possible_cpus() >= 1


def test_numbers_that_c_is_given_are_macros() -> None:
    """Sizes, places of the kernel's fields, and classes; times are of 64 bits."""
    layout = Layout({family: dict.fromkeys(Class, 256) for family in FAMILIES})
    flags = compile_flags(layout, {"OFFSET_sock_sk_err": 8}, late=5, seed=7)
    wanted = {"-DSLOTS_IPV4=768", "-DOFFSET_sock_sk_err=8", "-DCLASS_REMOTE=2", "-DHASH_SEED=7ULL"}
    assert wanted | {"-DLATE_NANOSECONDS=5ULL"} <= set(flags)


def test_a_guard_s_identity_is_never_0() -> None:
    """0 is that of no guard."""
    assert guard_identity() % 2 == 1
    assert guard_identity() == guard_identity()
