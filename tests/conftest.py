"""What all tests share: how long Hypothesis takes on a busy machine says nothing of twctl."""

from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
