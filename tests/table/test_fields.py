"""Which fields of the kernel the C code is told of, as macros."""

from pathlib import Path
from typing import cast

import pytest

from twctl.errors import TwctlError
from twctl.linux.btf import Btf, Field
from twctl.table import fields


class FakeBtf:
    """A kernel that has every field at 8, but those that are missing, and no functions."""

    def __init__(self, *missing: str) -> None:
        self.missing = missing

    def field(self, path: str) -> Field | None:
        """A bit field where the kernel has one."""
        if path in self.missing:
            return None
        return Field(8, 4, 4) if path.endswith("rcv_wscale") else Field(8)

    def arguments(self, _function: str) -> int | None:
        """None is there."""
        return None


def macros(*missing: str) -> dict[str, int]:
    """Of such a kernel."""
    return dict(fields.macros(cast("Btf", FakeBtf(*missing))))


def test_each_field_is_a_macro_and_bit_fields_are_three() -> None:
    """OFFSET, and BIT and BITS beside it."""
    found = macros()
    assert found["OFFSET_tcp_sock_snd_nxt"] == 8
    assert (8, 4, 4) == tuple(found[f"{what}_tcp_sock_rx_opt_rcv_wscale"] for what in ("OFFSET", "BIT", "BITS"))
    assert not [name for name in found if name.startswith("ARGUMENTS")]


def test_a_field_that_is_needed_and_missing_is_named() -> None:
    """As the kernel calls it."""
    with pytest.raises(TwctlError, match=r"no field tcp_sock\.snd_nxt"):
        macros("tcp_sock.snd_nxt")


def test_fields_of_newer_kernels_may_be_missing() -> None:
    """They have no macro then."""
    assert macros().keys() - macros(*fields.OPTIONAL).keys() == {
        f"OFFSET_{path.replace('.', '_')}" for path in fields.OPTIONAL
    }


@pytest.mark.parametrize("missing", fields.CGROUP)
def test_a_socket_s_cgroup_takes_all_of_its_fields(missing: str) -> None:
    """Without one of them the C code knows of none."""
    assert not {f"OFFSET_{path.replace('.', '_')}" for path in fields.CGROUP} & macros(missing).keys()


def test_a_field_of_a_module_is_looked_for_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the kernel's types as its base, where it is loaded; else it is left out."""
    asked = []

    class FakeModule(FakeBtf):
        def __init__(self, path: Path, base: object) -> None:
            super().__init__()
            asked.append((path.name, base))

        def close(self) -> None:
            asked.append(("closed", None))

    monkeypatch.setattr(fields, "VMLINUX", tmp_path / "vmlinux")
    monkeypatch.setattr(fields, "Btf", FakeModule)
    assert "OFFSET_nf_conn_status" not in macros("nf_conn.status")
    (tmp_path / "nf_conntrack").touch()
    kernel = cast("Btf", FakeBtf("nf_conn.status"))
    assert 8 == fields.macros(kernel)["OFFSET_nf_conn_status"]
    assert [("nf_conntrack", kernel), ("closed", None)] == asked
