"""Property tests take the same examples every time, and a busy machine is no failure."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "holdfast",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("holdfast")
