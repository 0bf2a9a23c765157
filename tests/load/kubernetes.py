"""What Kubernetes takes: the schemas of its own objects, and of those of the Prometheus operator."""

import json

import jsonschema
import kubernetes_validate

from tests import ROOT
from tests.load.kustomize import Manifest

# The operator's own kinds, from its CRDs of version 0.93.0: without descriptions, status, and a pattern for Go alone.
CRDS = json.loads((ROOT / "tests/deploy/monitoring.crds.json").read_text())
# The oldest whose schemas are published with this package, and the newest.
VERSIONS = ("1.25", "1.30", kubernetes_validate.latest_version())


def validate(manifest: Manifest, version: str) -> None:
    """Strictly: no key that the schema does not have."""
    kind = manifest["kind"]
    if kind in CRDS:
        jsonschema.validate(manifest, _strict(CRDS[kind]))
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


def _strict(schema: Manifest) -> Manifest:
    """The same, but that no key may stand there which it does not have; Kubernetes would drop that."""
    made = {name: _strict(each) if isinstance(each, dict) else each for name, each in schema.items()}
    closed = isinstance(made.get("properties"), dict) and made.get("type") == "object"
    return made | {"additionalProperties": False} if closed else made
