"""Duties that the conformance tests share: one for each kind and setting, made when first asked for."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.load.duty import NO_VESTIGIAL, STOCK, VESTIGIAL, Duty, duty

Duties = Callable[..., Duty]


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    """Without it no test of this folder can run, and a forced run fails."""
    if os.geteuid() != 0 and not os.environ.get("TWCTL_TEST_KERNEL"):
        pytest.skip("network namespaces need root; TWCTL_TEST_KERNEL=1 forces it")


@pytest.fixture(
    scope="session",
    params=[
        STOCK,
        pytest.param(VESTIGIAL, marks=pytest.mark.skipif(NO_VESTIGIAL is not None, reason=f"{NO_VESTIGIAL}")),
    ],
)
def kind(request: pytest.FixtureRequest) -> str:
    """Who does the work of TIME_WAIT: the kernel, which is the oracle, or the guard."""
    return str(request.param)


@pytest.fixture(scope="session")
def duties(kind: str) -> Iterator[Duties]:
    """Duties of this kind, by the sysctls of net.ipv4 that their namespace has."""
    made: dict[tuple[tuple[str, object], ...], Duty] = {}
    with ExitStack() as stack:

        def get(**sysctls: object) -> Duty:
            key = tuple(sorted(sysctls.items()))
            if key not in made:
                full = {f"net.ipv4.{name}": value for name, value in sysctls.items()}
                made[key] = stack.enter_context(duty(kind, full))
            return made[key]

        yield get
