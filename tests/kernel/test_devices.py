"""Network interfaces as TC and XDP see them."""

import os

import pytest

from tests.load.netns import namespace
from twctl.linux.devices import Device, devices, find_device
from twctl.linux.netlink import RouteNetlink

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="namespaces need root; TWCTL_TEST_KERNEL=1 forces it",
)


def test_devices_have_number_name_type_and_master() -> None:
    """A port of a bridge says so; one that is gone is not found."""
    with namespace() as ns:
        ns.ip("link", "add", "br0", "type", "bridge")
        ns.ip("link", "add", "veth7", "type", "veth", "peer", "name", "veth8")
        ns.ip("link", "set", "veth7", "master", "br0")
        netlink = RouteNetlink(ns.name)
        try:
            with netlink.requests() as requests:
                found = {each.name: each for each in devices(requests)}
                assert Device(found["veth7"].number, "veth7", 1, "veth", "bridge", xdp=False) == found["veth7"]
                assert (772, "") == (found["lo"].type, found["lo"].port_of)
                assert found["veth8"] == find_device(requests, found["veth8"].number)
                ns.ip("link", "del", "veth8")
                assert find_device(requests, found["veth8"].number) is None
        finally:
            netlink.close()
