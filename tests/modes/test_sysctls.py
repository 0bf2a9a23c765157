"""Which sysctls a mode sets, and in which order."""

import pytest

from twctl.config.config import Config, load
from twctl.linux.sysctl import Raised
from twctl.modes.sysctls import FIN_TIMEOUT, GUARD_NEEDS, MAX_TW_BUCKETS, sysctls_of


def config(mode: str, **sysctls: int) -> Config:
    """A configuration with these keys of [sysctl]."""
    return load(None, {"mode": mode, "sysctl": sysctls} if sysctls else {"mode": mode}).config


@pytest.mark.parametrize(
    ("stay", "raised", "of_30", "of_90"), [(True, Raised(60), 90, 150), (False, Raised(0, most=60), 30, 60)]
)
def test_an_orphan_s_time_is_raised_by_60_s_where_it_stays_a_socket(
    stay: bool,  # noqa: FBT001
    raised: Raised,
    of_30: int,
    of_90: int,
) -> None:
    """Of what it was, or of what the configuration says. Where it does not stay, the time is no more than 60 s."""
    guarded = {**GUARD_NEEDS, MAX_TW_BUCKETS: 0}
    assert guarded | {FIN_TIMEOUT: raised} == sysctls_of(config("vestigial"), orphans_stay=stay)
    for said, becomes in ((30, of_30), (90, of_90)):
        found = sysctls_of(config("vestigial", tcp_fin_timeout=said), orphans_stay=stay)
        assert guarded | {FIN_TIMEOUT: becomes} == found


def test_time_wait_sockets_go_last() -> None:
    """What is set last is put back first."""
    names = [*sysctls_of(config("vestigial", tcp_tw_reuse=1, tcp_fin_timeout=30), orphans_stay=True)]
    assert MAX_TW_BUCKETS == names[-1]


@pytest.mark.parametrize("mode", ["observe", "truncate"])
def test_the_other_modes_set_what_the_configuration_says(mode: str) -> None:
    """And nothing without it."""
    assert {} == sysctls_of(config(mode), orphans_stay=True)
    assert {FIN_TIMEOUT: 30} == sysctls_of(config(mode, tcp_fin_timeout=30), orphans_stay=True)
