"""A pod of deploy/kubernetes as a container runtime would run it: an OCI bundle made from the manifest, run by crun.

What is Kubernetes' own doing is done here as containerd does it: its default mounts, masked and read-only paths, and
a seccomp profile that depends on the capabilities.
"""

import json
import os
import platform
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.load import wait_until
from tests.load.clients import certificate
from tests.load.daemon import START_SECONDS
from tests.load.host import Host
from tests.load.kustomize import build
from tests.load.monitoring import program

# A root file system that has /opt/twctl, as the image does (tests/vm/image makes one); else this machine's, which
# differs in that the program is the checkout's.
IMAGE = os.environ.get("TWCTL_TEST_IMAGE")
ENTRYPOINT = "/opt/twctl/bin/twctl"
# containerd's: pkg/oci, populateDefaultUnixSpec().
MASKED = ("acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi")
READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
MOUNTS = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),  # noqa: S108 - a mount point
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
)
PROPAGATION = {None: "rprivate", "HostToContainer": "rslave"}
# What moby's and containerd's profiles have, and that of Debian 12's containers-common does not yet.
NEWER = {"CAP_BPF": "bpf", "CAP_PERFMON": "perf_event_open", "CAP_SYSLOG": "syslog"}
# The only address of such a host (tests/load/host.py).
NODE_IP, PORT = "127.0.0.1", 9815
# linux/capability.h
NUMBERS = {"NET_ADMIN": 12, "SYS_ADMIN": 21, "SYS_RESOURCE": 24, "SYSLOG": 34, "PERFMON": 38, "BPF": 39}


@dataclass
class Container:
    """A running one."""

    host: Host
    file: Path
    process: "subprocess.Popen[bytes]"
    tls: ssl.SSLContext

    @property
    def log(self) -> str:
        """All that it has printed."""
        return self.file.read_text()

    @property
    def pid(self) -> int:
        """The daemon's, outside."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def get(self, path: str) -> str:
        """What it serves, asked on the node."""
        url = f"https://{NODE_IP}:{PORT}{path}"
        with self.host.own.entered(), urllib.request.urlopen(url, timeout=5, context=self.tls) as answer:
            text: bytes = answer.read()
        return text.decode()

    def metric(self, series: str) -> float:
        """One series."""
        rows = (line.rsplit(" ", 1) for line in self.get("/metrics").splitlines())
        return next(float(value) for name, value in rows if name == series)

    def passes(self, probe: dict[str, Any]) -> bool:
        """A probe of the kubelet's: the path is served, or the file is there."""
        assert self.process.poll() is None, self.log
        try:
            if "exec" in probe:
                return Path(f"/proc/{self.pid}/root{probe['exec']['command'][-1]}").exists()
            return bool(self.get(probe["httpGet"]["path"]))
        except (OSError, IndexError):
            return False

    def stop(self) -> int:
        """As the kubelet does, SIGTERM; its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """SIGKILL, as the kernel sends it when memory has run out."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(30)


@contextmanager
def container(host: Host, overlay: str, folder: Path, pins: Path, *words: str, config: str = "") -> Iterator[Container]:
    """The pod of an overlay on a node; the block begins when it is ready. words: more arguments.

    folder: of the test; pins: below /sys/fs/bpf, in place of the configuration's; config: what is added to that.
    """
    bundle = folder / f"{overlay}-{time.monotonic_ns()}"
    bundle.mkdir()
    objects = build(overlay)
    (bundle / "twctl.toml").write_text(
        objects["ConfigMap"]["data"]["twctl.toml"].replace("/bpf/twctl", f"/bpf/{pins.name}") + config
    )
    pod = objects["DaemonSet"]["spec"]["template"]["spec"]
    cert = _secret(bundle / "twctl-tls")
    spec = _spec(pod, bundle, words)
    _root(host, bundle / "root")
    # crun refuses to start where both versions of cgroups are mounted; it makes none here.
    host.run("sh", "-c", "findmnt -t cgroup2 /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    for path in (each["source"] for each in spec["mounts"] if each["type"] == "bind"):
        host.run("mkdir", "-p", path) if not Path(path).exists() else None  # DirectoryOrCreate
    (bundle / "config.json").write_text(json.dumps(spec))
    command = ("crun", "--cgroup-manager=disabled", "run", "--bundle", str(bundle), f"twctl-{bundle.name}")
    with (bundle / "log").open("wb") as log:
        process = subprocess.Popen([*host.prefix, *command], stdout=log, stderr=log)
    made = Container(host, bundle / "log", process, ssl.create_default_context(cafile=cert))
    try:
        (probe,) = (each["readinessProbe"] for each in pod["containers"])
        wait_until(lambda: made.passes(probe), what="it is ready", timeout=START_SECONDS)
        yield made
    finally:
        if process.poll() is None:
            made.kill()


def rights(pid: int | str) -> set[int]:
    """Numbers of the capabilities that a process can have; the daemon puts some out of force once it runs."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = {int(line.split()[1], 16) for line in lines if line.startswith(("CapPrm", "CapBnd"))}
    (mask,) = masks
    return {number for number in range(64) if mask >> number & 1}


def _secret(folder: Path) -> Path:
    """The Secret for TLS, of this node's address; returns what is to be believed."""
    folder.mkdir()
    cert, key = certificate(folder)
    key.rename(folder / "tls.key")
    return cert.rename(folder / "tls.crt")


def _root(host: Host, folder: Path) -> None:
    """An overlay, as the runtime makes: the image stays as it is, and has the mount points that the pod wants."""
    folder.mkdir()
    host.run("mount", "-t", "tmpfs", "twctl-test", str(folder))
    host.run("mkdir", *(f"{folder}/{part}" for part in ("upper", "work", "rootfs")))
    layers = f"lowerdir={IMAGE or '/'},upperdir={folder}/upper,workdir={folder}/work"
    host.run("mount", "-t", "overlay", "-o", layers, "overlay", f"{folder}/rootfs")
    if not IMAGE:
        host.run("mkdir", "-p", f"{folder}/rootfs/opt/twctl/bin")
        host.run("ln", "-sf", str(ROOT / ".venv/bin/twctl"), f"{folder}/rootfs{ENTRYPOINT}")


def _spec(pod: dict[str, Any], bundle: Path, words: tuple[str, ...]) -> dict[str, Any]:
    """The runtime's own configuration (OCI runtime-spec, config.md)."""
    (container,) = pod["containers"]
    context = container["securityContext"]
    # A capability that this process lacks cannot be given to another (SYS_RESOURCE in some virtual machines).
    capabilities = [f"CAP_{name}" for name in context["capabilities"]["add"] if NUMBERS[name] in rights("self")]
    mounts = [
        *({"destination": to, "type": kind, "source": what, "options": [*how]} for to, kind, what, how in MOUNTS),
        *_volumes(pod, container, bundle),
    ]
    kinds = ["pid", "ipc", "uts", "mount"] + ([] if pod.get("hostNetwork") else ["network"])
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": context["runAsUser"], "gid": context["runAsGroup"]},
            "args": [*container.get("command", [ENTRYPOINT]), *map(_expanded, container.get("args", ())), *words],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": not context["allowPrivilegeEscalation"],
        },
        "root": {"path": "root/rootfs", "readonly": context["readOnlyRootFilesystem"]},
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": kind} for kind in kinds],
            "maskedPaths": [*(f"/proc/{name}" for name in MASKED), "/sys/firmware"],
            "readonlyPaths": [f"/proc/{name}" for name in READ_ONLY],
            "seccomp": _seccomp(capabilities),
            # As containerd has it where one mount follows the host's.
            "rootfsPropagation": "rslave" if any("rslave" in each["options"] for each in mounts) else "private",
        },
    }


def _expanded(word: str) -> str:
    """As the kubelet replaces variables."""
    return word.replace("$(NODE_IP)", NODE_IP)


def _volumes(pod: dict[str, Any], container: dict[str, Any], bundle: Path) -> Iterator[dict[str, Any]]:
    volumes = {each["name"]: each for each in pod["volumes"]}
    for mount in container["volumeMounts"]:
        volume = volumes[mount["name"]]
        options = ["rbind", "ro" if mount.get("readOnly") else "rw", PROPAGATION[mount.get("mountPropagation")]]
        if "emptyDir" in volume:
            yield {"destination": mount["mountPath"], "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]}
            continue
        if "hostPath" in volume:
            source = volume["hostPath"]["path"]
        else:
            source = str(bundle / (volume["secret"]["secretName"] if "secret" in volume else mount["subPath"]))
        yield {"destination": mount["mountPath"], "type": "bind", "source": source, "options": options}
    if not IMAGE:  # last: the checkout may lie below /tmp
        yield {"destination": str(ROOT), "type": "bind", "source": str(ROOT), "options": ["rbind", "ro"]}


def _seccomp(capabilities: list[str]) -> dict[str, Any]:
    """The runtime's default profile for these capabilities, on this architecture."""
    profile = json.loads(Path(program("seccomp.json")).read_text())
    arches = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}[platform.machine()]
    rules = []
    for rule in profile["syscalls"]:
        with_, without = rule.get("includes") or {}, rule.get("excludes") or {}
        if not set(with_.get("caps", ())) <= set(capabilities) or set(without.get("caps", ())) & set(capabilities):
            continue
        if arches[0] not in (with_.get("arches") or arches) or arches[0] in without.get("arches", ()):
            continue
        granted = {NEWER[name] for name in capabilities if name in NEWER}
        names = [name for name in rule["names"] if rule["action"] == "SCMP_ACT_ALLOW" or name not in granted]
        kept = {key: rule[key] for key in ("action", "args", "errnoRet") if rule.get(key)}
        rules += [{"names": names} | kept] if names else []
    rules += [{"names": [NEWER[name]], "action": "SCMP_ACT_ALLOW"} for name in capabilities if name in NEWER]
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": [arches[1]],
        "syscalls": rules,
    }
