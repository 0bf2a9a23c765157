"""A VRF's own device is the lo of its sockets: what they send to an address of the VRF comes back in by it."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conformance.test_links import QUIET, assert_fins_are_acknowledged
from tests.load.duty import on_duty
from tests.load.netns import Namespace, add_addresses, await_address, namespace
from tests.load.paths import IPV4, IPV6, MAPPED, Route

IPV4_ADDRESS, IPV6_ADDRESS = "10.79.0.1", "fd79::1"


@pytest.fixture(scope="module")
def blue(kind: str) -> Iterator[Namespace]:
    """A namespace with a VRF of that name, and with somebody on duty."""
    with ExitStack() as stack:
        made = stack.enter_context(namespace(QUIET))
        command = made.command("ip", "link", "add", "blue", "type", "vrf", "table", "10")
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("this kernel has no VRF: modprobe vrf")
        add_addresses(made, "blue", IPV4_ADDRESS, IPV6_ADDRESS)
        await_address(made, IPV6_ADDRESS)
        stack.enter_context(on_duty(kind, made))
        yield made


@pytest.mark.vm("tracepoint")
@pytest.mark.parametrize("family", [IPV4, IPV6, MAPPED])
def test_a_fin_whose_ack_was_lost_is_acknowledged_within_a_vrf(blue: Namespace, family: str) -> None:
    """The kernel marks such packets (PACKET_LOOPBACK) until they have passed TC."""
    address = IPV6_ADDRESS if family == IPV6 else IPV4_ADDRESS
    assert_fins_are_acknowledged(Route(blue, blue, address, address, family, "blue", bound="blue"))
