"""A tiny set of faces whose attributes are plain to see, and a tiny StarGAN."""

import numpy as np
import pytest
import torch

from holdfast.data.faceset import write_faceset
from holdfast.deepfakes.stargan import SETTINGS, StarGAN
from holdfast.deepfakes.training import SETTINGS as TRAINING
from holdfast.seeds import numpy_generator

TINY = {key: setting["default"] for key, setting in {**TRAINING, **SETTINGS}.items()} | {
    "attributes": ["Male", "Young"],
    "generator_channels": 4,
    "discriminator_channels": 4,
    "discriminator_layers": 3,
    "iterations": 6,
    "batch": 4,
    "critic_steps": 2,
}


@pytest.fixture(scope="session")
def tiny_settings():
    return dict(TINY)


@pytest.fixture(scope="session")
def faces_of(tmp_path_factory):
    """faces_of(train, unseen, size): noise; Male: the left half is bright, Young: it is red."""

    def make(train=24, unseen=16, size=16):
        random = numpy_generator("tiny faces", train, unseen)

        def rows():
            for number in range(train + unseen):
                male, young = random.integers(0, 2, 2)
                pixels = random.integers(40, 120, (size, size, 3), dtype=np.uint8)
                pixels[:, : size // 2] += np.uint8(90 * male)
                pixels[..., 0] += np.uint8(40 * young)
                split = "train" if number < train else "test"
                yield pixels, f"{number}.png", split, None, (male, young)

        folder = tmp_path_factory.mktemp("faces") / "set"
        return write_faceset(folder, size, rows(), ["Male", "Young"], {"dataset": "tiny"})

    return make


@pytest.fixture(scope="session")
def faces(faces_of):
    return faces_of()


@pytest.fixture
def tiny():
    """tiny(size=16, **settings) -> StarGAN with weights that are always the same."""

    def make(size=16, **settings):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return StarGAN(TINY | settings, size)

    return make
