"""The table's code with programs of a test or benchmark beside it, run by the kernel itself (BPF_PROG_TEST_RUN)."""

import ctypes
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.linux import btf, libbpf
from twctl.table import fields
from twctl.table.compiled import MAPS, RECONCILERS
from twctl.table.layout import BLOCKS, Layout, Ring
from twctl.table.maps import META, RING
from twctl.table.shared import bpf_folder
from twctl.table.sources import compile_flags, source

REPEAT = 300_000
SMALL = dict.fromkeys(Class, 256)
SWEPT = 1 << 62  # a tick that never comes: all lines are swept for as long as a test takes
# What bcc would attach to the host becomes a function.
ATTACHED = re.compile(r"(RAW_TRACEPOINT_PROBE|KFUNC_PROBE|KRETFUNC_PROBE)\((\w+)\)")
CONTEXT = {"RAW_TRACEPOINT_PROBE": "struct bpf_raw_tracepoint_args"}


class Programs:
    """One compiled object: the table for `capacity` remote IPv4 sessions, and the programs of this text.

    file: whose functions they may call. sizes: capacities by family and class instead. defines: more for the compiler.
    """

    def __init__(
        self,
        text: str,
        capacity: int,
        file: str = "observe.c",
        *,
        sizes: Mapping[str, Mapping[Class, int]] | None = None,
        defines: Mapping[str, object] | None = None,
    ) -> None:
        import bcc  # noqa: PLC0415 - Debian's, and heavy

        os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
        types = btf.Btf()
        # One class is measured; the others are as small as can be: the maps compared with hold its records alone.
        sizes = sizes or {"ipv4": SMALL | {Class.REMOTE: capacity}, "ipv6": SMALL}
        self.layout = Layout({family: sizes[family] for family in FAMILIES})
        flags = [
            *compile_flags(self.layout, fields.macros(types, fields.REQUIRED + fields.GUARD)),
            f"-DCAPACITY={capacity}",
            *(f"-D{name}={value}" for name, value in (defines or {}).items()),
        ]
        types.close()
        self._bpf: Any = bcc.BPF(text=(ATTACHED.sub(_as_function, source(file)) + text).encode(), cflags=flags)
        self._fds: dict[str, int] = {}
        set_up(self.map, self.layout)

    def map(self, name: str) -> int:
        """Descriptor of a map, which stays the object's."""
        import bcc  # noqa: PLC0415 - Debian's, and heavy

        return int(bcc.lib.bpf_table_fd(self._bpf.module, name.encode()))

    def nanoseconds(self, name: str, repeat: int = REPEAT) -> int:
        """Mean of one run."""
        return int(self._run(name, repeat).duration)

    def result(self, name: str, repeat: int = 1) -> int:
        """What one run returns; of several the last."""
        return int(self._run(name, repeat).retval)

    def _run(self, name: str, repeat: int) -> libbpf.TestRun:
        packet = ctypes.create_string_buffer(64)
        opts = libbpf.TestRun(
            sz=ctypes.sizeof(libbpf.TestRun), data_in=ctypes.addressof(packet), data_size_in=64, repeat=repeat
        )
        result = libbpf.libbpf().bpf_prog_test_run_opts(self._loaded(name, "SCHED_CLS"), ctypes.byref(opts))
        assert result == 0, os.strerror(-result)
        return opts

    def _loaded(self, name: str, kind: str) -> int:
        import bcc  # noqa: PLC0415 - Debian's, and heavy

        if name not in self._fds:
            self._fds[name] = self._bpf.load_func(name.encode(), getattr(bcc.BPF, kind)).fd
        return self._fds[name]

    @contextmanager
    def pinned(self, folder: Path, *more: str) -> Iterator[Path]:
        """Pin maps, and more of them, and the daemon's programs as the loader does, for Table; nothing is attached."""
        pins = {Path("maps", name): self.map(name) for name in (*MAPS, *more)}
        pins |= {Path("programs", name): self._loaded(name, "RAW_TRACEPOINT") for name in RECONCILERS}
        folders = [folder, folder / "maps", folder / "programs"]
        for each in folders:
            each.mkdir(mode=0o700)
        try:
            for name, fd in pins.items():
                libbpf.obj_pin(fd, folder / name)
            yield folder
        finally:
            for name in pins:
                (folder / name).unlink(missing_ok=True)
            for each in reversed(folders):
                each.rmdir()


def _as_function(found: re.Match[str]) -> str:
    return f"int {found[1]}_{found[2]}({CONTEXT.get(found[1], 'u64')} *ctx)"


def set_up(map_of: Callable[[str], int], layout: Layout) -> None:
    """Write what the loader would before the programs run. map_of: descriptors by name."""
    for i, (class_, family) in enumerate((class_, family) for class_ in Class for family in FAMILIES):
        libbpf.map_update(map_of("rings"), i.to_bytes(4, "little"), ring_bytes(layout.ring(family, class_)))
    meta = bytearray(META.size)
    meta[META.slice("swept")] = SWEPT.to_bytes(8, "little")
    libbpf.map_update(map_of("meta"), bytes(4), bytes(meta))


def ring_bytes(ring: Ring) -> bytes:
    """Struct ring, before its first entry."""
    return RING.pack(0, ring.base, ring.capacity, ring.block_shift, *[0] * BLOCKS)


def set_clock(folder: Path) -> None:
    """Let pinned programs have the clock of user space, which reads the table."""
    epoch = libbpf.Program(folder / "programs/epoch")
    for begin in (1, *[0] * 1000):
        epoch.run(begin)
    epoch.close()
