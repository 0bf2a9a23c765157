"""The pictures behind tests/prometheus/screenshots: pages of a real Prometheus, as headless Chromium shows them."""

import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

from tests import ROOT
from tests.load.chromium import save
from tests.load.prometheus import watched

SECONDS = 100  # the kernel's own sockets live 60
WIDTH = 1100
GRAPH = {
    "g0.expr": "sum by (instance) (twctl_kernel_time_wait_sockets)",
    "g0.tab": "0",
    "g0.range_input": f"{SECONDS}s",
    "g0.step_input": "1",
}
# What is shown, and how high that is.
PAGES = {
    "sockets": (f"graph?{urllib.parse.urlencode(GRAPH)}", 870),
    "alerts": ("alerts", 1090),
    "targets": ("targets", 490),
}
PATIENCE_MILLISECONDS = 8000  # until the page has asked for its data and drawn it


def take(url: str, height: int, file: Path) -> None:
    """One picture."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole.png")
        subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                f"--user-data-dir={folder}/profile",
                f"--virtual-time-budget={PATIENCE_MILLISECONDS}",
                f"--window-size={WIDTH},{height}",
                f"--screenshot={whole}",
                url,
            ],
            check=True,
            capture_output=True,
        )
        save(whole.read_bytes(), file)


def main(assets: str) -> None:
    """Every picture; `assets`: what the pages of this Prometheus load."""
    docs = ROOT / "docs"
    docs.mkdir(exist_ok=True)
    with watched(2 * SECONDS, f"--web.local-assets={assets}") as server:
        time.sleep(SECONDS)
        for name, (path, height) in PAGES.items():
            take(f"http://127.0.0.1:{server.port}/classic/{path}", height, docs / f"prometheus-{name}.png")


if __name__ == "__main__":
    main(sys.argv[1])
