"""deploy/container: both engines get the same words, and the rights that the manifests of deploy/kubernetes give."""

import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator

import pytest

from tests import ROOT
from tests.load.kustomize import build
from twctl import __version__
from twctl.config.keys import KEYS

CONTAINER = ROOT / "deploy/container"
BLOCKS = dict(re.findall(r"<!-- run ([\w ]+) -->\n```sh\n(.*?)```", (CONTAINER / "README.md").read_text(), re.DOTALL))
# A pod's own: its Secret, its ConfigMap, what the kubelet calls containers.
KUBERNETES = {"/etc/twctl.toml", "/etc/twctl-tls", "/var/log/pods", "/var/log/containers"}


def words(name: str) -> list[str]:
    """Of the line that starts a container."""
    (line,) = re.findall(r"^(?:podman|docker) run (?:.*\\\n)*.*", BLOCKS[name], re.MULTILINE)
    return shlex.split(line)


def values(name: str, option: str) -> Iterator[str]:
    """What follows each occurrence of an option."""
    return (after for word, after in itertools.pairwise(words(name)) if word == option)


@pytest.mark.parametrize("name", ["observe", "vestigial"])
def test_docker_is_given_what_podman_is(name: str) -> None:
    """The first word differs."""
    assert BLOCKS[f"docker {name}"].replace("docker run", "podman run") == BLOCKS[f"podman {name}"]


@pytest.mark.parametrize(("name", "overlay"), [("observe", "base"), ("vestigial", "vestigial")])
def test_the_rights_are_those_of_the_manifests(name: str, overlay: str) -> None:
    """Capabilities, mounts and whether they can be written, SELinux's type; a read-only root, and none privileged."""
    pod = build(overlay)["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    context = container["securityContext"]
    assert context["capabilities"]["drop"] == ["ALL"]
    assert list(values(f"podman {name}", "--cap-drop")) == ["all"]
    assert sorted(values(f"podman {name}", "--cap-add")) == sorted(context["capabilities"]["add"])
    paths = {each["name"]: each["hostPath"]["path"] for each in pod["volumes"] if "hostPath" in each}
    mounted = {
        (paths[each["name"]], each["mountPath"], each.get("readOnly", False))
        for each in container["volumeMounts"]
        if each["name"] in paths and each["mountPath"] not in KUBERNETES
    }
    volumes = [each.split(":") for each in values(f"podman {name}", "--volume") if "docker" not in each]
    assert mounted == {(from_, to, "ro" in "".join(options).split(",")) for from_, to, *options in volumes}
    assert set(values(f"podman {name}", "--security-opt")) == {
        "no-new-privileges",
        f"label=type:{context['seLinuxOptions']['type']}",
    }
    assert {"--read-only", "host"} <= set(words(f"podman {name}"))
    assert [] == [word for word in words(f"podman {name}") if word.startswith(("--privileged", "--pid", "--userns"))]


def test_the_image_has_this_version_and_finds_the_pins_where_the_lines_mount_them() -> None:
    """Its own configuration says nothing else."""
    assert {f"twctl:{__version__}"} == set(re.findall(r"\btwctl:\d\S*", (CONTAINER / "README.md").read_text()))
    config = tomllib.loads((CONTAINER / "twctl.toml").read_text())
    assert config == {"pins": str(KEYS["pins"].default).replace("/sys/fs/bpf", "/bpf")}
    assert "/sys/fs/bpf:/bpf" in values("podman observe", "--volume")
