"""deploy/kubernetes: Kubernetes takes it, its rights are those of the systemd unit, and nothing in it is made up."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deploy import monitoring
from tests import ROOT
from tests.load.container import NODE_IP
from tests.load.kubernetes import VERSIONS, validate
from tests.load.kustomize import KUBERNETES, Manifest, build
from tests.load.monitoring import ALERTS, DASHBOARD, RULES, program, rules
from twctl import __version__
from twctl.commands.cli import app
from twctl.config.config import Config, Tls, load
from twctl.config.keys import Mode
from twctl.linux.cgroups import MOUNTED as CGROUPS
from twctl.linux.pods import LOGS
from twctl.linux.procsys import MOUNTED
from twctl.linux.sysctl import FOLDER

OVERLAYS = ("base", "pods", "vestigial", "release")
FOLDERS = (*OVERLAYS, "monitoring")
UNIT = ROOT / "deploy/systemd"


def container(overlay: str) -> Manifest:
    """The only one."""
    (found,) = build(overlay)["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    return dict(found)


def host_paths(overlay: str) -> dict[str, tuple[str, bool, str | None]]:
    """Host path of each volume to where it is mounted, whether read-only, and how mounts propagate."""
    volumes = build(overlay)["DaemonSet"]["spec"]["template"]["spec"]["volumes"]
    paths = {each["name"]: each["hostPath"]["path"] for each in volumes if "hostPath" in each}
    return {
        paths[each["name"]]: (each["mountPath"], each.get("readOnly", False), each.get("mountPropagation"))
        for each in container(overlay)["volumeMounts"]
        if each["name"] in paths
    }


def capabilities(file: str) -> set[str]:
    """What a unit file gives."""
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", (UNIT / file).read_text(), re.MULTILINE)
    return {name.removeprefix("CAP_") for line in lines for name in line.split()}


def config(overlay: str, file: Path) -> Config:
    """What the daemon runs with, read as it reads it."""
    data = build(overlay)["ConfigMap"]["data"]["twctl.toml"]
    file.write_text(data)
    words = container(overlay)["args"]
    (listen,) = (word.partition("=")[2] for word in words if word.startswith("--listen="))
    options: dict[str, object] = {"all_netns": "--all-netns" in words, "listen": listen.replace("$(NODE_IP)", NODE_IP)}
    options |= {"mode": words[words.index("--mode") + 1]} if "--mode" in words else {}
    return load(file, {name: value for name, value in options.items() if value}).config


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", FOLDERS)
def test_kubernetes_takes_it(overlay: str, version: str) -> None:
    """Every object, strictly: no key that the schema does not have."""
    for each in build(overlay).values():
        validate(each, version)


@pytest.mark.parametrize("overlay", FOLDERS)
def test_kustomize_builds_the_same(overlay: str) -> None:
    """`kubectl kustomize` and this test's own builder agree, but for the hash in a name."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", KUBERNETES / overlay], capture_output=True, text=True, check=True)
    built = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    # It gives a folded text one more line break before an indented line, where it writes that anew.
    theirs, ours = (
        re.sub(r'"twctl-[a-z0-9]{10}"', '"twctl-HASH"', json.dumps(each, sort_keys=True, indent=1)).replace(
            r"\n\n", r"\n"
        )
        for each in (built, build(overlay))
    )
    assert theirs == ours


def test_the_capabilities_are_those_of_the_unit() -> None:
    """Each overlay adds what its mode needs and no more; all others are dropped."""
    base, namespaces = capabilities("twctl.service"), capabilities("namespaces.conf")
    assert namespaces == {"SYS_ADMIN"}
    wanted = {"base": base, "pods": base | namespaces, "vestigial": base | namespaces}
    for overlay, names in wanted.items():
        given = container(overlay)["securityContext"]["capabilities"]
        assert (["ALL"], names) == (given["drop"], set(given["add"]))


def test_each_capability_has_its_reason() -> None:
    """A comment in the manifest says what it is for."""
    text = "".join(file.read_text() for file in KUBERNETES.glob("*/daemonset.yaml"))
    for name in container("vestigial")["securityContext"]["capabilities"]["add"]:
        assert re.search(rf"- {name} # |# {name}: ", text), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_is_confined(overlay: str) -> None:
    """Not privileged, no way to more rights, a read-only root, the runtime's seccomp profile, no token, no PIDs."""
    pod, context = build(overlay)["DaemonSet"]["spec"]["template"]["spec"], container(overlay)["securityContext"]
    assert (False, False, True) == tuple(
        context[name] for name in ("privileged", "allowPrivilegeEscalation", "readOnlyRootFilesystem")
    )
    assert pod["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostPID", "hostIPC", "shareProcessNamespace"} & pod.keys()


def test_the_host_s_files_are_few_and_each_has_its_use(tmp_path: Path) -> None:
    """The pins, the journal, and names of pods; names of namespaces; where sysctls are written, those. No other."""
    pins = config("base", tmp_path / "twctl.toml").pins
    base = {
        "/sys/fs/bpf": (str(pins.parent), False, None),
        str(FOLDER): (str(FOLDER), False, None),
        "/sys/fs/cgroup": (str(CGROUPS), True, None),
        **{f"{LOGS}/{name}": (f"{LOGS}/{name}", True, None) for name in ("pods", "containers")},
    }
    pods = base | {"/run/netns": ("/run/netns", True, "HostToContainer")}
    vestigial = pods | {"/proc/sys/net": (str(MOUNTED / "net"), False, None)}
    assert {"base": base, "pods": pods, "vestigial": vestigial, "release": vestigial} == {
        overlay: host_paths(overlay) for overlay in OVERLAYS
    }


def test_the_configuration_and_the_arguments_are_twctl_s(tmp_path: Path) -> None:
    """They parse; mode and namespaces are what the overlay's name says; the probes ask the port that is served."""
    wanted = {"base": (Mode.OBSERVE, False), "pods": (Mode.OBSERVE, True), "vestigial": (Mode.VESTIGIAL, True)}
    told = CliRunner().invoke(app, ["run", "--help"]).stdout
    for overlay, expected in wanted.items():
        made, found = config(overlay, tmp_path / "twctl.toml"), container(overlay)
        assert expected == (made.mode, made.all_netns)
        assert found["args"][0] == "run"
        assert all(f"{word.partition('=')[0]} " in told for word in found["args"] if word.startswith("--"))
        assert {made.listen.port} == {each["containerPort"] for each in found["ports"]}
        probes = [found[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
        assert [{"path": "/healthy", "port": "metrics", "scheme": "HTTPS"}] * 3 == probes


def test_metrics_are_served_at_the_node_s_address_alone_and_with_tls(tmp_path: Path) -> None:
    """The files of the configuration are those of the Secret, which nobody but root can read."""
    for overlay in ("base", "pods", "vestigial"):
        made, pod = config(overlay, tmp_path / "twctl.toml"), build(overlay)["DaemonSet"]["spec"]["template"]["spec"]
        assert made.listen.host == NODE_IP
        (node_ip,) = container(overlay)["env"]
        assert node_ip == {"name": "NODE_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}
        (folder,) = (each["mountPath"] for each in container(overlay)["volumeMounts"] if each["name"] == "tls")
        assert made.tls == Tls(Path(folder, "tls.crt"), Path(folder, "tls.key"), None)
        (secret,) = (each["secret"] for each in pod["volumes"] if "secret" in each)
        assert secret == {"secretName": "twctl-tls", "defaultMode": 0o400}


def test_selinux_s_type_has_its_reason() -> None:
    """One that may use bpf(2); the manifest says why."""
    assert {"type": "spc_t"} == container("base")["securityContext"]["seLinuxOptions"]
    assert "container_t may not use bpf(2)" in (KUBERNETES / "base/daemonset.yaml").read_text()


def test_rules_and_dashboard_are_those_of_prometheus_and_grafana() -> None:
    """What deploy/monitoring.py writes stands there, and is the same as what is deployed without Kubernetes."""
    for path, text in monitoring.files().items():
        assert text == path.read_text(), "python deploy/monitoring.py"
    made = build("monitoring")
    (group,) = made["PrometheusRule"]["spec"]["groups"]
    assert [*rules(RULES), *rules(ALERTS)] == group["rules"]
    assert json.loads(DASHBOARD.read_text()) == json.loads(made["ConfigMap"]["data"]["twctl.json"])


def test_promtool_takes_the_rules_of_the_operator(tmp_path: Path) -> None:
    """A PrometheusRule's spec is a file of rules."""
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump(build("monitoring")["PrometheusRule"]["spec"]))
    subprocess.run([program("promtool"), "check", "rules", str(file)], check=True, capture_output=True)


def test_only_where_nothing_is_lost_by_it_a_stop_releases() -> None:
    """Not in mode vestigial: the guard goes on for its sessions while the pod is replaced."""
    assert {"base": True, "pods": True, "vestigial": False} == {
        overlay: "--release" in container(overlay)["args"] for overlay in ("base", "pods", "vestigial")
    }
    command = container("release")["command"]
    assert shlex.split(command[2])[:2] == ["/opt/twctl/bin/twctl", "release"]


def test_the_image_is_this_version() -> None:
    """The manifests' tag, and what the Dockerfile's first line builds."""
    assert container("base")["image"] == f"twctl:{__version__}"
    text = (KUBERNETES / "Dockerfile").read_text()
    assert f"-t twctl:{__version__} " in text.splitlines()[0]
    assert 'ENTRYPOINT ["/opt/twctl/bin/twctl"]' in text


def test_prometheus_finds_the_pods_as_job_twctl() -> None:
    """What deploy/prometheus asks of the scrape job; PodMonitor is a resource of the Prometheus operator."""
    monitor, template = build("monitoring")["PodMonitor"], build("base")["DaemonSet"]["spec"]["template"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    labels = template["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["spec"]["jobLabel"]] == "twctl"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in container("base")["ports"]}
    assert {"instance"} == {each["targetLabel"] for each in endpoint["relabelings"]}
    secret = {"name": "twctl-tls", "key": "ca.crt"}
    assert ("https", {"serverName": "twctl", "ca": {"secret": secret}}) == (endpoint["scheme"], endpoint["tlsConfig"])


def test_the_memory_of_the_default_table_fits() -> None:
    """Requests and limits in MiB: table and daemon, and the loader for a moment."""
    resources = container("base")["resources"]
    request, limit = (int(resources[kind]["memory"].removesuffix("Mi")) for kind in ("requests", "limits"))
    assert request >= 24 + 35
    assert limit >= request + 160
    assert tomllib.loads((KUBERNETES / "base/twctl.toml").read_text()).keys() == {"mode", "pins", "tls"}
