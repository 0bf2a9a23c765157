r"""Adds the Debian packages of an image to a list of its libraries (CycloneDX 1.6), and checks it against the schema.

Usage: dpkg-query -W -f '${Package} ${Version} ${Architecture}\n' | python deploy/sbom.py LIST
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def components(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Each package as a component, named as package-url's type `deb` has it."""
    for line in sorted(lines):
        name, version, architecture = line.split()
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?arch={architecture}&distro=debian-12"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main() -> str:
    """The list, completed."""
    found = json.loads(Path(sys.argv[1]).read_text())
    found["components"] += components(sys.stdin)
    text = json.dumps(found, indent=2, sort_keys=True)
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"deploy/sbom.py: not CycloneDX 1.6: {error}")
    return text


if __name__ == "__main__":
    print(main())  # noqa: T201 - what it is for
