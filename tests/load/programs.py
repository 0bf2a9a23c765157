"""The table's code with programs of a test or benchmark beside it, run by the kernel itself (BPF_PROG_TEST_RUN)."""

import ctypes
import os
from typing import Any

from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.linux import btf, libbpf
from twctl.table import fields
from twctl.table.layout import BLOCKS, Layout, Ring
from twctl.table.maps import RING
from twctl.table.shared import bpf_folder
from twctl.table.sources import compile_flags, source

REPEAT = 300_000


class Programs:
    """One compiled object: the table for `capacity` remote IPv4 sessions, and the programs of this text.

    file: whose functions they may call.
    """

    def __init__(self, text: str, capacity: int, file: str = "observe.c") -> None:
        import bcc  # noqa: PLC0415 - Debian's, and heavy

        os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
        types = btf.Btf()
        # One class is measured; the others are as small as can be: the maps compared with hold its records alone.
        small = dict.fromkeys(Class, 256)
        sizes = {"ipv4": small | {Class.REMOTE: capacity}, "ipv6": small}
        self.layout = Layout({family: sizes[family] for family in FAMILIES})
        flags = [
            *compile_flags(self.layout, fields.macros(types, fields.REQUIRED + fields.GUARD)),
            f"-DCAPACITY={capacity}",
        ]
        types.close()
        # not RAW_TRACEPOINT_PROBE: bcc would attach it to the host
        probe = source(file).replace(
            "RAW_TRACEPOINT_PROBE(inet_sock_set_state)", "int unused(struct bpf_raw_tracepoint_args *ctx)"
        )
        self._bpf: Any = bcc.BPF(text=(probe + text).encode(), cflags=flags)
        self._kind = bcc.BPF.SCHED_CLS
        self._fds: dict[str, int] = {}
        for i, (class_, family) in enumerate((class_, family) for class_ in Class for family in FAMILIES):
            ring = self.layout.ring(family, class_)
            libbpf.map_update(self.map("rings"), i.to_bytes(4, "little"), ring_bytes(ring))

    def map(self, name: str) -> int:
        """Descriptor of a map, which stays the object's."""
        import bcc  # noqa: PLC0415 - Debian's, and heavy

        return int(bcc.lib.bpf_table_fd(self._bpf.module, name.encode()))

    def nanoseconds(self, name: str, repeat: int = REPEAT) -> int:
        """Mean of one run."""
        return int(self._run(name, repeat).duration)

    def result(self, name: str) -> int:
        """What one run returns."""
        return int(self._run(name, 1).retval)

    def _run(self, name: str, repeat: int) -> libbpf.TestRun:
        if name not in self._fds:
            self._fds[name] = self._bpf.load_func(name.encode(), self._kind).fd
        packet = ctypes.create_string_buffer(64)
        opts = libbpf.TestRun(
            sz=ctypes.sizeof(libbpf.TestRun), data_in=ctypes.addressof(packet), data_size_in=64, repeat=repeat
        )
        result = libbpf.libbpf().bpf_prog_test_run_opts(self._fds[name], ctypes.byref(opts))
        assert result == 0, os.strerror(-result)
        return opts


def ring_bytes(ring: Ring) -> bytes:
    """Struct ring, before its first entry."""
    return RING.pack(0, ring.base, ring.capacity, ring.block_shift, *[0] * BLOCKS)
