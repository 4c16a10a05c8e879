"""What the tests of the detectors share."""

import pytest
import torch


@pytest.fixture(scope="session")
def images():
    """images(count, height, width): noise in [-1, 1], the same every time."""

    def draw(count, height, width=None, seed=0):
        random = torch.Generator().manual_seed(seed)
        return torch.rand(count, 3, height, width or height, generator=random) * 2 - 1

    return draw
