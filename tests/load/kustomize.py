"""The Kubernetes manifests as `kubectl apply -k` would send them: as much of kustomize as deploy/kubernetes uses."""

import copy
import hashlib
from pathlib import Path
from typing import Any

import yaml

from tests import ROOT

KUBERNETES = ROOT / "deploy/kubernetes"

Manifest = dict[str, Any]


def build(overlay: str) -> dict[str, Manifest]:
    """The objects of a folder of deploy/kubernetes by their kind; there is one of each kind."""
    return {each["kind"]: each for each in _build(KUBERNETES / overlay)}


def _build(folder: Path) -> list[Manifest]:
    wanted = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "images", "patches"}
    assert set(wanted) <= known, "more of kustomize than is done here"
    objects: list[Manifest] = []
    for resource in wanted["resources"]:
        path = folder / resource
        objects += _build(path) if path.is_dir() else yaml.safe_load_all(path.read_text())
    for generator in wanted.get("configMapGenerator", ()):
        _generate(objects, folder, generator)
    for image in wanted.get("images", ()):
        for container in (each for made in objects for each in _pod(made).get("containers", ())):
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
    for patch in wanted.get("patches", ()):
        (target,) = (each for each in objects if each["kind"] == patch["target"]["kind"])
        for step in yaml.safe_load((folder / patch["path"]).read_text()):
            _apply(target, step)
    for made in objects if "namespace" in wanted else ():
        if made["kind"] != "Namespace":
            made["metadata"]["namespace"] = wanted["namespace"]
    return objects


def _generate(objects: list[Manifest], folder: Path, generator: Manifest) -> None:
    """Add a ConfigMap whose name ends with a hash of its data, and give the volumes that have it that name."""
    data = {name: (folder / name).read_text() for name in generator["files"]}
    name = f"{generator['name']}-{hashlib.sha256(repr(data).encode()).hexdigest()[:10]}"
    objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
    for volume in (each for made in objects for each in _pod(made).get("volumes", ())):
        if volume.get("configMap", {}).get("name") == generator["name"]:
            volume["configMap"]["name"] = name


def _pod(manifest: Manifest) -> Manifest:
    found: Manifest = manifest.get("spec", {}).get("template", {}).get("spec", {})
    return found


def _apply(manifest: Manifest, step: Manifest) -> None:
    """One step of a JSON patch (RFC 6902): add, replace, remove."""
    *outer, last = step["path"].strip("/").split("/")
    place: Any = manifest
    for part in outer:
        place = place[int(part) if isinstance(place, list) else part]
    value = copy.deepcopy(step.get("value"))
    if isinstance(place, list):
        assert (step["op"], last) == ("add", "-"), step
        place.append(value)
    elif step["op"] == "remove":
        del place[last]
    else:
        assert step["op"] == "add" or last in place, step
        place[last] = value
