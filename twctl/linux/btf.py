"""Field offsets of the running kernel's structures, from its BTF, through libbpf's btf__ functions."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from twctl.errors import TwctlError
from twctl.linux.libbpf import libbpf

VMLINUX = Path("/sys/kernel/btf/vmlinux")

# linux/btf.h, enum of BTF_KIND_*
_STRUCT, _UNION, _FUNC = 4, 5, 12
_KIND_FLAG = 1 << 31


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """Where a field lies: byte offset in its structure; of a bit field also the bit in that byte, and its width."""

    offset: int
    bit: int = 0
    bits: int = 0


class _Type(ctypes.Structure):
    _fields_ = (("name_off", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size_or_type", ctypes.c_uint32))


class _Member(ctypes.Structure):
    _fields_ = (("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32))


class Btf:
    """The type information of one kernel, or of a module that refers to the types of `base`.

    :raises TwctlError: if `path` is missing or cannot be read.
    """

    def __init__(self, path: Path = VMLINUX, base: Btf | None = None) -> None:
        if not path.exists():
            raise TwctlError(
                f"this kernel has no type information at {path}", "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
            )
        self.handle: int | None = libbpf().btf__parse_split(str(path).encode(), base.handle if base else None)
        if not self.handle:
            raise TwctlError(
                f"cannot read the type information at {path}",
                "run as root, on a kernel built with CONFIG_DEBUG_INFO_BTF=y",
            )

    def close(self) -> None:
        """Give the memory back (about 10 MB)."""
        libbpf().btf__free(self.handle)
        self.handle = None

    def field(self, path: str) -> Field | None:
        """Find `struct.member[.member...]`, also inside anonymous structures and unions; None if there is no such."""
        struct, *members = path.split(".")
        type_id = libbpf().btf__find_by_name_kind(self.handle, struct.encode(), _STRUCT)
        at, bits = 0, 0
        for name in members:
            found = self._member(type_id, name) if type_id > 0 else None
            if found is None:
                return None
            offset, bits, type_id = found
            at += offset
        return Field(at // 8, at % 8 if bits else 0, bits)

    def arguments(self, function: str) -> int | None:
        """How many arguments a kernel function takes; None if the kernel has no such function (or inlined it)."""
        type_id = libbpf().btf__find_by_name_kind(self.handle, function.encode(), _FUNC)
        return self._type(self._type(type_id).size_or_type).info & 0xFFFF if type_id > 0 else None

    def _type(self, type_id: int) -> _Type:
        return _Type.from_address(libbpf().btf__type_by_id(self.handle, type_id))

    def _name(self, offset: int) -> str:
        return (libbpf().btf__name_by_offset(self.handle, offset) or b"").decode()

    def _members(self, type_id: int) -> Iterator[tuple[str, int, int, int]]:
        """Yield name, bit offset, width (0: not a bit field) and type of each member."""
        kind = self._type(type_id)
        base = ctypes.addressof(kind) + ctypes.sizeof(_Type)
        for i in range(kind.info & 0xFFFF):
            member = _Member.from_address(base + i * ctypes.sizeof(_Member))
            packed = kind.info & _KIND_FLAG  # then the offset's upper byte is the width
            offset, width = (member.offset & 0xFFFFFF, member.offset >> 24) if packed else (member.offset, 0)
            yield self._name(member.name_off), offset, width, member.type

    def _member(self, type_id: int, name: str) -> tuple[int, int, int] | None:
        """Return bit offset, width and type of a member, which may lie in an anonymous member."""
        type_id = libbpf().btf__resolve_type(self.handle, type_id)
        if self._type(type_id).info >> 24 & 0x1F not in (_STRUCT, _UNION):
            return None
        for member, offset, width, member_type in self._members(type_id):
            if member == name:
                return offset, width, member_type
            if not member and (inner := self._member(member_type, name)):
                return offset + inner[0], inner[1], inner[2]
        return None
