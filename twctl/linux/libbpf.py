"""The few functions of libbpf.so.1 that twctl calls: no system call number in our code, no LLVM in the daemon."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from pathlib import Path
from typing import NamedTuple

from twctl.errors import TwctlError

BPF_OBJ_NAME_LEN = 16


class TestRun(ctypes.Structure):
    """struct bpf_test_run_opts (bpf/bpf.h)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class LinkCreate(ctypes.Structure):
    """The beginning of struct bpf_link_create_opts (bpf/bpf.h): what follows differs between versions, and is 0."""

    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("unused", ctypes.c_uint32))


@functools.cache
def libbpf() -> ctypes.CDLL:
    """Load libbpf.

    :raises TwctlError: if it is not installed.
    """
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        raise TwctlError(
            "libbpf.so.1 is not installed", "install Debian's python3-bpfcc, which brings it along"
        ) from None
    for name in ("btf__parse_split", "btf__type_by_id"):
        getattr(lib, name).restype = ctypes.c_void_p
    lib.btf__name_by_offset.restype = ctypes.c_char_p
    lib.btf__parse_split.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
    lib.btf__free.argtypes = (ctypes.c_void_p,)
    lib.btf__free.restype = None
    lib.btf__find_by_name_kind.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32)
    lib.btf__resolve_type.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    lib.btf__type_by_id.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    lib.btf__name_by_offset.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    lib.bpf_map_update_elem.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint64)
    lib.bpf_map_delete_elem.argtypes = (ctypes.c_int, ctypes.c_char_p)
    lib.bpf_map_get_next_key.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
    lib.bpf_map_lookup_elem.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
    lib.bpf_prog_load.argtypes = (
        *(ctypes.c_uint32, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p),
    )
    lib.libbpf_set_print(None)  # its warnings would stand between our own lines; every failure is reported by errno
    return lib


def _checked(result: int, doing: str) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), doing)
    return result


def obj_get(path: os.PathLike[str] | str) -> int:
    """Open a pinned map, program or link; returns its file descriptor.

    :raises OSError: ENOENT, EPERM.
    """
    return _checked(libbpf().bpf_obj_get(os.fsencode(path)), os.fspath(path))


def obj_pin(fd: int, path: os.PathLike[str] | str) -> None:
    """Pin an object under bpffs.

    :raises OSError: EEXIST, EPERM, EINVAL (no bpffs).
    """
    _checked(libbpf().bpf_obj_pin(fd, os.fsencode(path)), os.fspath(path))


CGROUP_SOCK_OPS = 3  # enum bpf_attach_type


# Offsets in struct bpf_prog_info (include/uapi/linux/bpf.h); the number stands there in struct bpf_map_info, too.
_ID, _RECURSION_MISSES = 4, 208


def _info(fd: int) -> bytes:
    """What the kernel tells of an object (struct bpf_prog_info, bpf_link_info, ...); 0 where it is older than we are.

    :raises OSError: if it is not told.
    """
    info = ctypes.create_string_buffer(256)
    size = ctypes.c_uint32(ctypes.sizeof(info))
    _checked(libbpf().bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)), "bpf_obj_get_info_by_fd")
    return info.raw


def program_id(fd: int) -> int:
    """The number that the kernel gave a program; raises OSError."""
    return int(struct.unpack_from("=I", _info(fd), _ID)[0])


def misses(program: int) -> int:
    """How often the kernel did not run a program because it was just interrupting itself; raises OSError."""
    return int(struct.unpack_from("=Q", _info(program), _RECURSION_MISSES)[0])


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Set one element.

    :raises OSError: E2BIG or ENOSPC when the map is full.
    """
    _checked(libbpf().bpf_map_update_elem(fd, key, value, 0), "bpf_map_update_elem")


def map_delete(fd: int, key: bytes) -> None:
    """Delete one element.

    :raises OSError: ENOENT.
    """
    _checked(libbpf().bpf_map_delete_elem(fd, key), "bpf_map_delete_elem")


def map_items(fd: int) -> dict[bytes, bytes]:
    """All elements of a small map (hash or LPM trie)."""
    info = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    key_size, value_size = int(info["key_size"]), int(info["value_size"])
    items: dict[bytes, bytes] = {}
    key, value = None, ctypes.create_string_buffer(value_size)
    following = ctypes.create_string_buffer(key_size)
    while libbpf().bpf_map_get_next_key(fd, key, following) == 0:
        key = following.raw
        if libbpf().bpf_map_lookup_elem(fd, key, value) == 0:
            items[key] = value.raw
    return items


SCHED_CLS, PROG_ARRAY = 3, 3  # BPF_PROG_TYPE_*, BPF_MAP_TYPE_*
PROGRAMS_AT_A_PLACE = 64  # BPF_MPROG_MAX


def classifier(name: str, instructions: bytes) -> int:
    """Load a TC program; returns its descriptor. Raises OSError."""
    count = len(instructions) // 8
    return _checked(libbpf().bpf_prog_load(SCHED_CLS, name.encode(), b"GPL", instructions, count, None), name)


def program_array(name: str, entries: int) -> int:
    """Make an array of programs for tail calls; returns its descriptor. Raises OSError.

    It is emptied when the last descriptor and pin of it goes, also if programs that call into it run on.
    """
    return _checked(libbpf().bpf_map_create(PROG_ARRAY, name.encode(), 4, 4, entries, None), name)


def attached(device: int, place: int) -> list[int]:
    """Numbers of the programs at this place (BPF_TCX_*) of a device (index, in the thread's namespace), in order.

    :raises OSError: EINVAL where the kernel has no such place.
    """
    found, count = (ctypes.c_uint32 * PROGRAMS_AT_A_PLACE)(), ctypes.c_uint32(PROGRAMS_AT_A_PLACE)
    _checked(libbpf().bpf_prog_query(device, place, 0, None, found, ctypes.byref(count)), "bpf_prog_query")
    return list(found)[: count.value]


class Link(NamedTuple):
    """What a link says of itself: its number, its program's, and where it is; device: 0 once that is gone."""

    number: int
    program: int
    device: int
    place: int


def link(fd: int) -> Link:
    """Of a link to a network device. Raises OSError."""
    return Link(*struct.unpack_from("=4xII4xII", _info(fd)))


def link_create(program: int, device: int, place: int, flags: int) -> int:
    """Attach a program to a device of the thread's namespace, or to a cgroup (its descriptor).

    It stays as long as the descriptor that is returned, or a pin of it.

    :raises OSError: EINVAL where the kernel has no such place, ENODEV, EPERM.
    """
    options = LinkCreate(sz=ctypes.sizeof(LinkCreate), flags=flags)
    return _checked(libbpf().bpf_link_create(program, device, place, ctypes.byref(options)), "bpf_link_create")


def link_update(fd: int, program: int) -> None:
    """Put another program in the place of a link's own, at once. Raises OSError."""
    _checked(libbpf().bpf_link_update(fd, program, None), "bpf_link_update")


def link_detach(fd: int) -> None:
    """Take the program away, whoever has the link open. Raises OSError."""
    _checked(libbpf().bpf_link_detach(fd), "bpf_link_detach")


class Program:
    """A pinned program that user space runs (BPF_PROG_TEST_RUN of a raw tracepoint program, Linux 5.10)."""

    def __init__(self, path: os.PathLike[str] | str) -> None:
        self._fd = obj_get(path)

    def run(self, *arguments: int) -> int:
        """Run once with these arguments (unsigned, 64 bits each); returns the program's own result.

        :raises OSError: if the kernel refuses to run it.
        """
        context = (ctypes.c_uint64 * len(arguments))(*arguments)
        opts = TestRun(sz=ctypes.sizeof(TestRun), ctx_in=ctypes.addressof(context), ctx_size_in=ctypes.sizeof(context))
        _checked(libbpf().bpf_prog_test_run_opts(self._fd, ctypes.byref(opts)), "BPF_PROG_TEST_RUN")
        return int(opts.retval)

    def close(self) -> None:
        """Close the descriptor; the pin stays."""
        os.close(self._fd)
