"""Names of pods and containers, as the kubelet writes them down on its node: the API server is not asked.

The path of a container's cgroup has the UID of its pod and its own ID, whoever made it:

    kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-ID.scope
        the systemd driver; CRI-O has crio-ID.scope, Docker docker-ID.scope
    kubepods/burstable/podUID/ID
        the cgroupfs driver; CRI-O has crio-ID
    system.slice/containerd.service/kubepods-burstable-podUID.slice:cri-containerd:ID
        the kubelet has the systemd driver, and the runtime has not

The kubelet has a folder NAMESPACE_POD_UID in /var/log/pods for each pod, and a link POD_NAMESPACE_CONTAINER-ID.log in
/var/log/containers for each container. The link comes after the container's start, and has its ID cut off where the
whole would be longer than a name of a file may be: then the pod alone is told.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

LOGS = Path("/var/log")
# A systemd slice has _ for each - of a UID; that of a static pod is a hash.
_PATH = re.compile(
    r"kubepods.*pod(?P<uid>[0-9a-f]{8}([-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[./:]|$)"
    r"(?:.*?(?P<id>[0-9a-f]{64}))?"
)
_POD = re.compile(r"([a-z0-9.-]+)_([a-z0-9.-]+)_([0-9a-f-]+)")
_CONTAINER = re.compile(r"([a-z0-9.-]+)_([a-z0-9.-]+)_([a-z0-9-]+)-([0-9a-f]{64})\.log")


class PodNames:
    """What the kubelet calls the pods and containers of cgroups, as `learn` has found it. logs: its folder of logs."""

    def __init__(self, logs: Path = LOGS) -> None:
        self._logs = logs
        self._pods: dict[str, str] = {}  # by UID
        self._containers: dict[str, str] = {}  # by ID

    def learn(self, paths: Iterable[str] = ()) -> None:
        """Read all names that are there. paths: cgroups whose names are kept also when their pods have gone."""
        found = [_ids(path) for path in paths]
        uids, ids = {uid for uid, _ in found}, {id_ for _, id_ in found}
        self._pods = {uid: name for uid, name in self._pods.items() if uid in uids}
        self._containers = {id_: name for id_, name in self._containers.items() if id_ in ids}
        for namespace, pod, uid in _matches(self._logs / "pods", _POD):
            self._pods[uid] = f"{namespace}/{pod}"
        for pod, namespace, container, id_ in _matches(self._logs / "containers", _CONTAINER):
            self._containers[id_] = f"{namespace}/{pod}/{container}"

    def name(self, path: str) -> str | None:
        """NAMESPACE/POD/CONTAINER, or NAMESPACE/POD of what is a pod's alone; None: of no pod, or of none known."""
        uid, id_ = _ids(path)
        return self._containers.get(id_) or self._pods.get(uid)

    def is_settled(self, path: str) -> bool:
        """Whether there is nothing more to learn about a cgroup: its container has its name, or it is of no pod."""
        uid, id_ = _ids(path)
        return not uid or id_ in self._containers


def _ids(path: str) -> tuple[str, str]:
    """The UID of the pod and the ID of the container that a cgroup is of; empty: of none."""
    found = _PATH.search(path) if "kubepods" in path else None
    return (found["uid"].replace("_", "-"), found["id"] or "") if found else ("", "")


def _matches(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, ...]]:
    with contextlib.suppress(OSError):  # no kubelet writes there, or not for us
        for name in os.listdir(folder):  # noqa: PTH208 - names alone: there may be thousands
            if match := pattern.fullmatch(name):
                yield match.groups()
