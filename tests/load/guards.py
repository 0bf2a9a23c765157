"""Where the guard stands on a device, as the kernel tells it: TCX programs, and filters of a qdisc."""

import ctypes
import json
import os
import subprocess

from tests.load.netns import Namespace
from twctl.linux import libbpf
from twctl.linux.tcx import PLACES

BOTH = ["twctl_ingress", "twctl_egress"]
SIDES = ("ingress", "egress")


def standing(ns: Namespace, device: str) -> dict[str, list[tuple[str, int]]]:
    """Names and numbers of all programs on each side of a device, in the order in which they see packets."""
    found: dict[str, list[tuple[str, int]]] = {}
    with ns.entered():
        index = _index(ns, device)
        for side, place in zip(SIDES, PLACES.values(), strict=True):
            try:
                numbers = libbpf.attached(index, place)
            except OSError:  # the kernel has no TCX
                numbers = []
            found[side] = [(name_of(number), number) for number in numbers]
    for side in SIDES:
        command = ns.command("tc", "-j", "filter", "show", "dev", device, side)
        rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout or "[]")
        filters = sorted((row for row in rows if "options" in row), key=lambda row: row["pref"])
        found[side] += [
            (row["options"].get("bpf_name", "").split(" ")[0], row["options"].get("prog", {}).get("id", 0))
            for row in filters
        ]
    return found


def _index(ns: Namespace, device: str) -> int:
    shown = subprocess.run(ns.command("ip", "-j", "link", "show", device), capture_output=True, text=True, check=True)
    return int(json.loads(shown.stdout)[0]["ifindex"])


def guarded(ns: Namespace, device: str) -> list[str]:
    """The names of the guard's own, without the folder of the pins."""
    return [name for side in standing(ns, device).values() for name, _ in side if name in BOTH]


def programs(ns: Namespace, device: str = "lo") -> set[int]:
    """The numbers of the guard's own."""
    return {number for side in standing(ns, device).values() for name, number in side if name in BOTH}


def name_of(number: int) -> str:
    """The name of a program; empty if it has gone meanwhile."""
    fd = libbpf.libbpf().bpf_prog_get_fd_by_id(ctypes.c_uint32(number))
    if fd < 0:
        return ""
    try:
        info = ctypes.create_string_buffer(256)
        libbpf.libbpf().bpf_obj_get_info_by_fd(fd, info, ctypes.byref(ctypes.c_uint32(ctypes.sizeof(info))))
        return info.raw[64:80].rstrip(b"\0").decode()  # struct bpf_prog_info.name
    finally:
        os.close(fd)
