"""What it costs to know who causes it: an entry with and without attribution, at the real tracepoint.

Both probes are attached at once and see the same closes. Who comes second finds the socket in the cache, so each is
first as often as the other.
"""

import contextlib
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.load.closes import run as close
from tests.load.closes import serving
from tests.load.netns import link
from tests.load.programs import set_up
from twctl.addresses import FAMILIES
from twctl.classes import Class
from twctl.linux import btf, libbpf, netns
from twctl.table import fields
from twctl.table.compiled import STATE_EVENT
from twctl.table.layout import Layout
from twctl.table.shared import bpf_folder
from twctl.table.sources import compile_flags, source

CLOSES = 50_021
ROUNDS = 4
ATTRIBUTION = ("\tprepare_attribution(w);\n", "\tattribute(w, v, true);\n")
STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")


class Probe:
    """The tracepoint probe, attached, with a table of its own."""

    def __init__(self, text: str, cookie: int) -> None:
        import bcc  # noqa: PLC0415 - Debian's, and heavy

        os.environ["BCC_KERNEL_SOURCE"] = str(bpf_folder())
        with contextlib.closing(btf.Btf()) as types:
            layout = Layout({family: dict.fromkeys(Class, 65536) for family in FAMILIES})
            self._bpf: Any = bcc.BPF(text=text.encode(), cflags=compile_flags(layout, fields.macros(types)))
        set_up(self._map, layout)
        libbpf.map_update(self._map("namespaces"), cookie.to_bytes(8, "little"), bytes(4))

    def _map(self, name: str) -> int:
        import bcc  # noqa: PLC0415 - Debian's, and heavy

        return int(bcc.lib.bpf_table_fd(self._bpf.module, name.encode()))

    def nanoseconds(self) -> int:
        """Time in the program since it was attached."""
        shown = Path(f"/proc/self/fdinfo/{self._bpf.funcs[STATE_EVENT].fd}").read_text()
        return int(dict(line.split(":", 1) for line in shown.splitlines())["run_time_ns"])

    def close(self) -> None:
        """Detach it."""
        self._bpf.cleanup()


@contextlib.contextmanager
def statistics_enabled() -> Iterator[None]:
    """The kernel measures programs."""
    before = STATISTICS.read_text()
    STATISTICS.write_text("1")
    try:
        yield
    finally:
        STATISTICS.write_text(before)


def run(*, short: bool = False) -> dict[str, Any]:
    """Nanoseconds of all events of a connection that ends in TIME_WAIT, in either probe."""
    count = 2 if short else ROUNDS
    with_attribution = without = source("observe.c")
    for line in ATTRIBUTION:
        assert line in without
        without = without.replace(line, "")
    texts = {"with": with_attribution, "without": without}
    spent: dict[str, list[float]] = {name: [] for name in texts}
    with statistics_enabled(), link() as both, serving(both.server, "--address", both.server_ipv4):
        both.client.sysctl("net.ipv4.tcp_tw_reuse", 1)
        cookie = netns.cookie(both.client.name)
        for i in range(count):
            order = sorted(texts, reverse=bool(i % 2))
            with contextlib.ExitStack() as attached:
                probes = {
                    name: attached.enter_context(contextlib.closing(Probe(texts[name], cookie))) for name in order
                }
                close(both.client, "--connect", "--count", str(CLOSES), "--address", both.server_ipv4)
                for name, probe in probes.items():
                    spent[name].append(probe.nanoseconds() / CLOSES)
    mine, other = (sum(spent[name]) / count for name in ("with", "without"))
    rounds = [a / b for a, b in zip(spent["with"], spent["without"], strict=True)]
    return {
        "an entry with attribution, against one without": {
            "ns": round(mine),
            "other_ns": round(other),
            "ratio": round(mine / other, 3),
            "spread": f"{min(rounds):.2f} to {max(rounds):.2f}, median {statistics.median(rounds):.2f}",
            "goal": 1.3,
            "met": mine / other <= 1.3,
        }
    }
