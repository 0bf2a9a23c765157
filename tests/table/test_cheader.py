"""Reading constants and layouts from C headers."""

import ctypes
import struct

import pytest

from twctl.table.cheader import Header

TEXT = """
#define TWO 2ULL /* a comment with { braces } and #define THREE 3 */
#define SHIFTED (1ULL << 40 | 0x0f)
#define EDGES { 1, TWO, 5 }
#define CODE(x) ((x)->y)
#define ALSO_CODE static inline

enum colour { RED, GREEN = 7, BLUE, COLOURS };
enum { ALONE = TWO + 1 };

struct inner {
	u8 a;	// another comment
	u32 b;
};

struct outer {
	u16 first, second;
	u64 wide;
	struct inner pair[TWO];
	union {
		u32 scope;
		u8 bytes[TWO * 3];
	};
	u8 name[sizeof(struct inner) + 1];
};
"""
HEADER = Header().read(TEXT)


class Inner(ctypes.Structure):
    """As the platform's compiler lays it out."""

    _fields_ = (("a", ctypes.c_uint8), ("b", ctypes.c_uint32))


class Union(ctypes.Union):
    """Likewise."""

    _fields_ = (("scope", ctypes.c_uint32), ("bytes", ctypes.c_uint8 * 6))


class Outer(ctypes.Structure):
    """Likewise."""

    _anonymous_ = ("either",)
    _fields_ = (
        ("first", ctypes.c_uint16),
        ("second", ctypes.c_uint16),
        ("wide", ctypes.c_uint64),
        ("pair", Inner * 2),
        ("either", Union),
        ("name", ctypes.c_uint8 * 9),
    )


def test_constants_are_expressions_of_integers() -> None:
    """Code is passed over."""
    assert {"TWO": 2, "SHIFTED": 1 << 40 | 15, "RED": 0, "GREEN": 7, "BLUE": 8, "COLOURS": 9, "ALONE": 3} == (
        HEADER.constants
    )
    assert {"EDGES": (1, 2, 5)} == HEADER.lists


def test_members_of_an_enumeration_are_words() -> None:
    """Those with a prefix, without it."""
    header = Header().read("enum mode { MODE_OBSERVE, MODE_TRUNCATE, MODES };")
    assert ("observe", "truncate") == header.labels("mode", "MODE_")


@pytest.mark.parametrize(("name", "kind"), [("inner", Inner), ("outer", Outer)])
def test_layouts_are_the_platforms(name: str, kind: type[ctypes.Structure]) -> None:
    """Offsets, padding, and the end of the structure."""
    found = HEADER.structs[name]
    assert (ctypes.sizeof(kind), ctypes.alignment(kind)) == (found.size, found.alignment)
    for each, field in found.fields.items():
        assert getattr(kind, each).offset == field.offset, each
        assert getattr(kind, each).size == field.size, each


def test_a_packer_takes_the_members_it_is_asked_for() -> None:
    """And skips the others, up to the end of the structure."""
    found = HEADER.structs["outer"]
    packer = found.packer(("second", "pair", "name"), raw=("name",))
    assert found.size == packer.size
    raw = packer.pack(7, b"p" * 16, b"twctl")
    assert (7, b"p" * 16, b"twctl\0\0\0\0") == packer.unpack(raw)
    assert struct.pack("=H", 7) == raw[found.slice("second")]


def test_what_no_header_defines_is_an_error() -> None:
    """In a size, where a wrong layout would follow."""
    with pytest.raises(KeyError):
        Header().read("struct s {\n\tu8 a[UNKNOWN];\n};")


def test_members_in_another_order_than_in_c_are_an_error() -> None:
    """A value never gets another member's name."""
    with pytest.raises(ValueError, match=r"outer\.first"):
        HEADER.structs["outer"].packer(("second", "first"))
