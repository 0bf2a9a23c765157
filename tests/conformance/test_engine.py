"""A host and its containers connect to one server at full speed, one of them in mode vestigial: nobody notices."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.load import counters, wait_until
from tests.load.closes import closes_binary, serving
from tests.load.daemon import Daemon
from tests.load.duty import NO_VESTIGIAL, STOCK, VESTIGIAL, on_duty
from tests.load.engine import Engine, engine
from tests.load.paths import IPV4, IPV6

pytestmark = pytest.mark.alone("it makes connections as fast as it can")

COUNT = 2003  # of each
BYTES = 4099  # several segments
CONFIG = "[time_wait]\nlocal = 60\n"
SECONDS = 120
BROKEN = ("EstabResets", "AttemptFails")


@dataclass(frozen=True)
class Duty:
    """Who is in mode vestigial, by its name in Engine.all; None: nobody, as on stock."""

    node: Engine
    guarded: str | None
    watch: Daemon | None


@pytest.fixture(
    scope="module",
    params=[
        None,
        *(
            pytest.param(name, marks=pytest.mark.skipif(NO_VESTIGIAL is not None, reason=f"{NO_VESTIGIAL}"))
            for name in ("host", "container 0")
        ),
    ],
    ids=lambda name: name or STOCK,
)
def duty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Duty]:
    """Stock; or the host, or one of its containers, is guarded."""
    with ExitStack() as stack:
        node = stack.enter_context(engine(tmp_path_factory.mktemp("bundles")))
        guarded = node.all[request.param] if request.param else None
        watch = on_duty(VESTIGIAL, guarded, config=CONFIG) if guarded else on_duty(STOCK)
        yield Duty(node, request.param, stack.enter_context(watch))


def disturbed(node: Engine) -> dict[str, list[int]]:
    """What each namespace has counted of connections that were broken, and of RSTs that it has sent.

    The server's RSTs may be to an ACK that came twice, on a busy machine, when its end had gone: they break nothing.
    """
    found = {name: counters.tcp(ns) for name, ns in node.all.items()}
    return {
        name: [counted[each] for each in (*BROKEN, *(() if name == "server" else ("OutRsts",)))]
        for name, counted in found.items()
    }


@pytest.mark.parametrize("family", [IPV4, IPV6])
def test_all_connect_at_once_and_nobody_is_disturbed(duty: Duty, family: str) -> None:
    """No connect() fails, every byte arrives, and who dials sends no RST, as on stock."""
    node = duty.node
    address = node.link.server_ipv4 if family == IPV4 else node.link.server_ipv6
    how = ("--family", family, "--bytes", str(BYTES), "--close", "client", "--address", address, "--port", "8080")
    words = ("--connect", *how, "--threads", "4", "--count", str(COUNT))
    before = disturbed(node)
    entered = duty.watch.metric("twctl_time_wait_entered_total") if duty.watch else 0
    with serving(node.server, *how) as served:
        clients = [
            node.host.popen(str(closes_binary()), *words),
            *(each.closes(*words) for each in node.containers),
        ]
        reports = [json.loads(each.communicate(timeout=SECONDS)[0].splitlines()[-1]) for each in clients]
        for ns in (node.host, *(each.ns for each in node.containers)):
            wait_until(lambda: counters.all_closed(ns), what="both ends have closed", timeout=60)  # noqa: B023
    assert [(COUNT, COUNT, 0)] * 3 == [(each["made"], each["closed"], each["failed"]) for each in reports]
    assert (3 * COUNT, 3 * COUNT * BYTES) == (served["made"], served["taken"])
    assert before == disturbed(node)
    if duty.watch:
        assert duty.guarded
        assert entered + COUNT == duty.watch.metric("twctl_time_wait_entered_total")
        assert {node.all[duty.guarded].name} == {each.netns for each in duty.watch.table()}
