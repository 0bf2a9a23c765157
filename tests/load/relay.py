"""A link between two namespaces that loses packets and mixes up their order, also where the kernel has no netem."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.load.closes import program
from tests.load.netns import Namespace, add_addresses, await_address
from tests.load.peer import open_tun

SOURCE = Path(__file__).with_name("relay.c")


@dataclass
class Relay:
    """The link. Once the block is over, `counts` has what passed: from the first namespace, from the second."""

    counts: dict[str, tuple[int, int]] = field(default_factory=dict)


@contextmanager
def relay(  # noqa: PLR0913 - two ends, and what happens between them
    first: Namespace, second: Namespace, *, device: str = "tun0", lost: int = 0, held: int = 0, seed: int = 1
) -> Iterator[Relay]:
    """Join two namespaces (10.78.0.1 and .2, fd78::1 and ::2). lost, held: of 100,000 packets."""
    made = Relay()
    with ExitStack() as stack:
        descriptors = []
        for number, ns in enumerate((first, second), 1):
            descriptors.append(open_tun(ns, device))
            stack.callback(os.close, descriptors[-1])
            add_addresses(ns, device, f"10.78.0.{number}", f"fd78::{number}")
        for number, ns in enumerate((first, second), 1):
            await_address(ns, f"fd78::{number}")
        words = [str(word) for word in (*descriptors, lost, held, seed)]
        command = [str(program(SOURCE)), *words]
        with subprocess.Popen(command, pass_fds=descriptors, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield made
            finally:
                process.terminate()
                made.counts = {name: (a, b) for name, (a, b) in json.loads(process.communicate()[0]).items()}
