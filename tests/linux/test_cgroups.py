"""Cgroups by number, and the units they belong to, from a hierarchy of the test."""

from pathlib import Path

import pytest

from twctl.linux.cgroups import cgroup_paths, unit_of

UNITS = {
    "/": "/",
    "/system.slice/nginx.service": "nginx.service",
    "/user.slice/user-1000.slice/session-3.scope": "session-3.scope",
    "/user.slice/user-1000.slice/user@1000.service/app.slice/app-foot.scope": "app-foot.scope",
    "/system.slice/nginx.service/workers": "nginx.service",
    "/system.slice/system-getty.slice/getty@tty1.service": "getty@tty1.service",
    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12.slice/cri-containerd-ab12.scope": (
        "cri-containerd-ab12.scope"
    ),
    "/kubepods/burstable/pod12/ab12": "/kubepods/burstable/pod12/ab12",
    "/docker/ab12": "/docker/ab12",
    "/a.services/b": "/a.services/b",
}


@pytest.mark.parametrize(("path", "unit"), UNITS.items())
def test_a_unit_is_the_innermost_of_its_path(path: str, unit: str) -> None:
    """Services and scopes are units, slices are not; without systemd it is the path."""
    assert unit == unit_of(path)


def mounted(tmp_path: Path, *kinds: str) -> tuple[Path, Path]:
    """A fake /proc with a mount of each kind, and the folder of the last one."""
    folder, proc = tmp_path / "a cgroup", tmp_path / "proc"
    (folder / "system.slice/nginx.service").mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    where = str(folder).replace(" ", "\\040")
    rows = [f"{kind} {'/' if kind != kinds[-1] else where} {kind} rw 0 0\n" for kind in kinds]
    (proc / "self/mounts").write_text("".join(rows))
    return proc, folder


def test_every_cgroup_is_known_by_its_number(tmp_path: Path) -> None:
    """The root too; a blank in the place of the mount, and files between the folders, do no harm."""
    proc, folder = mounted(tmp_path, "ext4", "cgroup", "cgroup2")
    (folder / "cgroup.procs").touch()
    expected = {"": "/", "system.slice": "/system.slice", "system.slice/nginx.service": "/system.slice/nginx.service"}
    assert {(folder / each).stat().st_ino: path for each, path in expected.items()} == cgroup_paths(proc)


def test_without_a_hierarchy_of_version_2_no_cgroup_has_a_name(tmp_path: Path) -> None:
    """Where nothing is mounted but version 1."""
    proc, _ = mounted(tmp_path, "ext4", "cgroup")
    assert {} == cgroup_paths(proc)


def test_the_tree_of_the_host_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's own part of it is mounted, too, and before."""
    monkeypatch.setattr("twctl.linux.cgroups.MOUNTED", tmp_path / "host")
    proc, host = tmp_path / "proc", tmp_path / "host/unified"
    (host / "kubepods/pod1").mkdir(parents=True)
    (tmp_path / "own").mkdir()
    (proc / "self").mkdir(parents=True)
    mounts = [f"cgroup2 {each} cgroup2 ro 0 0\n" for each in (tmp_path / "own", host)]
    (proc / "self/mounts").write_text("".join(mounts))
    assert {"/", "/kubepods", "/kubepods/pod1"} == set(cgroup_paths(proc).values())
