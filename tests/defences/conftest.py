"""Networks whose gradients can be written down, and surroundings made of them."""

import pytest
import torch

from holdfast.deepfakes.model import freeze
from holdfast.deepfakes.stargan import StarGAN
from holdfast.defences import stages
from holdfast.defences.base import Surroundings
from holdfast.seeds import generator

STARGAN = {
    "attributes": ["Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"],
    "generator_channels": 4,
    "discriminator_channels": 4,
    "discriminator_layers": 4,
    "lambda_gp": 10.0,
    "lambda_cls": 1.0,
    "lambda_rec": 10.0,
}


class SquareModel:
    """A deepfake model, E(x) = A (x + labels)^2 per pixel and G(x, c) = B x^3 + c.

    `A` is (C, 3), `B` is (3, 3); labels and targets are (N, 1).
    """

    target_names = ["first", "second"]

    def __init__(self, name, scale=1.0):
        random = generator("square", name)
        self.a = scale * torch.randn(4, 3, generator=random)
        self.b = scale * torch.randn(3, 3, generator=random)

    def features(self, x, labels):
        return torch.einsum("cd,ndhw->nchw", self.a, (x + labels[:, :, None, None]).square())

    def targets(self, labels):
        return torch.stack([labels, 1 - labels])

    def edit(self, x, target):
        # The label scales the output: otherwise it would cancel in G(x') - G(x).
        return torch.einsum("cd,ndhw->nchw", self.b, x.pow(3)) * (1 + target[:, :, None, None])


class PowerDetector:
    """A face detector: level l is scale_l (A_l x)^(l + 1) at each pixel; logits (N, P, 2) are linear in x.

    `mixes` holds the A_l, (4, 3): channels that pull a pixel to both sides.
    """

    def __init__(self, name="power", scales=(1.0, 2.0, 3.0), anchors=6, size=4, offset=0.3):
        self.name, self.scales = name, scales
        random = generator("power", name)
        self.mixes = torch.randn(3, 4, 3, generator=random)
        self.kernel = torch.randn(anchors, 2, 3 * size * size, generator=random) * 0.3
        self.offset = torch.tensor([0.0, offset])

    def levels(self, images):
        mixed = [torch.einsum("cd,ndhw->nchw", mix, images) for mix in self.mixes]
        return [
            scale * x.pow(power + 1) for power, (scale, x) in enumerate(zip(self.scales, mixed, strict=True))
        ]

    def raw(self, images):
        logits = torch.einsum("pcd,nd->npc", self.kernel, images.flatten(1)) + self.offset
        return logits, torch.zeros(len(images), logits.shape[1], 4)


@pytest.fixture(scope="session")
def small_stargan():
    """small_stargan() -> a frozen StarGAN for 32 px, of few channels, with weights from torch's generator."""
    return lambda: freeze(StarGAN(STARGAN, 32))


@pytest.fixture(scope="session")
def square_model():
    return SquareModel


@pytest.fixture(scope="session")
def power_detector():
    return PowerDetector


@pytest.fixture(scope="session")
def simple():
    """simple(models, detectors, count, size, **more) -> Surroundings with images of noise."""

    def make(models=None, detectors=None, count=6, size=4, **more):
        random = generator("simple", count, size)
        images = torch.rand(count, 3, size, size, generator=random) * 1.8 - 0.9
        labels = (torch.rand(count, 1, generator=random) > 0.5).float()
        models = models or {}
        more = {"epsilon": 0.05, "seed_names": ("simple", 0), "batch": 2} | more
        return Surroundings(models, detectors or {}, images, dict.fromkeys(models, labels), **more)

    return make


class Killed(Exception):
    """Stands for kill -9 between two steps."""


@pytest.fixture
def killed_before(monkeypatch):
    """A function (index, fit) that calls `fit` and kills it before that step; its state was saved at each."""

    def kill(index, fit):
        run_steps = stages.run_steps

        def run(total, step, state, path, **more):
            def stopping(number):
                if number == index:
                    raise Killed
                return step(number)

            return run_steps(total, stopping, state, path, save_seconds=-1.0, **more)

        with monkeypatch.context() as patch:
            patch.setattr(stages, "run_steps", run)
            with pytest.raises(Killed):
                fit()

    return kill
