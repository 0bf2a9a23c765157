"""The journal of changed sysctls, over a kernel that is a dictionary."""

import errno
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from twctl.errors import TwctlError
from twctl.linux import sysctl
from twctl.linux.sysctl import VITAL, Journal, Raised, journal_of

FIN, REUSE = "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_tw_reuse"


class FakeKernel:
    """Two namespaces with two sysctls each; writes can be made to fail."""

    def __init__(self) -> None:
        self.values = {(where, name): 60 if name == FIN else 2 for where in (None, "blue") for name in (FIN, REUSE)}
        self.cookies: dict[str | None, int] = {None: 1, "blue": 2}
        self.refused = ""
        self.seen = True
        self.journal: Path | None = None

    def cookie(self, netns: str | None) -> int:
        """See Access."""
        if netns not in self.cookies:
            message = f"cannot enter network namespace {netns}"
            raise TwctlError(message, "")
        return self.cookies[netns]

    def read(self, netns: str | None, name: str) -> int:
        """See Access."""
        if (netns, name) not in self.values:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return self.values[netns, name]

    def write(self, netns: str | None, name: str, value: int) -> None:
        """See Access."""
        if self.journal:
            assert self.journal.exists(), "written before it was journalled"
        if name == self.refused:
            raise OSError(errno.EINVAL, "Invalid argument")
        self.values[netns, name] = value

    @contextmanager
    def elsewhere(self, cookies: Collection[int]) -> Iterator[Mapping[int, str | None]]:
        """See Access."""
        yield {cookie: where for where, cookie in self.cookies.items() if cookie in cookies}

    def sees(self, _netns: str | None) -> bool:
        """See Access."""
        return self.seen


@pytest.fixture
def kernel() -> FakeKernel:
    """A fresh one."""
    return FakeKernel()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal lies; its folder is not there yet."""
    return tmp_path / "run" / "journal.json"


def test_what_was_there_comes_back_in_each_namespace(kernel: FakeKernel, path: Path) -> None:
    """Also through another Journal, as after a crash, and twice in a row."""
    before = dict(kernel.values)
    kernel.journal = path
    for where in (None, "blue"):
        Journal(path, kernel).set({FIN: 30, REUSE: 1}, where)
    assert {30, 1} == set(kernel.values.values())
    assert [Journal(path, kernel).restore(), Journal(path, kernel).restore()] == [[], []]
    assert (before, False) == (kernel.values, path.exists())


def test_what_a_crash_left_half_written_goes_with_the_rest(kernel: FakeKernel, path: Path) -> None:
    """Also where nothing had been changed yet."""
    path.parent.mkdir()
    path.with_suffix(".part").write_text("[{")
    assert [] == Journal(path, kernel).restore()
    assert [] == list(path.parent.iterdir())


def test_a_value_that_somebody_else_changed_is_left_alone_and_reported(kernel: FakeKernel, path: Path) -> None:
    """One line says which, and from what."""
    Journal(path, kernel).set({FIN: 30}, None)
    kernel.values[None, FIN] = 45
    assert Journal(path, kernel).restore() == [f"{FIN} is left at 45: somebody else changed it from 30"]
    assert kernel.values[None, FIN] == 45


def test_setting_again_keeps_the_first_value_and_what_is_no_longer_wanted_is_put_back(
    kernel: FakeKernel, path: Path
) -> None:
    """As at a reload of the configuration: other sysctls, and another set of namespaces."""
    for where in (None, "blue"):
        Journal(path, kernel).set({FIN: 30, REUSE: 1}, where)
    assert Journal(path, kernel).keep({FIN}, {kernel.cookies[None]}) == []
    Journal(path, kernel).set({FIN: 20}, None)
    assert {(None, FIN): 20, (None, REUSE): 2, ("blue", FIN): 60, ("blue", REUSE): 2} == kernel.values
    Journal(path, kernel).restore()
    assert kernel.values[None, FIN] == 60


def test_a_namespace_that_leaves_has_its_own_back_and_no_other(kernel: FakeKernel, path: Path) -> None:
    """Also where only a path leads there, as its name is gone; afterwards the journal does not know it."""
    for where in (None, "blue"):
        Journal(path, kernel).set({FIN: 30}, where)
    kernel.cookies["/path"], kernel.values["/path", FIN] = kernel.cookies.pop("blue"), 30
    assert Journal(path, kernel).leave(kernel.cookies["/path"], "/path") == []
    assert (30, 60) == (kernel.values[None, FIN], kernel.values["/path", FIN])
    assert Journal(path, kernel).restore() == []
    assert (60, False) == (kernel.values[None, FIN], path.exists())


def test_nothing_is_half_changed(kernel: FakeKernel, path: Path) -> None:
    """If the second of two cannot be set, the first is put back, and the error names the second."""
    before = dict(kernel.values)
    kernel.refused = REUSE
    with pytest.raises(TwctlError, match=REUSE):
        Journal(path, kernel).set({FIN: 30, REUSE: 1}, None)
    assert before == kernel.values


def test_a_sysctl_that_the_kernel_lacks_is_an_error_before_anything_changes(kernel: FakeKernel, path: Path) -> None:
    """One line, and no journal."""
    before = dict(kernel.values)
    with pytest.raises(TwctlError, match=r"this kernel has no net\.ipv4\.tcp_tw_reuse_delay"):
        Journal(path, kernel).set({FIN: 30, "net.ipv4.tcp_tw_reuse_delay": 1}, None)
    assert (before, False) == (kernel.values, path.exists())


def test_a_namespace_that_is_another_one_now_is_not_touched(kernel: FakeKernel, path: Path) -> None:
    """The name was given to a new namespace, or to none: one line says so, and nothing is to be put back any more."""
    afterwards: tuple[dict[str | None, int], ...] = ({"blue": 3}, {})
    for gone in afterwards:
        kernel.cookies["blue"] = 2
        Journal(path, kernel).set({FIN: 31, REUSE: 1}, "blue")
        del kernel.cookies["blue"]
        kernel.cookies |= gone
        assert ["network namespace blue is gone, and with it what was set there"] == Journal(path, kernel).restore()
        assert ([], 31) == (Journal(path, kernel).restore(), kernel.values["blue", FIN])


@pytest.mark.parametrize("name", [None, "blue"])
def test_a_namespace_is_found_by_whatever_name(kernel: FakeKernel, path: Path, name: str | None) -> None:
    """It was the daemon's own, and is not that of who puts it back; or its name has changed."""
    cookie = kernel.cookies[name]
    Journal(path, kernel).set({FIN: 30}, name)
    kernel.cookies |= {name: 7, "green": cookie}
    kernel.values["green", FIN] = kernel.values[name, FIN]
    kernel.values[name, FIN] = 41
    assert [] == [*Journal(path, kernel).changed()]
    assert [] == Journal(path, kernel).restore()
    assert (60, 41, False) == (kernel.values["green", FIN], kernel.values[name, FIN], path.exists())


@pytest.mark.parametrize(("where", "called"), [(None, "(own, cookie 1)"), ("blue", "blue")])
def test_what_cannot_be_reached_stays_to_be_put_back(
    kernel: FakeKernel, path: Path, where: str | None, called: str
) -> None:
    """Where a namespace may be that cannot be entered. One line says where to do it; a later one that can does it."""
    Journal(path, kernel).set({FIN: 30, REUSE: 1}, where)
    cookie = kernel.cookies.pop(where)
    kernel.cookies[where or "other"], kernel.seen = 7, False
    what = f"what was set in network namespace {called} is not put back: it cannot be entered from here"
    line = f"{what} (run 'twctl release' inside that network namespace)"
    for _ in range(2):
        assert [line] == Journal(path, kernel).restore()
    assert [line] == Journal(path, kernel).keep({FIN}, {7})
    kernel.cookies[where] = cookie
    assert [] == Journal(path, kernel).restore()
    assert (60, 2, False) == (kernel.values[where, FIN], kernel.values[where, REUSE], path.exists())


def test_where_the_guard_stands_tcp_max_tw_buckets_has_to_come_back(kernel: FakeKernel, path: Path) -> None:
    """Else who asks is told where that is: in a namespace that cannot be entered, or that cannot be written."""
    for where in (None, "blue"):
        kernel.values[where, VITAL] = 9
        Journal(path, kernel).set({FIN: 30, VITAL: 0}, where)
    kernel.refused = VITAL
    with pytest.raises(TwctlError, match=f"{VITAL} of network namespace blue is not put back"):
        Journal(path, kernel).leave(kernel.cookies["blue"], strict=True)
    with pytest.raises(TwctlError, match=f"{VITAL} of network namespace blue is not put back: .*Invalid argument"):
        Journal(path, kernel).restore(strict=True)
    assert {(None, FIN): 60, ("blue", FIN): 60, (None, VITAL): 0, ("blue", VITAL): 0}.items() <= kernel.values.items()
    kernel.refused = ""
    del kernel.cookies["blue"]
    unseen = Journal(path, kernel, unseen=lambda: {23})
    with pytest.raises(TwctlError, match=r"namespace blue is not put back: .* \(run .* inside .* \(inode 23\)\)"):
        unseen.restore(strict=True)
    assert 1 == len(unseen.restore())
    assert (9, 0) == (kernel.values[None, VITAL], kernel.values["blue", VITAL])
    assert 1 == len(Journal(path, kernel).restore(strict=True))
    assert not path.exists()


def test_a_sysctl_that_is_there_no_more_is_not_remembered(kernel: FakeKernel, path: Path) -> None:
    """Its module was unloaded."""
    Journal(path, kernel).set({FIN: 30}, None)
    del kernel.values[None, FIN]
    assert 1 == len(Journal(path, kernel).restore())
    assert not path.exists()


def test_the_journal_is_for_root_alone(kernel: FakeKernel, path: Path) -> None:
    """Its folder has mode 0700, and it is JSON that a person can read."""
    Journal(path, kernel).set({FIN: 30}, None)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(path.read_text())[0]["before"] == 60


def test_a_journal_that_cannot_be_written_is_an_error_before_anything_changes(kernel: FakeKernel, path: Path) -> None:
    """One line that says where it was to be, as in a container whose root is read-only."""
    path.parent.symlink_to("none")  # nothing can be made there
    with pytest.raises(
        TwctlError, match=rf"^cannot write to {path.parent} what .*: .+ \(\[sysctl\] and mode vestigial need it"
    ):
        Journal(path, kernel).set({FIN: 30}, None)
    assert 60 == kernel.values[None, FIN]


def test_what_is_set_last_is_put_back_first(kernel: FakeKernel, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also once the first was set again."""
    Journal(path, kernel).set({FIN: 30, REUSE: 1}, None)
    Journal(path, kernel).set({FIN: 20}, None)
    written: list[tuple[str, int]] = []
    monkeypatch.setattr(kernel, "write", lambda _, name, value: written.append((name, value)))
    assert Journal(path, kernel).restore() == []
    assert [(REUSE, 2), (FIN, 60)] == written


def test_what_was_set_before_is_put_back_in_the_order_of_the_last_time(
    kernel: FakeKernel, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mode that sets it last may follow one that had set it alone."""
    Journal(path, kernel).set({REUSE: 0}, None)
    Journal(path, kernel).set({FIN: 30, REUSE: 1}, None)
    written: list[str] = []
    monkeypatch.setattr(kernel, "write", lambda _, name, __: written.append(name))
    assert Journal(path, kernel).restore() == []
    assert [REUSE, FIN] == written


def test_a_path_leads_to_the_namespace_when_another_has_its_name(kernel: FakeKernel, path: Path) -> None:
    """The other one is left as it is, and the first is put back through its path."""
    Journal(path, kernel).set({FIN: Raised(60)}, "blue")
    kernel.cookies |= {"/proc/self/fd/23": 2, "blue": 3}
    kernel.values["/proc/self/fd/23", FIN], kernel.values["blue", FIN] = 120, 60
    Journal(path, kernel).set({FIN: Raised(0)}, "blue", "/proc/self/fd/23")
    assert (60, 60) == (kernel.values["/proc/self/fd/23", FIN], kernel.values["blue", FIN])
    assert [("blue", 2)] == [(each["namespace"], each["cookie"]) for each in json.loads(path.read_text())]
    Journal(path, kernel).set({FIN: Raised(60)}, "blue", "/proc/self/fd/23")
    assert (120, 60) == (kernel.values["/proc/self/fd/23", FIN], kernel.values["blue", FIN])
    assert Journal(path, kernel).leave(2, "/proc/self/fd/23") == []
    assert (60, 60) == (kernel.values["/proc/self/fd/23", FIN], kernel.values["blue", FIN])


@pytest.mark.parametrize(("before", "set_to"), [(30, 30), (60, 60), (3600, 60)])
def test_a_value_may_have_an_upper_bound(kernel: FakeKernel, path: Path, before: int, set_to: int) -> None:
    """What was there comes back all the same."""
    kernel.values[None, FIN] = before
    for wanted in (Raised(60), Raised(0, most=60)):
        Journal(path, kernel).set({FIN: wanted}, None)
    assert set_to == kernel.values[None, FIN]
    assert Journal(path, kernel).restore() == []
    assert before == kernel.values[None, FIN]


def test_a_value_is_raised_from_what_it_was(kernel: FakeKernel, path: Path) -> None:
    """However often, and by whatever; where somebody set another meanwhile, from that."""
    for by in (60, 0, 60):
        Journal(path, kernel).set({FIN: Raised(by)}, None)
        assert kernel.values[None, FIN] == 60 + by
    kernel.values[None, FIN] = 41
    Journal(path, kernel).set({FIN: Raised(60)}, None)
    assert kernel.values[None, FIN] == 101
    assert Journal(path, kernel).restore() == []
    assert kernel.values[None, FIN] == 41


@pytest.mark.parametrize("crash", [True, False])
def test_a_crash_between_journal_and_sysctl_is_no_change_of_somebody_else(
    kernel: FakeKernel, path: Path, monkeypatch: pytest.MonkeyPatch, *, crash: bool
) -> None:
    """The second value is in the journal and not yet in the kernel, or in both."""
    Journal(path, kernel).set({FIN: 30}, None)
    with monkeypatch.context() as patched:
        if crash:
            patched.setattr(kernel, "write", lambda *_: None)
        Journal(path, kernel).set({FIN: 20}, None)
    assert (30 if crash else 20) == kernel.values[None, FIN]
    assert Journal(path, kernel).restore() == []
    assert kernel.values[None, FIN] == 60


def test_the_journal_of_an_earlier_version_is_understood(kernel: FakeKernel, path: Path) -> None:
    """It has one number for what was written."""
    path.parent.mkdir()
    path.write_text(json.dumps([{"namespace": None, "cookie": 1, "name": FIN, "before": 60, "written": 30}]))
    kernel.values[None, FIN] = 30
    assert [(FIN, 60, 30)] == [(each.name, each.before, each.now) for each in Journal(path, kernel).changed()]
    assert Journal(path, kernel).restore() == []
    assert kernel.values[None, FIN] == 60


def test_an_earlier_versions_journal_is_found_and_replaced(kernel: FakeKernel, path: Path) -> None:
    """It was named otherwise; what it says is put back, and the first change puts a new one in its place."""
    before, earlier = dict(kernel.values), path.with_name("earlier.json")
    Journal(earlier, kernel).set({FIN: 30}, None)
    journal = Journal(path, kernel, earlier)
    journal.set({REUSE: 1}, None)
    assert [path] == [*path.parent.iterdir()]
    assert (30, 1) == (kernel.values[None, FIN], kernel.values[None, REUSE])
    assert ([], before) == (journal.restore(), kernel.values)
    Journal(earlier, kernel).set({FIN: 30}, None)
    assert ([], before, []) == (journal.restore(), kernel.values, [*path.parent.iterdir()])


def test_journals_of_two_folders_are_two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where their last names are the same; each is found by its whole path."""
    monkeypatch.setattr(sysctl, "FOLDER", tmp_path)
    monkeypatch.setattr(sysctl, "Kernel", FakeKernel)
    folders = [Path("/sys/fs/bpf/twctl"), Path("/sys/fs/bpf/a b/twctl")]
    for folder in folders:
        journal_of(folder).set({FIN: 30}, None)
    assert 2 == len([*tmp_path.iterdir()])
    for folder in folders:
        assert [FIN] == [each.name for each in journal_of(folder).changed()]
