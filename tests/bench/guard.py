"""What the guard costs those it is not for: a segment without a vestige, and a bulk transfer."""

import contextlib
import ctypes
import os
import re
import socket
import statistics
import struct
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.load.daemon import daemon
from tests.load.netns import Link, link
from tests.load.segments import ACK, Segment, build
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.linux import btf, libbpf, tcx
from twctl.table import fields
from twctl.table.layout import Layout
from twctl.table.shared import bpf_folder
from twctl.table.sources import compile_flags, source

ROUNDS, REPEAT = 31, 100_000
SLICE_SECONDS = 0.05
CHUNK, LAST = bytes(1 << 20), b"\1"
ETHERNET_AND_NAMESPACE_0 = 17  # the class ID that the filter would have
EMPTY = "int nothing(struct __sk_buff *skb) { return TC_ACT_UNSPEC; }"
PACKETS = {
    "IPv4": (0x0800, Segment("10.0.0.1", 443, "10.0.0.2", 40000, 1, 1, ACK, payload=b"x" * 1000)),
    "IPv6": (0x86DD, Segment("fd00::1", 443, "fd00::2", 40000, 1, 1, ACK, payload=b"x" * 1000)),
}


def run(*, short: bool = False) -> dict[str, Any]:
    """Nanoseconds above the empty program, and the ratio of throughputs."""
    return _miss(5 if short else ROUNDS) | (_bulk(3, 12) if short else _bulk(5, 60))


def _miss(count: int) -> dict[str, Any]:
    import bcc  # noqa: PLC0415 - Debian's, and heavy

    os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
    types = btf.Btf()
    layout = Layout({family: dict.fromkeys(Class, 65536) for family in FAMILIES})
    flags = compile_flags(layout, fields.macros(types, fields.GUARD))
    types.close()
    text = re.sub(r"skb->tc_classid(?! =)", str(ETHERNET_AND_NAMESPACE_0), source("guard.c")) + EMPTY
    loaded, linked = (bcc.BPF(text=each.encode(), cflags=flags) for each in (text, source("guard.c")))
    fds = {name: loaded.load_func(name, bcc.BPF.SCHED_CLS).fd for name in ("guard_ingress", "guard_egress", "nothing")}
    guards = [linked.load_func(name, bcc.BPF.SCHED_CLS).fd for name in ("guard_ingress", "guard_egress")]
    fds |= _labels(guards)
    results = {}
    for family, (protocol, segment) in PACKETS.items():
        frame = bytes(12) + struct.pack(">H", protocol) + build(segment)
        rounds = [{name: _nanoseconds(fd, frame) for name, fd in fds.items()} for _ in range(count)]
        for name in [each for each in fds if each != "nothing"]:
            above = statistics.median(row[name] - row["nothing"] for row in rounds)
            results[f"{name}, a segment without a vestige, {family}"] = {
                "ns above the empty program": above,
                "empty ns": statistics.median(row["nothing"] for row in rounds),
                "goal": 25,
                "met": above <= 25,
            }
    return results


def _labels(guards: Sequence[int]) -> dict[str, int]:
    """What a TCX link runs, a label and then the guard: descriptors by name."""
    array = libbpf.program_array("guards", len(guards))
    labels = {}
    for element, fd in enumerate(guards):
        libbpf.map_update(array, struct.pack("=I", element), struct.pack("=i", fd))
        name = f"{('guard_ingress', 'guard_egress')[element]} in a TCX link"
        labels[name] = tcx.load_label("label", ETHERNET_AND_NAMESPACE_0, array, element)
    return labels


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


class Flow:
    """One connection over a link, which sends as fast as it can for as long as it is asked."""

    def __init__(self, both: Link) -> None:
        with both.server.socket(socket.AF_INET) as listener:
            listener.bind((both.server_ipv4, 0))
            listener.listen(1)
            self._sender = both.client.socket(socket.AF_INET)
            self._sender.connect(listener.getsockname())
            self._receiver, _ = listener.accept()
        self._buffer = bytearray(len(CHUNK))

    def send(self, seconds: float) -> tuple[int, float]:
        """Bytes that arrived, and the time that they took."""
        received: list[int] = []
        thread = threading.Thread(target=lambda: received.append(self._receive()))
        thread.start()
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            self._sender.sendall(CHUNK)
        self._sender.sendall(LAST)
        thread.join()
        return received[0], time.monotonic() - started

    def _receive(self) -> int:
        count = 0
        while True:
            size = self._receiver.recv_into(self._buffer)
            count += size
            if self._buffer[size - 1] == LAST[0]:
                return count

    def close(self) -> None:
        """End the connection."""
        self._sender.close()
        self._receiver.close()


def _bulk(pairs: int, slices: int) -> dict[str, Any]:
    """Throughput over veth: stock, with the guard, and with an empty clsact qdisc, which is TC's own part.

    Each pair is made of many short slices in turn, so that what else the machine does meets all alike.
    """
    with link() as stock, link() as guarded, link() as empty, daemon(guarded.client, guarded.server, mode="vestigial"):
        for ns in (empty.client, empty.server):
            subprocess.run(["tc", "-n", ns.name, "qdisc", "add", "dev", "veth0", "clsact"], check=True)
        with contextlib.ExitStack() as opened:
            flows = {"stock": Flow(stock), "guarded": Flow(guarded), "clsact": Flow(empty)}
            for flow in flows.values():
                opened.callback(flow.close)
                flow.send(0.5)
            speeds = [_pair(flows, slices) for _ in range(pairs)]
    ratios = {name: statistics.median(each[name] / each["stock"] for each in speeds) for name in ("guarded", "clsact")}
    return {
        "bulk TCP throughput over veth, guarded against stock": {
            **{f"{name} GB/s": round(statistics.median(each[name] for each in speeds) / 1e9, 2) for name in speeds[0]},
            "ratio": round(ratios["guarded"], 3),
            "ratio of an empty clsact": round(ratios["clsact"], 3),
            "pairs": ", ".join(f"{each['guarded'] / each['stock']:.3f}" for each in speeds),
            "goal": 0.99,
            "met": ratios["guarded"] >= 0.99,
        }
    }


def _pair(flows: Mapping[str, Flow], slices: int) -> dict[str, float]:
    """Bytes a second of each flow."""
    sums = {name: [0.0, 0.0] for name in flows}
    for turn in range(slices):
        names = list(flows)
        for name in names[turn % 3 :] + names[: turn % 3]:
            size, seconds = flows[name].send(SLICE_SECONDS)
            sums[name][0] += size
            sums[name][1] += seconds
    return {name: size / seconds for name, (size, seconds) in sums.items()}
