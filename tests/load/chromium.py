"""A headless Chromium that is told through a pipe what to show (the DevTools protocol), and says what it did."""

import base64
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.load.monitoring import program

PROGRAM = "chromium-headless-shell"
# Everything that Chromium itself would ask the network for is off; root has no sandbox.
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-lcd-text",
    "--disable-background-networking",
    "--disable-sync",
)
COLOURS, LARGEST = 64, 150_000  # of a picture, and its bytes
ANSWER_SECONDS = 120.0  # 0.3 s; on a busy machine many times that


@dataclass(frozen=True)
class Visit:
    """A page as it was shown. width, height: of all that is on it (CSS pixels); requests: every URL that was asked for.

    complaints: what the browser wrote to its console, such as refusals by the page's policy.
    """

    width: int
    height: int
    requests: list[str]
    complaints: list[str]
    text: str
    png: bytes


class Chromium:
    """A running one. write, read: the ends of its pipes."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._received, self._number = b"", 0

    def visit(self, url: str, width: int, *, dark: bool = False) -> Visit:
        """Show a page in a window so many CSS pixels wide: up to 600 it is a phone's."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        events: list[dict[str, Any]] = []

        def call(method: str, **parameters: object) -> dict[str, Any]:
            return self._call(method, session, events, **parameters)

        for domain in ("Page", "Network", "Log", "Runtime"):
            call(f"{domain}.enable")
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width <= 600}
        call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        call("Emulation.setEmulatedMedia", features=[scheme])
        call("Page.navigate", url=url)
        while not any(each["method"] == "Page.loadEventFired" for each in events):
            events.append(self._message())

        def value(expression: str) -> Any:  # noqa: ANN401 - whatever it is
            return call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

        shown = [int(value(f"document.documentElement.scroll{side}")) for side in ("Width", "Height")]
        text = str(value("document.body.innerText"))
        call("Emulation.setDeviceMetricsOverride", **size | {"height": shown[1]})
        png = base64.b64decode(call("Page.captureScreenshot")["data"])
        self._call("Target.closeTarget", targetId=target)
        named = [(each["method"], each["params"]) for each in events]
        requests = [told["request"]["url"] for name, told in named if name == "Network.requestWillBeSent"]
        complaints = [told["entry"]["text"] for name, told in named if name == "Log.entryAdded"]
        return Visit(shown[0], shown[1], requests, complaints, text, png)

    def _call(
        self,
        method: str,
        session: str | None = None,
        events: list[dict[str, Any]] | None = None,
        **parameters: object,
    ) -> dict[str, Any]:
        """Have it do something; what it tells meanwhile goes into `events`."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        os.write(self._write, json.dumps(asked | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (told := self._message()).get("id") != self._number:
            if events is not None and "method" in told:
                events.append(told)
        assert "error" not in told, f"{method}: {told}"
        result: dict[str, Any] = told["result"]
        return result

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self._received:
            assert select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0], "Chromium says nothing"
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium has ended"
            self._received += part
        first, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message


def save(png: bytes, file: Path) -> None:
    """Write a picture for the pages, in few colours."""
    reduced = ("pngquant", "--force", "--strip", "--output", str(file), str(COLOURS), "-")
    subprocess.run(reduced, input=png, check=True)
    assert file.stat().st_size < LARGEST, file


@contextmanager
def chromium(command: Callable[..., Sequence[str]] = lambda *words: words) -> Iterator[Chromium]:
    """Run it until the end of the block. command: makes of a command line one that runs it elsewhere."""
    found = program(PROGRAM)
    asks, write = os.pipe()
    read, answers = os.pipe()
    # It reads from descriptor 3 and writes to 4.
    shell = f'exec "$@" 3<&{asks} 4>&{answers}'
    with tempfile.TemporaryDirectory(prefix="twctl-chromium-", ignore_cleanup_errors=True) as profile:
        options = (*OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={profile}")
        words = command("bash", "-c", shell, "bash", found, *options)
        process = subprocess.Popen(words, pass_fds=(asks, answers), stderr=subprocess.DEVNULL)
        os.close(asks)
        os.close(answers)
        try:
            yield Chromium(write, read)
        finally:
            os.close(write)  # at which it ends
            os.close(read)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
