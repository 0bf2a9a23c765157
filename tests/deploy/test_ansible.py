"""deploy/ansible: the role, run by Ansible on a machine of its own, with the package.

The machine is this one's root file system under a layer that goes with it, with network, processes, bpffs and /run of
its own. There is no systemd: a stand-in for systemctl remembers what is enabled and what runs, and every call.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import ROOT
from twctl import __version__
from twctl.daemon.main import REFUSED

ROLES = ROOT / "deploy/ansible/roles"
CONFIG = "/etc/twctl.toml"
DROP_IN = "/etc/systemd/system/twctl.service.d/namespaces.conf"
PLAY = [{"hosts": "localhost", "connection": "local", "gather_subset": ["!all", "pkg_mgr"], "roles": ["twctl"]}]
# No lists of packages: what the package needs is installed, and apt would read them for seconds. No policy-rc.d: one of
# an image of Debian forbids to start anything. No documentation, as in such an image.
BEGIN = """
mount -t tmpfs twctl-test {folder}/layer && cd {folder}/layer && mkdir upper work root
mount -t overlay twctl-test -o lowerdir=/,upperdir=upper,workdir=work root && cd root
for each in {checkout} {folder}; do mkdir -p .$each; mount --rbind $each .$each; done
mount --rbind /dev dev; mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t bpf bpf sys/fs/bpf
mount -t tmpfs twctl-test run; mkdir -p run/systemd/system
mount -t tmpfs twctl-test var/lib/apt/lists; rm -f usr/sbin/policy-rc.d; install {folder}/systemctl usr/bin/systemctl
echo 'path-exclude=/usr/share/doc/*' >etc/dpkg/dpkg.cfg.d/no-documentation
exec chroot . sh -c 'echo ready; exec sleep infinity'
"""
SYSTEMCTL = """#!/bin/sh
wanted=/etc/systemd/system/multi-user.target.wants/twctl.service unit=/lib/systemd/system/twctl.service
case $* in
*is-enabled*) if [ -e $wanted ]; then echo enabled; else echo disabled; exit 1; fi ;;
*--version*) echo "systemd 252" ;;
*is-active*) [ -e /run/active ] ;;
show*StatusText*) cat /run/status ;;
show*)
    if [ -e $unit ]; then echo LoadState=loaded; else echo LoadState=not-found; fi
    if [ -e /run/active ]; then echo ActiveState=active; else echo ActiveState=inactive; fi
    ;;
*)
    echo "$*" | sed "s/'//g; s/--[a-z]* //g; s/twctl.service/twctl/" >>/run/calls
    case $* in
    *enable*) ln -sf $unit $wanted ;;
    *stop*) rm -f /run/active ;;
    *daemon-reload) ;;
    *start* | *reload*) touch /run/active && echo observing >/run/status ;;
    *) exit 1 ;;
    esac
    ;;
esac
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a machine of its own needs root")


@dataclass(frozen=True)
class Played:
    """What a play ended with. changed: tasks by name; calls: of systemctl, without questions."""

    failed: bool
    changed: list[str]
    calls: list[str]
    said: str


@dataclass(frozen=True)
class Machine:
    """One of its own. pid: its first process; folder: of this and that machine."""

    pid: int
    folder: Path
    package: Path

    def run(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a command there to its end."""
        inside = ("nsenter", "--mount", "--net", "--pid", "--root", "--wd", f"--target={self.pid}")
        return subprocess.run(
            [*inside, *words], capture_output=True, text=True, check=False, env=os.environ | environment
        )

    def output(self, *words: str) -> str:
        """What a command prints; it must succeed."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def has(self, path: str) -> bool:
        """Whether a file is there, be it a link that leads nowhere."""
        return self.run("sh", "-c", f"[ -e {path} ] || [ -L {path} ]").returncode == 0

    def installed(self) -> str:
        """What dpkg says of the package, its version and configuration files included."""
        return self.run("dpkg-query", "-W", "-f", "${db:Status-Abbrev}${Version}${Conffiles}", "twctl").stdout

    def play(self, *options: str, **variables: object) -> Played:
        """Run the role there, with the package if nothing else is said."""
        (self.folder / "play.yml").write_text(json.dumps(PLAY))
        given = {"twctl_package": str(self.package), "ansible_python_interpreter": "/usr/bin/python3"} | variables
        (self.folder / "vars.json").write_text(json.dumps(given))
        self.output("sh", "-c", ": >/run/calls")
        command = (sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-e", f"@{self.folder}/vars.json")
        environment = {"ANSIBLE_ROLES_PATH": str(ROLES), "ANSIBLE_HOME": "/run/ansible", "LC_ALL": "C.UTF-8"}
        environment["ANSIBLE_PIPELINING"] = "1"
        done = self.run(*command, *options, str(self.folder / "play.yml"), PYTHONDONTWRITEBYTECODE="1", **environment)
        tasks = re.findall(
            r"^TASK \[twctl : (.*?)\] \*+\n(.*?)(?=^\w+ \[|^PLAY)", done.stdout, re.DOTALL | re.MULTILINE
        )
        assert tasks, done.stdout + done.stderr
        return Played(
            done.returncode != 0,
            [name for name, told in tasks if re.search("^changed: ", told, re.MULTILINE)],
            self.output("cat", "/run/calls").splitlines(),
            done.stdout + done.stderr,
        )


@contextmanager
def machine(folder: Path, package: Path) -> Iterator[Machine]:
    """One that goes with the block."""
    (folder / "layer").mkdir()
    shutil.copy(package, folder / "twctl.deb")
    (folder / "systemctl").write_text(SYSTEMCTL)
    (folder / "systemctl").chmod(0o755)
    script = BEGIN.format(folder=folder, checkout=ROOT)
    own = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private")
    with subprocess.Popen([*own, "sh", "-ec", script], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == "ready\n"
            first = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
            yield Machine(first, folder, folder / "twctl.deb")
        finally:
            holder.kill()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Debian package of this checkout."""
    done = subprocess.run(
        [ROOT / "deploy/debian/build", tmp_path_factory.mktemp("package")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def host(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that the tests here share; each says first what state it needs."""
    with machine(tmp_path_factory.mktemp("host"), package) as made:
        yield made


def in_force(host: Machine) -> dict[str, object]:
    """Values that differ from the default, as twctl there reads them."""
    told = json.loads(host.output("/opt/twctl/bin/twctl", "config", "--json"))
    return {name: each["value"] for name, each in told.items() if each["source"] != "default"}


def test_a_new_machine_gets_all_of_it_once(package: Path, tmp_path: Path) -> None:
    """Check mode touches nothing; then package, configuration and service; then nothing is left to do."""
    config = {"mode": "truncate", "time_wait": {"local": 5}, "capacity": {"ipv4": {"local": 1024}}}
    config |= {"classes": {"local": ["10.0.0.0/8"]}}
    with machine(tmp_path, package) as host:
        looked = host.play("--check", "--diff", twctl_config=config)
        assert (False, []) == (looked.failed, looked.calls), looked.said
        assert ["Bring the package", "Write the configuration"] == looked.changed
        assert "+time_wait.local = 5" in looked.said
        assert ("", False) == (host.installed(), host.has(CONFIG))
        first = host.play(twctl_config=config)
        assert not first.failed, first.said
        assert host.installed().startswith(f"ii {__version__}")
        told = {"mode": "truncate", "time_wait.local": 5, "capacity.ipv4.local": 1024, "classes.local": ["10.0.0.0/8"]}
        assert told == in_force(host)
        assert ["daemon-reload", "start twctl", "restart twctl"] == [
            call for call in first.calls if "preset" not in call
        ]
        assert host.output("systemctl", "is-enabled", "twctl") == "enabled\n"
        again = host.play(twctl_config=config)
        assert (False, [], []) == (again.failed, again.changed, again.calls), again.said
        host.output("rm", "/run/active", "/etc/systemd/system/multi-user.target.wants/twctl.service")
        later = host.play(twctl_config=config)
        assert (False, ["enable twctl", "start twctl"]) == (later.failed, later.calls), later.said


def test_a_changed_configuration_is_reloaded_if_twctl_takes_it(host: Machine) -> None:
    """Else its own words say why not, and all stays as it was; check mode tells of the change alone."""
    host.play(twctl_config={"mode": "observe"})
    for options, calls in ((("--check",), []), ((), ["reload twctl"])):
        changed = host.play(*options, twctl_config={"time_wait": {"remote": 30}})
        assert (False, calls) == (changed.failed, changed.calls), changed.said
        assert "Write the configuration" in changed.changed
    before = host.output("cat", CONFIG)
    refused = host.play(twctl_config={"mode": "both"})
    assert (True, [], []) == (refused.failed, refused.changed, refused.calls)
    assert 'mode = \\"both\\" is not valid (allowed: observe, truncate, vestigial)' in refused.said
    assert before == host.output("cat", CONFIG)


def test_what_the_daemon_refuses_fails_each_play(host: Machine) -> None:
    """Until the configuration is another one; a check tells of it, too, unless it has something to do that may help."""
    host.play(twctl_config={"time_wait": {"remote": 31}})
    host.output("sh", "-c", f"echo 'observing{REFUSED}' >/run/status")
    for options in ((), ("--check",), ()):
        told = host.play(*options, twctl_config={"time_wait": {"remote": 31}})
        assert (True, [], []) == (told.failed, told.changed, told.calls), told.said
        assert f"(its status: observing{REFUSED})" in " ".join(told.said.split())
    for options, calls in ((("--check",), []), ((), ["reload twctl"])):
        told = host.play(*options, twctl_config={"time_wait": {"remote": 32}})
        assert (False, calls) == (told.failed, told.calls), told.said


def test_what_a_reload_cannot_change_starts_it_anew(host: Machine) -> None:
    """Another folder of pins, and that other namespaces are to be entered, also where they were allowed before."""
    file = host.folder / "fixed.toml"
    for text, action in (
        ('mode = "truncate"\n', ""),
        ('mode = "observe"\n', "reload"),
        ('pins = "/sys/fs/bpf/other"\n', "restart"),
        ('pins = "/sys/fs/bpf/other"\nprobe = "tracepoint"\n', "reload"),
        ("netns = [\n  'blue',\n]\n", "restart"),
        ("netns = [\n  'blue', 'green',\n]\n", "reload"),
        ("netns = []\n", "restart"),
    ):
        file.write_text(text)
        played = host.play(twctl_config_file=str(file), twctl_namespaces=True)
        assert not played.failed, played.said
        assert not action or [f"{action} twctl"] == played.calls


def test_a_file_is_put_there_as_it_is(host: Machine) -> None:
    """In place of the mapping, braces included."""
    text = '# {{ not a template }}\nlisten = "127.0.0.1:0"\n\n[time_wait]\nlocal = 7\n'
    (host.folder / "own.toml").write_text(text)
    played = host.play(twctl_config_file=str(host.folder / "own.toml"))
    assert not played.failed, played.said
    assert text == host.output("cat", CONFIG)


def test_other_namespaces_are_allowed_while_the_configuration_names_some(host: Machine) -> None:
    """By the drop-in of the package, after which systemd reads the unit anew and the service starts anew."""
    for config, there in (({"netns": ["blue"]}, True), ({"netns": [], "all_netns": False}, False)):
        played = host.play(twctl_config=config)
        assert not played.failed, played.said
        assert ["daemon-reload", "restart twctl"] == played.calls[-2:]
        assert there == host.has(DROP_IN)
        first = "Allow other network namespaces" if there else "Write the configuration"
        second = "Write the configuration" if there else "Allow no other network namespaces"
        changed = [each for each in played.changed if each in {first, second}]
        assert [first, second] == changed  # so that a play which stops between the two leaves a daemon that can start
        if there:
            assert (ROOT / "deploy/systemd/namespaces.conf").read_text() == host.output("cat", DROP_IN)


def test_a_newer_package_keeps_the_configuration(host: Machine) -> None:
    """Although its own default is another; the service is started anew."""
    config = {"time_wait": {"local": 9}}
    host.play(twctl_config=config)
    tree, newer = host.folder / "tree", host.folder / "newer.deb"
    subprocess.run(["dpkg-deb", "-R", host.package, tree], check=True)
    for name, old, new in (("DEBIAN/control", f"Version: {__version__}", "Version: 99.0"), (CONFIG[1:], "# ", "## ")):
        (tree / name).write_text((tree / name).read_text().replace(old, new))
    subprocess.run(["dpkg-deb", "-b", "-Znone", tree, newer], check=True, capture_output=True)
    played = host.play(twctl_config=config, twctl_package=str(newer))
    assert ["Bring the package", "Install the .deb"] == [each for each in played.changed if "Enable" not in each]
    assert host.installed().startswith("ii 99.0")
    assert ({"time_wait.local": 9}, "restart twctl") == (in_force(host), played.calls[-1])


def test_it_goes_without_a_trace(host: Machine) -> None:
    """The package's own scripts stop it, and the configuration goes, too; then nothing is left to do."""
    if not host.installed():
        host.play()
    looked = host.play("--check", twctl_state="absent", twctl_package="")
    assert (False, []) == (looked.failed, looked.calls), looked.said
    assert looked.changed
    assert host.has(CONFIG)
    gone = host.play(twctl_state="absent", twctl_package="")
    assert not gone.failed, gone.said
    assert "stop twctl" in gone.calls
    assert host.installed() == ""
    layer = f"{host.folder}/layer/upper"
    left = host.output("find", layer, "-name", "*twctl*", "!", "-type", "c", "!", "-path", f"{layer}{host.folder}/*")
    assert {f"{layer}{DROP_IN.rpartition('/')[0]}"} >= set(left.split())
    again = host.play(twctl_state="absent", twctl_package="")
    assert (False, [], []) == (again.failed, again.changed, again.calls), again.said


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"twctl_package": "twctl.zip"}, "twctl_package has to name a .deb or .rpm (it is 'twctl.zip')"),
        ({"twctl_config": {"mode": "observe"}, "twctl_config_file": "/etc/hosts"}, "only one can be given"),
        ({"twctl_state": "latest"}, "value of twctl_state must be one of: present, absent, got: latest"),
    ],
)
def test_wrong_variables_are_refused(host: Machine, variables: dict[str, object], said: str) -> None:
    """In one message, before anything is done."""
    refused = host.play(**variables)
    assert (True, [], []) == (refused.failed, refused.changed, refused.calls)
    assert said in refused.said
