"""Fields of this kernel's structures, against what is known of every kernel."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from twctl.errors import TwctlError
from twctl.linux.btf import VMLINUX, Btf, Field

needs_btf = pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no type information")


@pytest.fixture
def types() -> Iterator[Btf]:
    """The running kernel's."""
    with contextlib.closing(Btf()) as made:
        yield made


@needs_btf
def test_a_field_is_found_in_nested_and_unnamed_members(types: Btf) -> None:
    """Struct sock begins with its sock_common, whose two addresses share a union without a name."""
    assert Field(0) == types.field("sock.__sk_common")
    assert types.field("sock.__sk_common.skc_family") == types.field("sock_common.skc_family")
    remote, local = types.field("sock_common.skc_daddr"), types.field("sock_common.skc_rcv_saddr")
    assert remote
    assert Field(remote.offset + 4) == local


@needs_btf
def test_a_bit_field_has_a_bit_and_a_width(types: Btf) -> None:
    """tcp_sock.rx_opt.rcv_wscale has four bits."""
    scale = types.field("tcp_sock.rx_opt.rcv_wscale")
    assert scale
    assert (4, True) == (scale.bits, scale.bit + scale.bits <= 8)


@needs_btf
@pytest.mark.parametrize("path", ["sock.nowhere", "nowhere.sk_family", "sock.sk_protocol.nowhere"])
def test_what_this_kernel_does_not_have_is_none(types: Btf, path: str) -> None:
    """No such member, no such structure, or a number that has no members."""
    assert types.field(path) is None


@needs_btf
def test_functions_have_a_number_of_arguments(types: Btf) -> None:
    """A function that is not there has none."""
    assert types.arguments("tcp_v4_connect") == 3
    assert types.arguments("twctl_has_no_function_in_the_kernel") is None


@pytest.mark.parametrize("text", [None, "no type information"])
def test_a_kernel_without_type_information_is_an_error_with_a_hint(tmp_path: Path, text: str | None) -> None:
    """No file, or one that is something else."""
    if text:
        (tmp_path / "vmlinux").write_text(text)
    with pytest.raises(TwctlError, match="type information") as refused:
        Btf(tmp_path / "vmlinux")
    assert "CONFIG_DEBUG_INFO_BTF" in refused.value.hint
