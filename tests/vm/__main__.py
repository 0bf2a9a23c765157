"""Run a few tests of each mode and probe, or any command, inside Debian's own kernels; prints a table of how it went.

    tests/vm/run                          the tests marked vm on 6.1
    tests/vm/run 6.1 6.12                 ... on both, one after the other; all: on all that tests/vm/kernels.py has
    tests/vm/run --arch arm64 6.12        ... on another architecture
    tests/vm/run 6.12 -- uname -a         any command, as root, from the checkout
    tests/vm/run ./vmlinuz-6.6            a kernel of your own, modules in ../lib/modules next to it
    tests/vm/run --root DIR 6.1 -- CMD    ... on another root file system, with the checkout it has at /opt/twctl
    tests/vm/run --docs 6.1               writes its rows into docs/kernels.md, too
    tests/vm/run --how-long 6.1 6.12      runs nothing: how long it took last time

The virtual machine sees this machine's root file system read-only, with a throw-away layer on top: nothing a
test writes comes back. For another architecture it is a Debian made by debootstrap and deploy/setup. /sys/fs/bpf
and /sys/fs/cgroup are mounted, loopback is up, modules load, and TWCTL_TEST_KERNEL=1 turns skipped kernel tests
into failures.

Needs root, an amd64 Debian with a Debian mirror in apt's configuration (the kernels of other releases come from
the same mirror; apt's own configuration is not changed), and the .venv that deploy/setup makes. Fetched on
first use: qemu and a few tools with apt, virtme-ng with pip; kernels and root file systems into
${XDG_CACHE_HOME:-/var/cache}/twctl, where they stay; remove a kernel's folder to get its newest update. Runs under
KVM where that works, else emulated: Python is then about twenty times slower, and a boot takes 7 to 15 s.

Exit status: the command's, 1 when a cell of the table failed, 124 when the time limit ended it, 125 when it could
not be run; of several kernels, the first that is not 0. What `twctl check` refuses is a failure where
tests/vm/kernels.py does not expect it.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from tests import ROOT
from tests.vm.host import ARCHITECTURES, Architecture, RefusedError, install_tools
from tests.vm.kernels import find_kernel, known
from tests.vm.machine import Outcome, run
from tests.vm.roots import root_of
from tests.vm.rows import minutes_of, rows, table, write, written

CELLS_COMMAND = [".venv/bin/python", "-m", "tests.vm.cells"]
CUT_SHORT = {124, 125, 255}  # of such a kernel the page keeps its older rows


def main(words: list[str]) -> int:
    """Run the command on each kernel in turn, then say how each ended."""
    cut = words.index("--") if "--" in words else len(words)
    args, command = arguments(words[:cut]), words[cut + 1 :]
    if args.how_long:
        print_minutes(args.arch, args.kernels)
        return 0
    architecture = ARCHITECTURES[args.arch]
    timeout = args.timeout or architecture.timeout
    lines, statuses, told, whole = [], [], [], []
    for kernel in args.kernels:
        start, vmlinuz = time.monotonic(), Path(kernel)
        try:
            install_tools(architecture)
            vmlinuz = find_kernel(architecture, kernel)
            root = args.root.resolve() if args.root else whole_root(architecture)
            start = time.monotonic()
            result = run(architecture, vmlinuz, root, command or CELLS_COMMAND, timeout)
        except RefusedError as reason:
            result = Outcome(125, f"refused: {reason}")
        seconds = time.monotonic() - start
        statuses.append(result.status)
        fresh = [] if command else rows(args.arch, kernel, vmlinuz, result, seconds)
        told += fresh
        whole += [] if result.status in CUT_SHORT else fresh
        lines.append(f"{kernel}: {result.verdict}, {seconds:.0f} s")
    sys.stdout.write("\n" + ("" if command else table(told) + "\n\n") + "\n".join(lines) + "\n")
    for page in write(whole) if args.docs else ():
        sys.stdout.write(f"{page.relative_to(ROOT)}\n")
    return next((status for status in statuses if status), int(any(row.is_failure for row in told)))


def arguments(words: list[str]) -> argparse.Namespace:
    """What stands before `--`."""
    parser = argparse.ArgumentParser(
        prog="tests/vm/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", default=["6.1"])
    parser.add_argument("--arch", choices=ARCHITECTURES, default="amd64", help="(default %(default)s)")
    parser.add_argument(
        "--timeout", type=int, metavar="SECONDS", help="per kernel, boot included (default 2700; arm64: 14400)"
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="the guest's (default /)")
    parser.add_argument("--docs", action="store_true", help="write the rows into docs/kernels.md")
    parser.add_argument("--how-long", action="store_true", help="only say how long it took last time")
    args = parser.parse_args(words)
    args.kernels = [name for each in args.kernels for name in (known(args.arch) if each == "all" else [each])]
    return args


def whole_root(architecture: Architecture) -> Path:
    """The root file system to boot: this machine's own if it can be."""
    return Path("/") if architecture.is_own else root_of(architecture)


def print_minutes(architecture: str, kernels: list[str]) -> None:
    """Of each kernel, and of all together."""
    found = minutes_of([(architecture, kernel) for kernel in kernels], written())
    each = ", ".join(f"{kernel} {'unknown' if took is None else took}" for (_, kernel), took in found.items())
    total = sum(filter(None, found.values()))
    sys.stdout.write(f"{architecture}: about {total} minutes in virtual machines ({each})\n")


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)  # it is for this program alone
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no virtual machine is left running
    sys.exit(main(sys.argv[1:]))
