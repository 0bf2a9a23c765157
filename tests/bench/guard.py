"""What the guard costs those it is not for: a segment without a vestige, and a bulk transfer."""

import ctypes
import os
import socket
import statistics
import struct
import threading
import time
from typing import Any

from tests.load.daemon import daemon
from tests.load.netns import Link, Namespace, link
from tests.load.segments import ACK, Segment, build
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.linux import btf, libbpf
from twctl.table import fields
from twctl.table.layout import Layout
from twctl.table.shared import bpf_folder
from twctl.table.sources import compile_flags, source

ROUNDS, REPEAT = 31, 100_000
TRANSFERS, TRANSFER_SECONDS = 7, 2.0
CHUNK = bytes(1 << 20)
ETHERNET_AND_NAMESPACE_0 = 3  # the class ID that the filter would have
EMPTY = "int nothing(struct __sk_buff *skb) { return TC_ACT_UNSPEC; }"
PACKETS = {
    "IPv4": (0x0800, Segment("10.0.0.1", 443, "10.0.0.2", 40000, 1, 1, ACK, payload=b"x" * 1000)),
    "IPv6": (0x86DD, Segment("fd00::1", 443, "fd00::2", 40000, 1, 1, ACK, payload=b"x" * 1000)),
}


def run() -> dict[str, Any]:
    """Nanoseconds above the empty program, and the ratio of throughputs."""
    return _miss() | _bulk()


def _miss() -> dict[str, Any]:
    import bcc  # noqa: PLC0415 - Debian's, and heavy

    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    types = btf.Btf()
    layout = Layout({family: dict.fromkeys(Class, 65536) for family in FAMILIES})
    flags = compile_flags(layout, fields.macros(types, fields.GUARD))
    types.close()
    text = source("guard.c").replace("skb->tc_classid", str(ETHERNET_AND_NAMESPACE_0)) + EMPTY
    loaded = bcc.BPF(text=text.encode(), cflags=flags)
    fds = {name: loaded.load_func(name, bcc.BPF.SCHED_CLS).fd for name in ("guard_ingress", "guard_egress", "nothing")}
    results = {}
    for family, (protocol, segment) in PACKETS.items():
        frame = bytes(12) + struct.pack(">H", protocol) + build(segment)
        rounds = [{name: _nanoseconds(fd, frame) for name, fd in fds.items()} for _ in range(ROUNDS)]
        for name in ("guard_ingress", "guard_egress"):
            above = statistics.median(row[name] - row["nothing"] for row in rounds)
            results[f"{name}, a segment without a vestige, {family}"] = {
                "ns above the empty program": above,
                "empty ns": statistics.median(row["nothing"] for row in rounds),
                "goal": 25,
                "met": above <= 25,
            }
    return results


def _nanoseconds(fd: int, frame: bytes) -> int:
    """Mean of one run."""
    packet = ctypes.create_string_buffer(frame, len(frame))
    opts = libbpf.TestRun(
        sz=ctypes.sizeof(libbpf.TestRun),
        data_in=ctypes.addressof(packet),
        data_size_in=len(frame),
        repeat=REPEAT,
    )
    result = libbpf.libbpf().bpf_prog_test_run_opts(fd, ctypes.byref(opts))
    assert result == 0, os.strerror(-result)
    return int(opts.duration)


def _bulk() -> dict[str, Any]:
    """One connection over veth, with the guard on both ends and without, in turn."""
    with link() as stock, link() as guarded, daemon(guarded.client, guarded.server, mode="vestigial"):
        pairs = []
        for turn in range(TRANSFERS):
            order = (stock, guarded) if turn % 2 else (guarded, stock)
            speed = {id(each): _transfer(each) for each in order}
            pairs.append((speed[id(guarded)], speed[id(stock)]))
    ratio = statistics.median(a / b for a, b in pairs)
    return {
        "bulk TCP throughput over veth, guarded against stock": {
            "guarded GB/s": round(statistics.median(a for a, _ in pairs) / 1e9, 2),
            "stock GB/s": round(statistics.median(b for _, b in pairs) / 1e9, 2),
            "ratio": round(ratio, 3),
            "goal": 0.99,
            "met": ratio >= 0.99,
        }
    }


def _transfer(both: Link) -> float:
    """Bytes a second of one connection."""
    with both.server.socket(socket.AF_INET) as listener:
        listener.bind((both.server_ipv4, 0))
        listener.listen(1)
        sender = threading.Thread(target=_send, args=(both.client, listener.getsockname()))
        sender.start()
        receiver, _ = listener.accept()
        buffer, received, started = bytearray(len(CHUNK)), 0, time.monotonic()
        with receiver:
            while size := receiver.recv_into(buffer):
                received += size
        sender.join()
    return received / (time.monotonic() - started)


def _send(ns: Namespace, to: tuple[str, int]) -> None:
    with ns.socket(socket.AF_INET) as sock:
        sock.connect(to)
        end = time.monotonic() + TRANSFER_SECONDS
        while time.monotonic() < end:
            sock.sendall(CHUNK)
