"""The C sources: where they lie, their text and flags for the compiler, and what tells one version from another."""

import hashlib
import os
import re
import time
from collections.abc import Mapping

from twctl.linux.btf import VMLINUX
from twctl.table.layout import Layout
from twctl.table.shared import GIVEN, bpf_folder

# In place of the identity of a guard: none is loaded, but that of an earlier table stands on some device.
EARLIER_GUARD = 2
# Types of modules that the guard looks into (fields.py), where they are loaded.
MODULES = (VMLINUX.with_name("nf_conntrack"),)
CLOCK_MONOTONIC_COARSE = 6  # its resolution is the length of a jiffy


def source(name: str) -> str:
    """Return a C file with our own headers put in place of their #include lines.

    bcc rewrites map accesses only in the text it is given, not in files which that text includes.
    """
    included: set[str] = set()

    def expand(name: str) -> str:
        if name in included:
            return ""
        included.add(name)
        text = (bpf_folder() / name).read_text()
        lines = re.sub(r'^#include "([\w/]+\.h)"$', lambda match: expand(match[1]), text, flags=re.MULTILINE)
        return f'#line 1 "{name}"\n{lines}\n'

    return expand(name)


def compile_flags(layout: Layout, offsets: Mapping[str, int], late: int = 0, seed: int = 0) -> list[str]:
    """Return what the C code is compiled with; `late` (ns) is added to each life, `seed` begins the tuples' hash."""
    jiffy = round(time.clock_getres(CLOCK_MONOTONIC_COARSE) * 1e9)
    values = (
        GIVEN
        | layout.defines()
        | dict(offsets)
        | {"JIFFY_NANOSECONDS": jiffy, "HZ": round(1e9 / jiffy), "LATE_NANOSECONDS": late}
    )
    return [
        f"-D{name}={value}ULL" if name.endswith("NANOSECONDS") else f"-D{name}={value}"
        for name, value in values.items()
    ] + [
        f"-DHASH_SEED={seed}ULL",
        "-Wno-unused-function",
    ]


def table_identity(layout: Layout, probe: str, *, searches: bool) -> int:
    """64 bits (int) that differ where a pinned table cannot be taken over: sources, sizes, kernel, probe.

    searches: whether connect()'s search for a port is to be measured.
    """
    return _identity(source("observe.c"), sorted(layout.defines().items()), str(probe), searches)


def guard_identity() -> int:
    """64 bits, odd, that differ where a loaded guard is another one than ours, or knows nothing of a module's types."""
    return _identity(source("guard.c"), [path.exists() for path in MODULES]) | 1


def _identity(*parts: object) -> int:
    """Hash of these parts and the kernel."""
    what = repr((*parts, os.uname().version, os.uname().release))
    return int.from_bytes(hashlib.blake2b(what.encode(), digest_size=8).digest(), "little")
