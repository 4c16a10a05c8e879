"""The same tests on every machine: the same examples, one thread, and a busy machine is no failure."""

import itertools
import os
import tempfile

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


def pytest_collection_modifyitems(items):
    """The runs of the whole pipeline first: `make test` has one of its processes for them."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")


@pytest.fixture
def full_disk(tmp_path, monkeypatch):
    """Every temporary file of holdfast.files lies on a disk without room: it is Linux's /dev/full."""
    number = itertools.count()

    def made(dir, **_):
        path = os.path.join(dir, f".full{next(number)}")
        os.symlink("/dev/full", path)
        return os.open(path, os.O_RDWR), path

    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(tempfile, "mkstemp", made)


@pytest.fixture
def gpu():
    """There is a GPU, if only a pretended one (tests/pretended_gpu.py)."""
    with pretended_gpu() as memory:
        yield memory
