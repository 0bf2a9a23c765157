"""Names of pods from the paths of their cgroups, as nodes of both drivers and three runtimes have them."""

from pathlib import Path

import pytest

from twctl.linux.pods import PodNames

UID, STATIC_UID = "2f4b7c1e-93d0-4a6b-8a57-0c9e5d1f7b23", "7b0a6e2f4c8d1935e7f20b4d6c8a1e35"
SLICE_UID = UID.replace("-", "_")
CART = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
PAUSE = "f" * 64
API = "9" * 64
LOGS = {
    "pods": [f"shop_cart-5d9f7c-x2x1q_{UID}", f"kube-system_kube-apiserver-node-1_{STATIC_UID}", "lost+found"],
    "containers": [
        f"cart-5d9f7c-x2x1q_shop_web-server-{CART}.log",
        f"kube-apiserver-node-1_kube-system_kube-apiserver-{API}.log",
        f"{'long' * 30}_{'name' * 15}_web-{CART[:50]}.log",  # cut off
    ],
}
WEB, POD = "shop/cart-5d9f7c-x2x1q/web-server", "shop/cart-5d9f7c-x2x1q"
BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE_UID}.slice"
PATHS = {
    # systemd: containerd, CRI-O, Docker
    f"{BURSTABLE}/cri-containerd-{CART}.scope": WEB,
    f"{BURSTABLE}/crio-{CART}.scope": WEB,
    f"{BURSTABLE}/crio-{CART}.scope/container": WEB,
    f"{BURSTABLE}/docker-{CART}.scope": WEB,
    f"/kubepods.slice/kubepods-pod{SLICE_UID}.slice/cri-containerd-{CART}.scope": WEB,
    f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SLICE_UID}.slice/cri-containerd-{CART}.scope": WEB,
    # cgroupfs: containerd and Docker, CRI-O, and a part of a container's own making
    f"/kubepods/burstable/pod{UID}/{CART}": WEB,
    f"/kubepods/pod{UID}/crio-{CART}": WEB,
    f"/kubepods/besteffort/pod{UID}/{CART}/workers/7": WEB,
    f"/system.slice/containerd.service/kubepods-burstable-pod{SLICE_UID}.slice:cri-containerd:{CART}": WEB,
    # what belongs to the pod alone; a pod from a file, whose UID is a hash
    f"{BURSTABLE}/cri-containerd-{PAUSE}.scope": POD,
    BURSTABLE: POD,
    f"/kubepods/burstable/pod{STATIC_UID}/{API}": "kube-system/kube-apiserver-node-1/kube-apiserver",
    f"/kubepods/burstable/pod{STATIC_UID}/{PAUSE}": "kube-system/kube-apiserver-node-1",
    # of no pod that is known
    f"/kubepods/burstable/pod{UID[:-1]}0/{PAUSE}": None,
    f"/kubepods/burstable/pod{UID}0/{PAUSE}": None,
    "/kubepods.slice/kubepods-burstable.slice": None,
    f"/system.slice/docker-{CART}.scope": None,
    "/system.slice/nginx.service": None,
    "/": None,
}


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """The kubelet's folders."""
    for folder, names in LOGS.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    return tmp_path


@pytest.mark.parametrize(("path", "expected"), PATHS.items())
def test_a_cgroup_has_the_name_of_its_pod(logs: Path, path: str, expected: str | None) -> None:
    """Namespace, pod and container, whichever driver and runtime made it."""
    names = PodNames(logs)
    names.learn()
    assert expected == names.name(path)


def test_a_name_that_the_kubelet_takes_away_is_kept_for_who_asks(logs: Path) -> None:
    """A pod has gone, its sessions have not; what nobody asks for is forgotten."""
    path, other = f"/kubepods/pod{UID}/{CART}", f"/kubepods/pod{STATIC_UID}/{API}"
    names = PodNames(logs)
    names.learn()
    for file in logs.glob("*/*"):
        file.unlink()
    names.learn([path])
    assert [WEB, None] == [names.name(path), names.name(other)]
    names.learn()
    assert names.name(path) is None


def test_it_is_known_whether_there_is_more_to_learn(logs: Path) -> None:
    """A container's link comes after its start; whatever is of no pod has its name already."""
    link = logs / "containers" / LOGS["containers"][0]
    link.unlink()
    path, names = f"/kubepods/pod{UID}/{CART}", PodNames(logs)
    names.learn()
    assert (POD, False) == (names.name(path), names.is_settled(path))
    link.touch()
    names.learn([path])
    assert (WEB, True) == (names.name(path), names.is_settled(path))
    assert names.is_settled("/system.slice/nginx.service")


def test_where_no_kubelet_writes_nothing_has_a_name(tmp_path: Path) -> None:
    """Not a node, or another folder of logs."""
    names = PodNames(tmp_path)
    names.learn()
    assert names.name(f"/kubepods/pod{UID}/{CART}") is None
