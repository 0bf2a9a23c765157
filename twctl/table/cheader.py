"""Constants, enumerations and structures of a C header of ours: the one place where C and Python take layouts from.

It reads the plain C that bpf/vestige.h and its like keep to: #define of an integer expression or a list, enum, struct
of u8 to u64 with arrays, nested structures and unions, in natural alignment and the machine's byte order. A library for
that, dissect.cstruct, takes each command 80 ms and 7 MB to import; this takes 4 ms.
"""

import ast
import operator
import re
import struct
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field

_SCALARS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "s32": "i", "char": "c"}
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.LShift: operator.lshift,
    ast.BitOr: operator.or_,
}
_DEFINITION = re.compile(
    r"^#define[ \t]+(?P<define>\w+)[ \t]+(?P<value>[^\n]+)$"
    r"|^enum(?:[ \t]+(?P<enum>\w+))?\s*\{(?P<members>[^}]*)\}"
    r"|^struct[ \t]+(?P<struct>\w+)\s*\{(?P<body>.*?)^\};",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Field:
    """A member: where it lies (bytes), its size, the format of one element (struct module), and its dimensions."""

    offset: int
    size: int
    format: str
    dimensions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Struct:
    """A structure: its size and alignment (bytes), and its members by name, in order."""

    name: str
    size: int
    alignment: int
    fields: dict[str, Field]

    def slice(self, name: str) -> slice:
        """The bytes of a member within those of the structure."""
        member = self.fields[name]
        return slice(member.offset, member.offset + member.size)

    def packer(self, names: Iterable[str] | None = None, raw: Container[str] = ()) -> struct.Struct:
        """What packs and unpacks these members (None: all), up to the end of the structure, and skips the others.

        raw: members that are bytes: addresses, names, other structures. Of an array each element is a value. Raises
        ValueError where C has the members in another order: values would get other names.
        """
        text, at = "=", 0
        for name in self.fields if names is None else names:
            member = self.fields[name]
            if member.offset < at:
                raise ValueError(f"{self.name}.{name} stands elsewhere in C")
            text += f"{member.offset - at}x"
            size = struct.calcsize(f"={member.format}") if member.format else 0
            text += f"{member.size}s" if name in raw or not size else member.format * (member.size // size)
            at = member.offset + member.size
        return struct.Struct(text + (f"{self.size - at}x" if self.size > at else ""))


@dataclass(slots=True)
class Header:
    """What some headers define. constants: int by name; lists: tuples; enums: members by the enumeration's name."""

    constants: dict[str, int] = field(default_factory=dict)
    lists: dict[str, tuple[int, ...]] = field(default_factory=dict)
    enums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    structs: dict[str, Struct] = field(default_factory=dict)

    def labels(self, enum: str, prefix: str) -> tuple[str, ...]:
        """Members of an enumeration that have this prefix, without it and in lower case: words of metrics."""
        members = [name for name in self.enums[enum] if name.startswith(prefix)]
        return tuple(name.removeprefix(prefix).lower() for name in members)

    def read(self, text: str) -> "Header":
        """Add what a header defines; returns itself. Raises KeyError where it names what no header has defined."""
        plain = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
        for match in _DEFINITION.finditer(plain):
            if match["define"]:
                self._define(match["define"], match["value"].strip())
            elif match["struct"]:
                self._struct(match["struct"], match["body"])
            else:
                self._enum(match["enum"] or "", match["members"])
        return self

    def _define(self, name: str, value: str) -> None:
        try:
            if value.startswith("{"):
                self.lists[name] = tuple(self.value_of(each) for each in value.strip("{} ").split(","))
            else:
                self.constants[name] = self.value_of(value)
        except (KeyError, SyntaxError, TypeError):  # code, not a number: not for us
            return

    def _enum(self, enum: str, members: str) -> None:
        following, names = 0, []
        for member in filter(None, (each.strip() for each in members.split(","))):
            name, _, value = (part.strip() for part in member.partition("="))
            following = self.value_of(value) if value else following
            self.constants[name] = following
            following += 1
            names.append(name)
        self.enums[enum] = tuple(names)

    def value_of(self, text: str) -> int:
        """The value of an integer expression. Raises KeyError for an unknown name, TypeError for other code."""
        text = re.sub(r"\b(0x[0-9a-fA-F]+|\d+)[uUlL]+\b", r"\1", text)
        text = re.sub(r"sizeof\(struct (\w+)\)", lambda match: str(self.structs[match[1]].size), text)
        return self._evaluate(ast.parse(text.strip().replace("/", "//"), mode="eval").body)

    def _evaluate(self, node: ast.expr) -> int:
        match node:
            case ast.Constant(int(value)):
                return value
            case ast.Name(name):
                return self.constants[name]
            case ast.UnaryOp(ast.USub(), operand):
                return -self._evaluate(operand)
            case ast.BinOp(left, operation, right):
                return _OPERATORS[type(operation)](self._evaluate(left), self._evaluate(right))
        raise TypeError(ast.dump(node))

    def _struct(self, name: str, body: str) -> None:
        fields, size, alignment = self._members(body)
        self.structs[name] = Struct(name, -(-size // alignment) * alignment, alignment, fields)

    def _members(self, body: str) -> tuple[dict[str, Field], int, int]:
        """Members from offset 0 on, where the last one ends, and the alignment of all."""
        fields: dict[str, Field] = {}
        end, alignment = 0, 1
        for union, kind, names in re.findall(r"union\s*\{(.*?)\}\s*;|((?:struct )?\w+)\s+([^;]+);", body, re.DOTALL):
            for each, size, align in self._union(union) if union else self._declared(kind, names):
                begin = -(-end // align) * align
                fields |= {
                    name: Field(begin + member.offset, member.size, member.format, member.dimensions)
                    for name, member in each.items()
                }
                end, alignment = begin + size, max(alignment, align)
        return fields, end, alignment

    def _union(self, body: str) -> Iterable[tuple[dict[str, Field], int, int]]:
        """All members of a union begin at the same place."""
        members = [one for kind, names in re.findall(r"(\w+)\s+([^;]+);", body) for one in self._declared(kind, names)]
        together = {name: member for each, _, _ in members for name, member in each.items()}
        align = max(align for _, _, align in members)
        yield together, -(-max(size for _, size, _ in members) // align) * align, align

    def _declared(self, kind: str, names: str) -> Iterable[tuple[dict[str, Field], int, int]]:
        inner = self.structs[kind.removeprefix("struct ")] if kind.startswith("struct ") else None
        letter = "" if inner else _SCALARS[kind]
        one, align = (inner.size, inner.alignment) if inner else (struct.calcsize(f"={letter}"),) * 2
        for name in names.split(","):
            dimensions = tuple(self.value_of(each) for each in re.findall(r"\[(.*?)\]", name))
            size = one
            for dimension in dimensions:
                size *= dimension
            yield {name.partition("[")[0].strip(): Field(0, size, letter, dimensions)}, size, align
