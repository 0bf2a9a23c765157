"""What a kernel or host does not allow is refused before anything is made."""

import os
from pathlib import Path

import pytest

from tests.load.netns import Namespace, namespace
from tests.load.obstacles import add_ipsec
from twctl.config.config import Config, load
from twctl.errors import TwctlError
from twctl.modes.feasible import can_destroy, refuse

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"),
    reason="namespaces need root; TWCTL_TEST_KERNEL=1 forces it",
)


def configured(ns: Namespace, **options: object) -> Config:
    """A daemon of mode vestigial in a namespace."""
    given = {"mode": "vestigial", "netns": [ns.name]} | options
    return load(None, given, default_file=Path("/nowhere/twctl.toml")).config


def test_this_kernel_destroys_time_wait_sockets() -> None:
    """Tried on a connection made for it; what it leaves is nothing."""
    assert "the kernel destroys TIME_WAIT sockets" == can_destroy()


def test_an_obstacle_is_refused_unless_it_is_forced() -> None:
    """And nothing is, in a namespace without one."""
    with namespace() as ns:
        refuse(configured(ns))
        add_ipsec(ns)
        with pytest.raises(TwctlError, match="give --force"):
            refuse(configured(ns))
        refuse(configured(ns, force=True))
        refuse(configured(ns, mode="observe"))


def test_a_namespace_that_is_not_there_is_refused() -> None:
    """By its name."""
    with namespace() as ns:
        config = configured(ns, netns=["twctl-test-none"])
    with pytest.raises(TwctlError, match="twctl-test-none"):
        refuse(config)
