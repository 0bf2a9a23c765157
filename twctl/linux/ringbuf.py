"""BPF's ring buffers, read by libbpf: each look takes what is there, in bounded pieces."""

import ctypes
import os
from collections.abc import Iterator

from twctl.linux.libbpf import libbpf

MAP_TYPE = 27  # BPF_MAP_TYPE_RINGBUF (linux/bpf.h)
PIECE = 4096  # records of one piece: who writes faster than we read must not keep us in the library for ever
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class RingBuffer:
    """A new one, of so many bytes (a power of two of pages); `fd` is for the map of a program.

    Raises OSError: EPERM.
    """

    def __init__(self, name: bytes, size: int) -> None:
        lib = libbpf()
        lib.ring_buffer__new.restype = ctypes.c_void_p
        lib.ring_buffer__new.argtypes = (ctypes.c_int, _CALLBACK, ctypes.c_void_p, ctypes.c_void_p)
        lib.ring_buffer__consume.argtypes = lib.ring_buffer__free.argtypes = (ctypes.c_void_p,)
        lib.ring_buffer__free.restype = None
        self.fd = lib.bpf_map_create(MAP_TYPE, name, 0, 0, ctypes.c_uint32(size), None)
        if self.fd < 0:
            raise OSError(-self.fd, os.strerror(-self.fd), "bpf_map_create")
        self._records: list[bytes] = []
        self._callback = _CALLBACK(self._take)  # as long as the library may call it
        self._ring = lib.ring_buffer__new(self.fd, self._callback, None, None)
        if not self._ring:
            error = ctypes.get_errno()
            os.close(self.fd)
            raise OSError(error, os.strerror(error), "ring_buffer__new")

    def _take(self, _context: int | None, record: int, size: int) -> int:
        """Nothing that can fail: an exception would be swallowed. Below 0: enough."""
        self._records.append(ctypes.string_at(record, size))
        return -(len(self._records) >= PIECE)

    def pieces(self) -> Iterator[bytes]:
        """What is there, the records of each piece joined, until nothing is left."""
        full = True
        while full:
            libbpf().ring_buffer__consume(self._ring)
            full = len(self._records) >= PIECE
            if self._records:
                piece = b"".join(self._records)
                self._records.clear()
                yield piece

    def close(self) -> None:
        """Give it back."""
        libbpf().ring_buffer__free(self._ring)
        os.close(self.fd)
