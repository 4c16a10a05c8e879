"""The same tests on every machine: the same examples, one thread, and a busy machine is no failure."""

import pytest
import torch
from hypothesis import HealthCheck, settings
from pretended_gpu import pretended_gpu

settings.register_profile(
    "holdfast",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("holdfast")

# Sums over several threads have other last bits, and machines have other numbers of cores.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """What works on the one run of the whole pipeline goes first, and to one process of `make test`."""
    whole = [item for item in items if "smoke" in item.fixturenames]
    for item in whole:
        item.add_marker(pytest.mark.xdist_group("smoke"))
    items[:] = whole + [item for item in items if item not in whole]


@pytest.fixture
def gpu():
    """There is a GPU, if only a pretended one (tests/pretended_gpu.py)."""
    with pretended_gpu() as memory:
        yield memory
