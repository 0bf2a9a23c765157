"""One virtual machine: booted on a root file system, and followed until its command has ended."""

import contextlib
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT
from tests.vm import roots
from tests.vm.host import CACHE, VENV_BIN, Architecture, RefusedError
from tests.vm.kernels import modules

KVM_BOOT_SECONDS = 20  # KVM boots in 2 s; a hypervisor that cannot run the kernel hangs or dies at once
BOOTED = b"twctl-vm: booted\n"

# Guest side. virtme-ng mounts the root over 9p without a cache, and every import pays for it: the same tree again
# with cache=loose (nobody changes it meanwhile) halves the start of Python. It also shows /var/cache, which
# virtme-ng hides and where the modules are. Paths are the same as on this machine.
GUEST = """\
set -e
mkdir -p /run/tree /run/layer
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose tree /run/tree
mount -t tmpfs layer /run/layer
for dir in /usr {checkout}; do
    layer=/run/layer$dir
    mkdir -p "$layer/upper" "$layer/work"
    mount -t overlay -o "xino=off,lowerdir=/run/tree$dir,upperdir=$layer/upper,workdir=$layer/work" layer "$dir"
done
mkdir -p /lib/modules
ln -sfnT /run/tree{modules}/$(uname -r) /lib/modules/$(uname -r) || true
modprobe -q tun || true  # there is no /dev/net/tun before; elsewhere systemd makes the node
mount -t bpf bpf /sys/fs/bpf
cd {checkout}
export TWCTL_TEST_KERNEL=1
echo twctl-vm: booted
exec {command}
"""


class NotBootedError(RefusedError):
    """The machine ended, or hung, before the command began."""


@dataclass(frozen=True)
class Outcome:
    """How the command ended on one kernel."""

    status: int
    verdict: str  # passed, failed or refused, with the reason
    output: str = ""


def run(architecture: Architecture, vmlinuz: Path, root: Path, command: list[str], timeout: int) -> Outcome:
    """Run the command on one kernel, under KVM if that boots, else emulated."""
    if root != Path("/"):
        shutil.copytree(modules(vmlinuz), root / "usr/lib/modules", symlinks=True, dirs_exist_ok=True)
    # Where KVM cannot run a kernel, that is tried once per boot of this machine, not in every run.
    refused = CACHE / "kernels/kvm-refused"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
    may = architecture.is_own and os.access("/dev/kvm", os.W_OK)
    if may and not (refused.exists() and refused.read_text() == boot_id):
        try:
            return boot(architecture, vmlinuz, root, command, timeout, kvm=True)
        except NotBootedError:
            refused.parent.mkdir(parents=True, exist_ok=True)
            refused.write_text(boot_id)
    return boot(architecture, vmlinuz, root, command, timeout, kvm=False)


def vng(architecture: Architecture, vmlinuz: Path, root: Path, script: Path, *, kvm: bool) -> list[str]:
    """The command line that boots `vmlinuz` on `root` and runs `script` in it.

    Chosen by measuring under emulation: a second CPU lets tests race and costs nothing, more memory or a larger
    translation cache gains nothing, and --force-9p saves 3 s of waiting for a virtiofsd that Debian 12 does not have.
    """
    tree = [
        f"local,id=tree,path={root},security_model=none,readonly=on,multidevs=remap",
        f"virtio-9p-{architecture.bus},fsdev=tree,mount_tag=tree",
    ]
    return [
        *(str(VENV_BIN / "vng"), "--run", str(vmlinuz), "--cpus", "2", "--memory", "2G", "--force-9p"),
        *architecture.options,
        *(() if kvm else ("--disable-kvm",)),
        *(() if root == Path("/") else ("--root", str(root))),
        *("-o=-fsdev", f"-o={tree[0]}", "-o=-device", f"-o={tree[1]}"),
        *("--exec", f"sh {shlex.quote(str(script))}"),
    ]


def boot(  # noqa: PLR0913 - keywords
    architecture: Architecture, vmlinuz: Path, root: Path, command: list[str], timeout: int, *, kvm: bool
) -> Outcome:
    """Run the command in a new virtual machine.

    :raises NotBootedError: with the last thing that the machine said.
    """
    checkout = ROOT if root == Path("/") else Path("/", roots.PLACE)
    guest = GUEST.format(
        checkout=shlex.quote(str(checkout)), modules=shlex.quote(str(modules(vmlinuz))), command=shlex.join(command)
    )
    with tempfile.TemporaryDirectory(prefix="twctl-vm-", dir=root / "tmp") as scratch:
        script = Path(scratch, "guest")
        script.write_text(guest)
        machine = subprocess.Popen(
            vng(architecture, vmlinuz, root, "/" / script.relative_to(root), kvm=kvm),
            # vng finds its other half through PATH, and killed, it leaves files in TMPDIR.
            env=os.environ | {"PATH": f"{VENV_BIN}:{os.environ['PATH']}", "TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # qemu truncates a plain file that it is given
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status, output = follow(machine, time.monotonic() + timeout, KVM_BOOT_SECONDS if kvm else timeout)
            return outcome(status, timeout, output)
        finally:
            end(machine)


def follow(machine: subprocess.Popen[bytes], deadline: float, boot_seconds: float) -> tuple[int, str]:
    """Copy the command's output as it comes. Of the machine's own output before that only the last line is kept.

    Returns the exit status, 124 if it was not done in time, and what the command printed.
    """
    assert machine.stdout
    early, output, booted = b"", b"", False
    limit = min(deadline, time.monotonic() + boot_seconds)
    with selectors.DefaultSelector() as selector:
        selector.register(machine.stdout, selectors.EVENT_READ)
        while selector.select(max(0, limit - time.monotonic())):
            chunk = os.read(machine.stdout.fileno(), 65536)
            if not chunk and booted:
                return machine.wait(), output.decode(errors="replace")
            if not chunk:
                break
            if not booted:
                early += chunk
                booted, chunk = BOOTED in early, early.partition(BOOTED)[2]
                limit = deadline if booted else limit
            output += chunk
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
    if booted:
        return 124, output.decode(errors="replace")
    last = early.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
    raise NotBootedError(f"no boot in {boot_seconds:.0f} s: {last[0]} (try another kernel, or a longer --timeout)")


def end(machine: subprocess.Popen[bytes]) -> None:
    """Leave no virtual machine behind, whatever ended us."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(machine.pid, signal.SIGKILL)
    machine.wait()


def outcome(status: int, timeout: int, output: str) -> Outcome:
    """Say what an exit status means."""
    reasons = {
        0: "passed",
        124: f"failed: not done after {timeout} s (--timeout gives it longer)",
        255: "failed: exit 255, or the kernel died",
    }
    return Outcome(status, reasons.get(status, f"failed: exit {status}"), output)
