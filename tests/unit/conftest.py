"""Settings of hypothesis for all unit tests: a test that is collected before they are loaded keeps those of the library."""

from hypothesis import HealthCheck, settings

# No test asserts a time: a busy machine must not fail one.
settings.register_profile("no_times", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no_times")
