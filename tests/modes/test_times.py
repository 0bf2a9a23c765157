"""How long sessions stay in each mode."""

import math
from pathlib import Path

from twctl.classes import Class
from twctl.config.config import load
from twctl.modes.times import limits_of, time_wait_in_force

NOWHERE = Path("/nowhere/twctl.toml")


def test_fin_wait2_of_60_s_and_more_is_as_long_as_the_kernel_keeps_it() -> None:
    """Whatever tcp_fin_timeout says."""
    config = load(None, {"fin_wait2": {"loopback": 5, "local": 60, "remote": 120}}, default_file=NOWHERE).config
    assert {Class.LOOPBACK: 5, Class.LOCAL: math.inf, Class.REMOTE: math.inf} == limits_of(config).fin_wait2


def test_observe_leaves_the_kernels_time() -> None:
    """The configured times are for the dry run there."""
    config = load(None, {}, default_file=NOWHERE).config
    assert [60, 60, 60] == list(time_wait_in_force(config).values())
    assert [2, 10, 60] == list(limits_of(config).time_wait.values())
