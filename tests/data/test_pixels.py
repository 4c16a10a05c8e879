"""The maps between 8-bit pixels and [-1, 1]."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.data.pixels import stored, to_bytes, to_float

LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)


def test_all_levels_come_back():
    images = to_float(LEVELS)
    assert images.shape == (1, 3, 16, 16) and images.dtype == torch.float32 and images.is_contiguous()
    assert images.min() == -1 and images.max() == 1
    expected = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    assert torch.allclose(images[0, 0].flatten().double(), expected, atol=1e-6)
    back = to_bytes(images)
    assert back.dtype == np.uint8 and (back == LEVELS).all()


def test_channels_and_axes_keep_their_places():
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    images = to_float(pixels)
    assert images.shape == (2, 3, 4, 5)
    assert images[1, 2, 3, 0].item() == pytest.approx(pixels[1, 3, 0, 2] / 127.5 - 1, abs=1e-6)
    assert (to_bytes(images) == pixels).all()
    assert torch.equal(to_float(torch.from_numpy(pixels)), images)


@given(st.floats(-3, 3, width=32))
def test_values_are_clipped_and_rounded_to_the_nearest_level(value):
    (found,) = np.unique(to_bytes(torch.full((1, 3, 2, 2), value)))
    clipped = min(max(value, -1), 1)
    assert abs(found / 127.5 - 1 - clipped) <= 0.5 / 127.5 + 1e-6


@given(st.lists(st.floats(-2, 2, width=32), min_size=12, max_size=12))
def test_storing_twice_is_storing_once(values):
    images = torch.tensor(values).reshape(1, 3, 2, 2)
    once = stored(images)
    assert torch.equal(stored(once), once) and torch.equal(once, to_float(to_bytes(images)))
    assert (once - images.clamp(-1, 1)).abs().max() <= 0.5 / 127.5 + 1e-6


@pytest.mark.parametrize("select", [slice(None), slice(1, 3), [2, 0], slice(None, None, -1)])
def test_memory_mapped_files_give_no_warning_and_stay_as_they_are(tmp_path, select):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = to_float(mapped[select])
    assert (to_bytes(images) == pixels[select]).all()
    images.zero_()
    assert (np.load(tmp_path / "images.npy") == pixels).all()


def test_the_given_pixels_are_never_changed():
    pixels = LEVELS.copy()
    to_float(pixels).add_(1)
    tensor = torch.from_numpy(LEVELS.copy())
    to_float(tensor).add_(1)
    assert (pixels == LEVELS).all() and (tensor.numpy() == LEVELS).all()
    images = torch.full((1, 3, 2, 2), 1.5, requires_grad=True)
    to_bytes(images)
    assert (images == 1.5).all()
