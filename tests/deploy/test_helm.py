"""deploy/kubernetes as a Helm chart, rendered by Helm: with each value, the objects of the kustomizations there."""

import io
import json
import re
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.load.container import NODE_IP
from tests.load.kubernetes import VERSIONS, validate
from tests.load.kustomize import KUBERNETES, Manifest, build
from twctl import __version__
from twctl.classes import Class
from twctl.config.config import load
from twctl.config.keys import KEYS, Mode

helm = pytest.importorskip("helm_python", reason="no wheel of helm-python-sdk is for this architecture")

# Values, and the folder whose objects they give; mode vestigial works in pods whatever `pods` says.
FOLDERS: dict[str, tuple[Manifest, str]] = {
    "default": ({}, "base"),
    "pods": ({"pods": True}, "pods"),
    "vestigial": ({"mode": "vestigial"}, "vestigial"),
    "vestigial and pods": ({"mode": "vestigial", "pods": True}, "vestigial"),
    "release": ({"release": True}, "release"),
    "release, whatever was": ({"release": True, "mode": "vestigial", "pods": True}, "release"),
}
MONITORING: Manifest = {"monitoring": {"enabled": True}}
# What base and overlays set by other means: here the values `mode` and `pods`, and the options of the DaemonSet.
NOT_IN_CONFIG = {"mode", "listen", "netns", "all_netns", "pins", "tls.certfile", "tls.keyfile", "tls.client_ca"}


def rendered(values: Manifest | None = None, namespace: str = "twctl") -> dict[str, str]:
    """What Helm makes of each file of templates/."""
    with helm.Chart.load(KUBERNETES) as chart:
        texts: dict[str, str] = chart.render(values or {}, name="any", namespace=namespace)
    return texts


def chart(values: Manifest | None = None, namespace: str = "twctl") -> dict[str, Manifest]:
    """The objects by kind and name."""
    objects = yaml.safe_load_all(rendered(values, namespace)["twctl/templates/twctl.yaml"])
    return {f"{each['kind']} {each['metadata']['name']}": each for each in objects if each}


def kustomized(folder: str) -> dict[str, Manifest]:
    """The same of a kustomization, with the chart's names, and without the namespace: Helm needs that before."""
    text = re.sub(r'"twctl-[0-9a-f]{10}"', '"twctl"', json.dumps(build(folder)))
    objects: list[Manifest] = list(json.loads(text).values())
    return {f"{each['kind']} {each['metadata']['name']}": each for each in objects if each["kind"] != "Namespace"}


def plain(objects: dict[str, Manifest]) -> dict[str, Manifest]:
    """The configuration as what it says, and without its checksum."""
    made: dict[str, Manifest] = json.loads(json.dumps(objects))
    for each in made.values():
        each.get("spec", {}).get("template", each)["metadata"].get("annotations", {}).pop("checksum/config", None)
        if "twctl.toml" in each.get("data", {}):
            each["data"] = tomllib.loads(each["data"]["twctl.toml"])
    return made


def pod(objects: dict[str, Manifest]) -> Manifest:
    """The DaemonSet's."""
    found: Manifest = objects["DaemonSet twctl"]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize(("values", "folder"), FOLDERS.values(), ids=FOLDERS)
def test_each_value_gives_what_its_folder_does(values: Manifest, folder: str) -> None:
    """Neither more objects nor fewer, and nothing in them differs."""
    assert plain(kustomized(folder)) == plain(chart(values))


@pytest.mark.parametrize(("values", "folder"), FOLDERS.values(), ids=FOLDERS)
def test_monitoring_adds_the_objects_of_its_folder(values: Manifest, folder: str) -> None:
    """PodMonitor, rules and dashboard; with labels, if some are wanted."""
    assert plain(kustomized(folder) | kustomized("monitoring")) == plain(chart(values | MONITORING))
    labels = {"release": "prometheus"}
    made = chart(values | {"monitoring": {"enabled": True, "labels": labels}})
    given = {name for name, each in made.items() if labels.items() <= each["metadata"].get("labels", {}).items()}
    assert kustomized("monitoring").keys() == given


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("values", "_folder"), FOLDERS.values(), ids=FOLDERS)
def test_kubernetes_takes_it(values: Manifest, _folder: str, version: str) -> None:
    """As it does the kustomizations."""
    for each in chart(values | MONITORING | {"tls": {"enabled": False}, "imagePullSecrets": [{"name": "a"}]}).values():
        validate(each, version)


def test_every_object_is_in_the_namespace_of_the_release() -> None:
    """And nothing else knows of it."""
    made, other = chart(MONITORING), chart(MONITORING, "elsewhere")
    assert {"elsewhere"} == {each["metadata"].pop("namespace") for each in other.values()}
    assert {"twctl"} == {each["metadata"].pop("namespace") for each in made.values()}
    assert made == other


def effective(values: Manifest, file: Path) -> Any:  # noqa: ANN401 - of a Config, whichever key
    """The configuration as the daemon reads it."""
    file.write_text(chart(values)["ConfigMap twctl"]["data"]["twctl.toml"])
    return load(file, {"listen": f"{NODE_IP}:9815"}).config


def test_values_of_the_configuration_are_twctl_s(tmp_path: Path) -> None:
    """They reach the daemon, whole numbers as such; the rest of base's file stays; and the pods are replaced."""
    config = {
        "time_wait": {"local": 5, "remote": 30.5},
        "capacity": {"ipv4": {"local": 4_194_304}},
        "classes": {"local": ["10.0.0.0/8", "fd00::/8"]},
        "sysctl": {"nf_conntrack_tcp_timeout_time_wait": "time_wait", "tcp_max_tw_buckets": 2**31 - 1},
        "pressure": {"floor": {"local": 3}, "tcp_memory": False},
    }
    values = {"mode": "truncate", "config": config}
    made = effective(values, tmp_path / "twctl.toml")
    assert (Mode.TRUNCATE, "/bpf/twctl", True) == (made.mode, str(made.pins), made.tls is not None)
    told = tomllib.loads((tmp_path / "twctl.toml").read_text())
    base = tomllib.loads((KUBERNETES / "base/twctl.toml").read_text())
    assert base | {"mode": "truncate"} | config == told
    assert isinstance(told["capacity"]["ipv4"]["local"], int)
    sums = [
        chart(each)["DaemonSet twctl"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for each in ({}, {"pods": True}, values)
    ]
    assert sums[0] == sums[1] != sums[2]


def test_sysctls_of_the_configuration_can_be_set() -> None:
    """The pod has the node's sysctls, as mode vestigial has; they are the only difference."""
    for values in ({}, {"pods": True}, {"mode": "vestigial"}, {"release": True}):
        plain_pod, made = (pod(chart(values | more)) for more in ({}, {"config": {"sysctl": {"tcp_fin_timeout": 30}}}))
        (container,) = made["containers"]
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert {"journal": "/run/twctl", "sysctls": "/host/proc/sys/net"}.items() <= mounts.items()
        assert sorted(mounts) == sorted(each["name"] for each in made["volumes"])
        for holder, key in ((made, "volumes"), (container, "volumeMounts")):
            holder[key] = [each for each in holder[key] if each["name"] != "sysctls"]
        for holder, key in ((plain_pod, "volumes"), (plain_pod["containers"][0], "volumeMounts")):
            holder[key] = [each for each in holder[key] if each["name"] != "sysctls"]
        assert plain_pod == made


def test_tls_has_the_secret_that_is_named_or_none(tmp_path: Path) -> None:
    """Volume and scrape name the same; without TLS neither has one, and daemon, probes and scrape all speak HTTP."""
    usual, named = (json.dumps(chart(MONITORING | each)) for each in ({}, {"tls": {"secretName": "other"}}))
    assert (2, re.sub(r'(?<=ame": )"twctl-tls"', '"other"', usual)) == (named.count('"other"'), named)
    for mode in Mode:
        values: Manifest = MONITORING | {"mode": str(mode), "tls": {"enabled": False}}
        assert effective(values, tmp_path / "twctl.toml").tls is None
        made = chart(values)
        text = json.dumps([made["ConfigMap twctl"], made["DaemonSet twctl"], made["PodMonitor twctl"]])
        assert not re.search(r"\btls|tls\b", text.replace("sysctls", ""))
        (container,) = pod(made)["containers"]
        schemes = {container[f"{kind}Probe"]["httpGet"]["scheme"] for kind in ("startup", "liveness", "readiness")}
        (endpoint,) = made["PodMonitor twctl"]["spec"]["podMetricsEndpoints"]
        assert ({"HTTP"}, "http") == (schemes, endpoint["scheme"])


def test_the_daemonset_s_own_settings_can_be_replaced() -> None:
    """Each is what was given, and all else stays."""
    given: Manifest = {
        "nodeSelector": {"pool": "edge"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "other",
        "imagePullSecrets": [{"name": "registry"}],
    }
    resources = {"limits": {"memory": "1Gi"}}
    image = {"repository": "registry.example/twctl", "tag": "1.2.3"}
    made, wanted = chart(given | {"resources": resources, "image": image}), chart()
    pod(wanted).update(given)
    pod(wanted)["containers"][0] |= {"resources": resources, "image": "registry.example/twctl:1.2.3"}
    assert wanted == made


def dotted(schema: Manifest, definitions: Manifest) -> Iterator[str]:
    """Names of the keys that a schema of the configuration has."""
    for name, each in schema["properties"].items():
        found = definitions[each["$ref"].rpartition("/")[2]] if "$ref" in each else each
        if "properties" in found:
            assert found["additionalProperties"] is False
            yield from (f"{name}.{below}" for below in dotted(found, definitions))
        else:
            yield name


def test_the_schema_has_every_key_of_the_configuration() -> None:
    """But those that the chart sets itself; and every value of values.yaml."""
    schema = json.loads((KUBERNETES / "values.schema.json").read_text())
    config = schema["properties"]["config"]
    assert sorted(KEYS.keys() - NOT_IN_CONFIG) == sorted(dotted(config, schema["definitions"]))
    assert [*Mode] == schema["properties"]["mode"]["enum"]
    assert yaml.safe_load((KUBERNETES / "values.yaml").read_text()).keys() | {"global"} == schema["properties"].keys()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mode": "both"}, "at '/mode': value must be one of 'observe', 'truncate', 'vestigial'"),
        ({"pod": True}, "at '': additional properties 'pod' not allowed"),
        ({"pods": "yes"}, "at '/pods': got string, want boolean"),
        ({"config": {"time_wiat": {"local": 5}}}, "at '/config': additional properties 'time_wiat' not allowed"),
        ({"config": {"mode": "truncate"}}, "at '/config': additional properties 'mode' not allowed"),
        ({"config": {"time_wait": {"near": 5}}}, "at '/config/time_wait': additional properties 'near' not allowed"),
        ({"config": {"capacity": {"ipv4": {"local": 0.5}}}}, "at '/config/capacity/ipv4/local': got number, want int"),
        ({"tls": {"secret": "a"}}, "at '/tls': additional properties 'secret' not allowed"),
        ({"monitoring": True}, "at '/monitoring': got boolean, want object"),
    ],
)
def test_wrong_values_are_refused(values: Manifest, said: str) -> None:
    """In one line that names the place."""
    with pytest.raises(helm.HelmValuesError) as refused:
        chart(values)
    lines = [line for line in str(refused.value).splitlines() if line.startswith("- ")]
    assert [f"- {said}"] == [line[: len(said) + 2] for line in lines]


def test_the_chart_is_this_version_and_helm_has_nothing_to_say() -> None:
    """Its own version, that of the application, and so that of the image; no warning of `helm lint --strict`."""
    with helm.Chart.load(KUBERNETES) as loaded:
        assert (__version__, __version__) == (loaded.metadata["version"], loaded.metadata["appVersion"])
    assert pod(chart())["containers"][0]["image"] == f"twctl:{__version__}"
    for mode in Mode:
        report = helm.lint(KUBERNETES, {"mode": str(mode), **MONITORING}, strict=True, with_subcharts=True)
        assert ["icon is recommended"] == [each["error"] for each in report["messages"]]


def test_a_release_s_archive_of_manifests_is_the_chart() -> None:
    """Helm takes it as deploy/release makes it: one folder, whatever it is called."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(KUBERNETES, "kubernetes")
    with helm.Chart.load_archive(packed.getvalue()) as loaded:
        assert rendered() == loaded.render({}, name="any", namespace="twctl")


@pytest.mark.parametrize(
    ("values", "told", "untold"),
    [
        ({}, ["mode observe", "Secret twctl-tls", "enforce=privileged"], ["release=true", "ca.crt"]),
        ({"mode": "vestigial", **MONITORING}, ["--set release=true", "and ca.crt"], ["helm uninstall -n"]),
        ({"tls": {"enabled": False}}, ["enforce=privileged"], ["Secret", "tls.crt"]),
        ({"release": True}, ["helm uninstall -n twctl any"], ["Secret", "release=true"]),
    ],
)
def test_the_notes_say_what_is_still_to_do(values: Manifest, told: list[str], untold: list[str]) -> None:
    """What pods wait for, and what comes before the end in mode vestigial."""
    notes = rendered(values)["twctl/templates/NOTES.txt"]
    assert all(each in notes for each in told)
    assert not any(each in notes for each in untold)


def test_times_are_by_class() -> None:
    """The schema's names of classes are twctl's."""
    schema = json.loads((KUBERNETES / "values.schema.json").read_text())
    for each in ("seconds", "sessions"):
        assert [c.label for c in Class] == [*schema["definitions"][each]["properties"]]
