"""The picture of the landing page that docs/metrics.md shows: a phone and a desktop, of a daemon over real connections.

    sudo .venv/bin/python -m tests.docs.screenshot      a minute

The host is that of the other examples; `checkout` goes on to connect meanwhile. Light is the desktop, dark the phone.
"""

import base64
import time
from concurrent.futures import ThreadPoolExecutor

from tests import ROOT
from tests.docs.examples import DATABASE, PORTS, RATE, close_as, load, network, served, services
from tests.load.chromium import Chromium, Visit, chromium, save
from tests.load.daemon import daemon

FILE = ROOT / "docs/page.png"
PHONE, DESKTOP, GAP = 360, 720, 20
LOAD_SECONDS = 20  # until the ports that are looked at every 5 s are soon used up


def beside(browser: Chromium, *visits: Visit) -> bytes:
    """Pictures one beside the other, on one page that the browser shows."""
    shown = "".join(
        f'<img width={each.width} src="data:image/png;base64,{base64.b64encode(each.png).decode()}">' for each in visits
    )
    style = f"body {{ display: flex; gap: {GAP}px; align-items: start; margin: {GAP}px; background: #999 }}"
    url = base64.b64encode(f"<!doctype html><style>{style}</style>{shown}".encode()).decode()
    width = sum(each.width + GAP for each in visits) + GAP
    return browser.visit(f"data:text/html;base64,{url}", width).png


def main() -> None:
    """Take it."""
    with network() as net, services() as groups, served(net):
        net.host.sysctl("net.ipv4.ip_local_port_range", PORTS)
        with daemon(prefix=tuple(net.host.command()), probe="auto") as one, ThreadPoolExecutor(1) as pool:
            load(net, groups)
            where = ("--address", DATABASE, "--port", "5432", "--seconds", str(LOAD_SECONDS), "--rate", str(RATE))
            going_on = pool.submit(close_as, net.host, groups["checkout"], 33, *where)
            time.sleep(LOAD_SECONDS - 3)
            with chromium(net.host.command) as browser:
                url = f"http://127.0.0.1:{one.port}/"
                visits = browser.visit(url, DESKTOP), browser.visit(url, PHONE, dark=True)
                picture = beside(browser, *visits)
            going_on.result()
    save(picture, FILE)


if __name__ == "__main__":
    main()
