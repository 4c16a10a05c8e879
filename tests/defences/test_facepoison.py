"""FacePoison against a transcription of its update in NumPy, and its levels in real networks."""

import dataclasses

import numpy as np
import pytest
import torch

from holdfast.defences import facepoison
from holdfast.defences.facepoison import FacePoison, UniversalFacePoison, distance, features
from holdfast.defences.stages import minibatch, uniform
from holdfast.detectors import DETECTORS
from holdfast.errors import HoldfastError

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
WEIGHTS = (0.2, 0.3, 0.5)
BOTH = [FacePoison, UniversalFacePoison]


def slope_of(detector, x, moved):
    """d/dx' of sum_l w_l mean|F_l(x') - F_l(x)| per image, for F_l = scale_l (A_l x)^(l + 1)."""
    found = np.zeros_like(moved)
    for power, (weight, scale) in enumerate(zip(WEIGHTS, detector.scales, strict=True)):
        mix = detector.mixes[power].numpy().astype(np.float64)
        here, there = (np.einsum("cd,ndhw->nchw", mix, each) for each in (moved, x))
        sign = np.sign(scale * (here ** (power + 1) - there ** (power + 1)))
        slope = sign * scale * (power + 1) * here**power / here[0].size
        found += weight * np.einsum("cd,nchw->ndhw", mix, slope)
    return found


def mean_size(slope, each):
    size = np.abs(slope)
    return size.mean(axis=(1, 2, 3), keepdims=True) if each else size.mean()


@pytest.fixture
def two_detectors(simple, power_detector):
    loud = power_detector("loud", scales=(700.0, 100.0, 300.0))
    s = simple(detectors={"one": power_detector("one"), "loud": loud})
    # Some pixels are black or white, and images differ in contrast: so do their gradients.
    contrast = torch.linspace(0.2, 1.4, len(s.images)).view(-1, 1, 1, 1)
    return dataclasses.replace(s, images=(s.images * contrast).clamp(-1, 1))


def test_the_perturbation_per_image_equals_its_equations(two_detectors):
    s = two_detectors
    x = s.images.numpy().astype(np.float64)
    start = FacePoison({"iterations": 0}, s).perturb(s.images).numpy().astype(np.float64)
    assert np.abs(start).max() <= 0.05 and np.abs(start).mean() > 0.02
    delta, g = start, np.zeros_like(x)
    for iterations in range(1, 9):
        moved = np.clip(x + delta, -1, 1)
        total = np.zeros_like(x)
        for detector in s.detectors.values():
            slope = slope_of(detector, x, moved)
            total += slope / mean_size(slope, each=True)
        g = 1.0 * g + total / mean_size(total, each=True)
        delta = np.clip(moved - x + 0.0157 * np.sign(g), -0.05, 0.05)
        delta = np.clip(x + delta, -1, 1) - x
        found = FacePoison({"iterations": iterations}, s).perturb(s.images)
        np.testing.assert_allclose(found, delta, **CLOSE)
    assert np.abs(delta - start).max() > 0.01


def test_the_universal_perturbation_equals_its_equations(two_detectors):
    s, settings = two_detectors, {"iterations": 2, "batch": 4, "step_size": 0.006, "momentum": 0.7}
    w = uniform(s.shape, s.epsilon, *s.seed_names, "start").numpy().astype(np.float64)
    g, images = np.zeros_like(w), s.images.numpy().astype(np.float64)
    for index in range(2 * 2):
        x = images[minibatch(6, 4, index, *s.seed_names, "facepoison").numpy()]
        total = np.zeros_like(w)
        for detector in s.detectors.values():
            slope = slope_of(detector, x, x + w).sum(axis=0, keepdims=True)
            total += slope / mean_size(slope, each=False)
        g = 0.7 * g + total / np.abs(total).mean()
        w = np.clip(w + 0.006 * np.sign(g), -0.05, 0.05)
    found = UniversalFacePoison(settings, s).fit().perturbation
    np.testing.assert_allclose(found, w, **CLOSE)


def test_distance_equals_its_equation():
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 8, 8), (2, 5, 4, 4), (2, 7, 2, 2)]
    maps, clean = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    expected = [
        sum(w * np.abs(a[n] - b[n]).mean() for w, a, b in zip(WEIGHTS, maps, clean, strict=True))
        for n in (0, 1)
    ]
    found = distance([torch.tensor(m) for m in maps], [torch.tensor(m) for m in clean], WEIGHTS)
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_the_noise_that_an_image_starts_from_is_its_own(two_detectors):
    images = two_detectors.images[[0, 1, 0]]
    start = FacePoison({"iterations": 0}, two_detectors).perturb(images)
    assert torch.equal(start[0], start[2]) and not torch.equal(start[0], start[1])


def test_an_image_does_not_see_those_beside_it(two_detectors, simple):
    # Many entries: a momentum with another scale changes the sign of few.
    defence = FacePoison({}, simple(detectors=two_detectors.detectors, count=40, size=12, batch=40))
    images = defence.surroundings.images
    together = defence.perturb(images)
    alone = torch.cat([defence.perturb(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_saturated_images_stay_in_range(simple, power_detector):
    s = simple(detectors={"one": power_detector("one")})
    s = dataclasses.replace(s, images=s.images.sign())
    found = FacePoison({}, s).perturb(s.images)
    assert (s.images + found).abs().max() <= 1 and found.abs().max() > 0.04


# ---- levels ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["retinaface", "s3fd", "dsfd"])
def detector(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DETECTORS[request.param]({"width": 1 / 8})


@pytest.fixture(scope="module")
def faces():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_levels_are_those_of_the_papers(detector, faces):
    found = features(detector, faces)
    network, x = detector.network, detector._input(faces)
    if detector.name == "retinaface":
        expected = network.body(x)
        sizes = [8, 4, 2]
    else:
        expected, number = [], 0
        convolutions = [layer for layer in network.vgg if isinstance(layer, torch.nn.Conv2d)]
        for layer in network.vgg[:30]:
            x = layer(x)
            number += isinstance(layer, torch.nn.Conv2d)
            # conv2_2, conv3_3 and conv5_3 are VGG16's 4th, 7th and 13th convolution.
            if isinstance(layer, torch.nn.ReLU) and number in (4, 7, 13):
                expected.append(x)
        assert len(convolutions) == 15  # thirteen, fc6 and fc7
        sizes = [32, 16, 4]
    assert [each.shape[-1] for each in found] == sizes
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_nothing_is_left_in_the_network(detector, faces):
    features(detector, faces)
    with pytest.raises(HoldfastError):
        features(detector, faces[:, :2])
    assert not any(module._forward_hooks for module in detector.network.modules())


def test_every_registered_detector_gives_three_levels_with_a_gradient(detector, faces):
    assert set(DETECTORS) == set(facepoison.LEVELS)
    point = faces.clone().requires_grad_(True)
    for level in features(detector, point):
        (slope,) = torch.autograd.grad(level.square().sum(), point, retain_graph=True)
        assert slope.abs().sum() > 0 and torch.isfinite(slope).all()


@pytest.mark.parametrize("kind", BOTH)
def test_features_move_further_than_by_noise(detector, faces, kind, simple):
    s = simple(detectors={"any": detector})
    s = dataclasses.replace(s, images=faces, batch=3)
    clean = features(detector, faces)

    def moved(settings):
        protected = kind(settings, s).fit().protect(faces)
        return distance(features(detector, protected), clean, WEIGHTS).mean()

    # With a step of nothing, all that is left is the noise that both start from.
    assert moved({"iterations": 4}) > 1.3 * moved({"iterations": 1, "step_size": 1e-9})


@pytest.mark.parametrize("kind", BOTH)
def test_without_a_detector_the_error_says_what_to_do(simple, kind):
    with pytest.raises(HoldfastError, match="no face detector") as caught:
        kind({}, simple())
    assert "`detectors`" in caught.value.repair
