"""The guard's links on the devices of a namespace: found again, put in their place, taken away."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from tests.load import foreign
from tests.load.foreign import TCX
from tests.load.guards import BOTH, guarded, programs, standing
from tests.load.netns import Namespace, namespace
from twctl.errors import TwctlError
from twctl.linux import tcx
from twctl.linux.devices import Device, devices
from twctl.linux.netlink import RouteNetlink
from twctl.linux.tc import EGRESS, INGRESS
from twctl.modes.links import Links, array_of, is_any_left, own_folders, remove_links

pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
        reason="BPF needs root; TWCTL_TEST_KERNEL=1 forces it",
    ),
    pytest.mark.skipif(not tcx.is_available(), reason="the kernel has no TCX (Linux 6.6)"),
]

SIDES = (INGRESS, EGRESS)
USER = 65534


class Host:
    """A namespace, pins, and programs that stand for the guard."""

    def __init__(self, ns: Namespace, requests: IPRoute, root: Path, guards: dict[int, int]) -> None:
        self.ns, self.folder, self._requests, self._guards = ns, root / "guard", requests, guards
        self._array = array_of(self.folder, guards)

    def links(self, folder: Path | None = None) -> Links:
        """As a daemon that has just started has them. folder: of another twctl."""
        return Links(folder or self.folder, self.ns.name, self._array)

    def device(self, name: str = "lo") -> Device:
        """By its name."""
        return next(each for each in devices(self._requests) if each.name == name)

    def mend(self, links: Links, class_id: int = 17) -> int:
        """On lo, after a look."""
        links.look([self.device()])
        return links.mend(self.device(), SIDES, class_id)

    def close(self) -> None:
        """Let go of the array."""
        os.close(self._array)


@pytest.fixture
def host() -> Iterator[Host]:
    """With lo."""
    root = Path(f"/sys/fs/bpf/twctl-test-{os.getpid()}-links")
    with ExitStack() as stack:
        ns = stack.enter_context(namespace())
        requests = stack.enter_context(stack.enter_context(closing(RouteNetlink(ns.name))).requests())
        fds = stack.enter_context(foreign.loaded())
        root.mkdir(mode=0o700)
        stack.callback(root.rmdir)
        made = Host(ns, requests, root, dict.fromkeys(SIDES, fds["ends"]))
        stack.callback(remove_links, made.folder)
        stack.callback(made.close)
        yield made


def test_links_are_put_once_and_found_again(host: Host) -> None:
    """A daemon that starts anew has the same ones, with labels of its own: nothing was missing."""
    links = host.links()
    assert (2, BOTH) == (host.mend(links), guarded(host.ns, "lo"))
    before = programs(host.ns)
    assert (0, before) == (host.mend(links), programs(host.ns))
    assert (0, BOTH) == (host.mend(host.links()), guarded(host.ns, "lo"))
    assert not before & programs(host.ns)


def test_another_class_id_takes_effect_in_place(host: Host) -> None:
    """By a new label in the same link."""
    links = host.links()
    host.mend(links)
    pins = sorted((host.folder / "links").iterdir())
    before = programs(host.ns)
    assert 0 == host.mend(links, class_id=18)
    assert (pins, set()) == (sorted((host.folder / "links").iterdir()), before & programs(host.ns))


def test_who_comes_before_it_is_overtaken(host: Host) -> None:
    """By new links, before the old ones go; then nothing is left to do."""
    links = host.links()
    host.mend(links)
    with (
        foreign.loaded() as fds,
        foreign.attached(host.ns, "lo", TCX, {"around": fds["around"]}, {"ends": fds["ends"]}),
    ):
        assert 2 == host.mend(links)
        found = standing(host.ns, "lo")
        assert ["twctl_ingress", "around"] == [name for name, _ in found["ingress"]]
        assert ["ends", "twctl_egress"] == [name for name, _ in found["egress"]]
        assert links.has_others(tcx.LO, EGRESS)
        assert 0 == host.mend(links)


def test_a_crash_between_two_links_leaves_none_too_many(host: Host) -> None:
    """Both are pinned then; the one in its place stays."""
    host.mend(host.links())
    links = host.links()
    links.put(host.device(), INGRESS, 17)
    assert [*BOTH[:1], *BOTH] == guarded(host.ns, "lo")
    assert (0, BOTH) == (host.mend(host.links()), guarded(host.ns, "lo"))


def test_links_of_a_device_that_has_gone_are_taken_away(host: Host) -> None:
    """Also from the namespace that it has gone to."""
    links = host.links()
    host.mend(links)
    host.ns.ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    links.look([host.device("veth0")])
    links.mend(host.device("veth0"), SIDES, 17)
    with namespace() as other:
        host.ns.ip("link", "set", "veth0", "netns", other.name)
        assert BOTH == guarded(other, "veth0")
        host.links().keep({tcx.LO})
        assert ([], BOTH) == (guarded(other, "veth0"), guarded(host.ns, "lo"))


@pytest.mark.parametrize("name", ["other", "prod/twctl", "a/b/c/twctl"])
def test_another_twctls_links_are_told_by_its_pins(host: Host, name: str) -> None:
    """They stay where they are, and ours may be pinned deeper than they are."""
    host.mend(host.links())
    other = host.folder.parents[1] / f"{host.folder.parent.name}-{name}"
    with pytest.raises(TwctlError, match=f"lo has the guard of another twctl, which pins at {host.folder.parent}"):
        host.mend(host.links(other / "guard"))
    assert BOTH == guarded(host.ns, "lo")


@pytest.mark.parametrize("name", ["twctl", "a/b/twctl"])
def test_another_twctls_links_are_found_deeper(host: Host, name: str) -> None:
    """Where it pins in a folder below the one that we pin in."""
    host.mend(host.links())
    root = host.folder.parent
    deeper = Path(f"{root}-prod") / name
    with ExitStack() as stack:
        for folder in reversed(deeper.relative_to(root.parent).parents[:-1]):
            (root.parent / folder).mkdir()
            stack.callback((root.parent / folder).rmdir)
        root.rename(deeper)
        stack.callback(deeper.rename, root)
        with pytest.raises(TwctlError, match=f"which pins at {deeper}"):
            host.mend(host.links(Path(f"{root}-other/guard")))


def test_what_a_user_has_made_there_is_nobody_s_guard(host: Host) -> None:
    """Anybody may make folders in a bpffs, also one that is called as a pin would be."""
    root = Path(f"{host.folder.parent}-user")
    fake = root / "guard/links" / f"{host.ns.path.stat().st_ino}-{tcx.LO}-ingress-1"
    with ExitStack() as stack:
        for folder in (root, root / "guard", root / "guard/links", fake):
            folder.mkdir()
            stack.callback(folder.rmdir)
            os.chown(folder, USER, USER)
        fds = stack.enter_context(foreign.loaded())
        stack.enter_context(foreign.attached(host.ns, "lo", TCX, {"around": fds["around"]}, {}))
        assert 2 == host.mend(host.links())


def test_only_own_folders_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a user's symbolic link leads to, and where another folder goes as it is looked at."""
    for each in ("a/b/c/d", "users/a", "gone/a"):
        (tmp_path / each).mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    os.chown(tmp_path / "users", USER, USER)
    inside = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: inside(path if path.name != "gone" else path / "none"))
    found = {str(each.relative_to(tmp_path)) for each in own_folders(tmp_path, 3)}
    assert {"a", "a/b", "a/b/c", "gone"} == found


def test_all_are_removed_without_entering_a_namespace(host: Host) -> None:
    """But for those that stay; the array goes with the last."""
    host.mend(host.links())
    remove_links(host.folder, stay=(host.ns.path.stat().st_ino,))
    assert (BOTH, True) == (guarded(host.ns, "lo"), is_any_left(host.folder))
    remove_links(host.folder)
    assert ([], False, False) == (guarded(host.ns, "lo"), is_any_left(host.folder), host.folder.exists())
