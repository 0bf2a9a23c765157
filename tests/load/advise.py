"""What `twctl advise` says of a scene."""

import json
import os
from typing import Any

from tests import ROOT
from tests.load.daemon import Daemon, twctl


def advised(one: Daemon, name: str = "") -> list[dict[str, Any]]:
    """What `twctl advise --json` says.

    name: of the file in tests/advise/ to which the snapshot is written if TWCTL_TEST_RECORD is set, for the tests of
    the rules.
    """
    done = twctl("advise", *one.options, "--json")
    assert (0, "") == (done.returncode, done.stderr)
    found = json.loads(done.stdout)
    if name and os.environ.get("TWCTL_TEST_RECORD"):
        (ROOT / f"tests/advise/{name}.json").write_text(json.dumps(found["snapshot"], indent=1) + "\n")
    advice: list[dict[str, Any]] = found["advice"]
    return advice


def anchors(advice: list[dict[str, Any]]) -> list[str]:
    """The sections that they name, in their order."""
    return [each["anchor"] for each in advice]
