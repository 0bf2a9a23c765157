"""What all tests share: how long Hypothesis takes on a busy machine says nothing of twctl; the option --long."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--long: some tests, which say so, go on for longer than there is time for at each change."""
    parser.addoption("--long", action="store_true", help="have what is repeated repeated many times")


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form is asked for."""
    return bool(request.config.getoption("--long"))
