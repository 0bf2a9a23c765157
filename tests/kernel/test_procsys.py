"""Sysctls in the namespaces of the real kernel, by name or by cookie."""

import os

import pytest

from tests.load.netns import namespace
from twctl.errors import TwctlError
from twctl.linux.procsys import Kernel

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="namespaces need root; TWCTL_TEST_KERNEL=1 forces it",
)
FIN = "net.ipv4.tcp_fin_timeout"


def test_each_namespace_has_its_own() -> None:
    """By its name, and by the path that is found for its cookie; ours is None."""
    kernel = Kernel()
    with namespace() as ns:
        own, other = kernel.cookie(None), kernel.cookie(ns.name)
        before = kernel.read(None, FIN)
        kernel.write(ns.name, FIN, 23)
        with kernel.elsewhere({own, other, 2**63}) as found:
            assert {own, other} == found.keys()
            assert (None, other) == (found[own], kernel.cookie(found[other]))
            assert 23 == kernel.read(found[other], FIN)
        assert before == kernel.read(None, FIN)


def test_what_cannot_be_done_is_told_as_the_kernel_tells_it() -> None:
    """In another namespace as in our own: it can be entered."""
    with namespace() as ns:
        for where in (None, ns.name):
            with pytest.raises(FileNotFoundError):
                Kernel().read(where, "net.ipv4.twctl")
        with pytest.raises(OSError, match="Invalid argument"):
            Kernel().write(ns.name, "net.ipv4.tcp_tw_reuse", 99)
    with pytest.raises(TwctlError, match="cannot enter"):
        Kernel().read(ns.name, FIN)
