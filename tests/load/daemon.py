"""The real daemon, as users run it, over namespaces of a test; always stopped and released."""

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.load import wait_until
from tests.load.netns import Namespace
from twctl.table.maps import Table
from twctl.table.records import Vestige

_numbers = itertools.count()
START_SECONDS = 300.0  # 2 s; under emulation a minute, or two where others work


def twctl(*words: str, prefix: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end. `prefix`: words before it."""
    command = [*prefix, sys.executable, "-m", "twctl", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass
class Daemon:
    """`twctl run` over some namespaces, with pins and a log of its own. `config`: TOML text.

    `prefix`: words before the command, of something that ends by executing the words after it. `words`: more options.
    """

    namespaces: tuple[Namespace, ...]
    probe: str = "tracepoint"
    mode: str = "observe"
    config: str = ""
    pins: Path = field(default_factory=lambda: Path(f"/sys/fs/bpf/twctl-test-{os.getpid()}-{next(_numbers)}"))
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="twctl-test-")))
    process: "subprocess.Popen[bytes] | None" = None
    port: int = 0
    prefix: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def options(self) -> list[str]:
        """What the nouns need to find this daemon's table."""
        return ["--config", str(self.folder / "twctl.toml"), "--pins", str(self.pins)]

    def start(self) -> None:
        """Start it, and return when it serves."""
        (self.folder / "twctl.toml").write_text(f'mode = "{self.mode}"\n{self.config}')
        names = [word for namespace in self.namespaces for word in ("--netns", namespace.name)]
        command = [sys.executable, "-m", "twctl", "run", *self.options, *self.words, *names, "--listen", "127.0.0.1:0"]
        with (self.folder / "log").open("ab") as log:
            before = log.tell()
            self.process = subprocess.Popen([*self.prefix, *command, "--probe", self.probe], stderr=log, stdout=log)
        wait_until(lambda: self._serving(before), what="the daemon serves", timeout=START_SECONDS)

    def _serving(self, before: int) -> bool:
        assert self.process
        found = re.search(r"metrics on port (\d+)", self.log[before:])
        assert found or self.process.poll() is None, self.log
        if found:
            self.port = int(found[1])
        return found is not None

    @property
    def log(self) -> str:
        """All that it has printed."""
        return (self.folder / "log").read_text()

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process
        self.process.terminate()
        return self.process.wait(30)

    def reload(self, config: str) -> None:
        """Give it another configuration (TOML text), and return when that is in force."""
        assert self.process
        before = len(self.log)
        (self.folder / "twctl.toml").write_text(config)
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self._serving(before), what="the daemon serves again", timeout=START_SECONDS)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process
        self.process.kill()
        self.process.wait()

    def get(self, path: str = "/metrics") -> str:
        """What it serves."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as answer:
            text: bytes = answer.read()
        return text.decode()

    def metrics(self) -> dict[str, float]:
        """Every series and its value."""
        rows = (line.rsplit(" ", 1) for line in self.get().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in rows}

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the series of a name that have these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        rows = self.metrics().items()
        return sum(n for row, n in rows if re.split("[{]", row)[0] == name and all(each in row for each in wanted))

    def table(self) -> list[Vestige]:
        """Every live vestige."""
        return list(Table(self.pins / "current").vestiges())


@contextmanager
def daemon(
    *namespaces: Namespace,
    probe: str = "tracepoint",
    mode: str = "observe",
    config: str = "",
    prefix: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> Iterator[Daemon]:
    """Run the daemon until the end of the block; afterwards nothing of it is left."""
    made = Daemon(namespaces, probe, mode, config, prefix=prefix, words=options)
    try:
        made.start()
        yield made
    except BaseException:
        print(made.log)  # noqa: T201 - pytest shows it beside the failure
        raise
    finally:
        if made.process and made.process.poll() is None:
            made.kill()
        released = twctl("release", "--pins", str(made.pins), prefix=prefix)
        assert released.returncode == 0, released.stderr
        assert not made.pins.exists()
        shutil.rmtree(made.folder)
