"""SSOD against a transcription of dense adversary generation in NumPy."""

import dataclasses

import numpy as np
import pytest
import torch

from holdfast.data.pixels import stored
from holdfast.defences import ssod
from holdfast.defences.ssod import SSOD
from holdfast.errors import HoldfastError

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
GAMMA, EPSILON = 0.03, 0.2


@pytest.fixture
def surroundings(simple, power_detector):
    """Two detectors: of some images many anchors say "face", of others few."""
    detectors = {"one": power_detector("one"), "two": power_detector("two", anchors=3, offset=-0.2)}
    return simple(detectors=detectors, count=8, epsilon=EPSILON)


def algorithm_1(x, detectors, iterations, above=0.1):
    """r of one image (3, S, S), target by target; and whether none was left in the end."""
    kernels = np.concatenate([d.kernel.numpy() for d in detectors]).astype(np.float64)
    offsets = np.concatenate([np.tile(d.offset.numpy(), (len(d.kernel), 1)) for d in detectors])

    def logits(image):
        return kernels @ image.reshape(-1) + offsets

    clean = np.exp(logits(x))
    targets = [t for t in range(len(kernels)) if clean[t, 1] / clean[t].sum() > above]
    r = np.zeros_like(x)
    for _ in range(iterations):
        scores = logits(x + r)
        still = [t for t in targets if np.argmax(scores[t]) == 1]
        if not still:
            return r, True
        change = sum(kernels[t, 0] - kernels[t, 1] for t in still).reshape(x.shape)
        r = np.clip(r + GAMMA / np.abs(change).max() * change, -EPSILON, EPSILON)
        r = np.clip(x + r, -1, 1) - x
    return r, False


@pytest.mark.parametrize("iterations", [1, 2, 5, 80])
def test_the_perturbation_equals_algorithm_1(surroundings, iterations):
    found = SSOD({"iterations": iterations, "gamma": GAMMA}, surroundings).perturb(surroundings.images)
    images = surroundings.images.numpy().astype(np.float64)
    expected = [algorithm_1(x, list(surroundings.detectors.values()), iterations) for x in images]
    np.testing.assert_allclose(found, np.stack([r for r, _ in expected]), **CLOSE)
    ends = [over for _, over in expected]
    assert any(ends) == (iterations > 5) and not all(ends)  # some images are done before others
    assert found.abs().amax(dim=(1, 2, 3)).max() <= min(EPSILON, iterations * GAMMA) + 1e-6


def test_the_step_equals_its_equation():
    rng = np.random.default_rng(0)
    r, grad, x = rng.normal(size=(3, 2, 3, 4, 4))
    r, x = r * 0.02, np.clip(x, -1, 1)
    grad[1] *= 1e6
    largest = np.array([np.abs(g).max() for g in grad])[:, None, None, None]
    expected = np.clip(x + np.clip(r - 0.004 * grad / largest, -0.05, 0.05), -1, 1) - x
    np.testing.assert_allclose(
        ssod.dag_step(*map(torch.tensor, (r, grad, x)), 0.004, 0.05), expected, **CLOSE
    )


def test_without_a_gradient_there_is_no_step():
    zeros = torch.zeros(1, 3, 2, 2)
    assert torch.equal(ssod.dag_step(zeros + 0.01, zeros, zeros, 0.004, 0.05), zeros + 0.01)


def test_margin_and_activity():
    logits = torch.tensor([[[1.0, 3.0], [2.0, 2.0], [5.0, 4.0], [0.0, 7.0]]])
    targets = torch.tensor([[True, True, True, False]])
    chosen = ssod.active(logits, targets)
    assert chosen.tolist() == [[True, False, False, False]]  # a tie says "face" no more
    assert ssod.margin(logits, chosen).tolist() == [2.0]


def test_no_anchor_of_a_target_says_face_when_it_ends(surroundings):
    defence = SSOD({"iterations": 400, "gamma": 0.01}, dataclasses.replace(surroundings, epsilon=1.0))
    found = defence.perturb(surroundings.images)
    targets = defence._targets(surroundings.images)
    assert any(each.any() for each in targets)
    for detector, of_detector in zip(surroundings.detectors.values(), targets, strict=True):
        logits = detector.raw(surroundings.images + found)[0]
        assert not ssod.active(logits, of_detector).any()


def test_images_without_a_face_stay_as_they_are(surroundings):
    images = stored(surroundings.images)
    defence = SSOD({"target_above": 1.0}, surroundings)
    assert torch.equal(defence.perturb(images), torch.zeros_like(images))
    assert torch.equal(defence.protect(images), images)


def test_it_ends_when_all_images_are_done(surroundings, monkeypatch):
    defence, looked_at = SSOD({"iterations": 80, "gamma": GAMMA}, surroundings), []
    slope = defence._slope

    def counting(seen, *targets):
        looked_at.append(seen)
        return slope(seen, *targets)

    monkeypatch.setattr(defence, "_slope", counting)

    def steps_on(images):
        looked_at.clear()
        defence.perturb(images)
        return len(looked_at)

    alone = [steps_on(surroundings.images[5:6]), steps_on(surroundings.images[6:7])]
    assert 0 < min(alone) < max(alone) and min(alone) < 80
    assert steps_on(surroundings.images[5:7]) == max(alone)


def test_an_image_does_not_see_those_beside_it(surroundings):
    images = surroundings.images
    defence = SSOD({"iterations": 20}, dataclasses.replace(surroundings, batch=8))
    alone = torch.cat([defence.perturb(image[None]) for image in images])
    assert torch.equal(defence.perturb(images), alone)


def test_without_a_detector_the_error_says_what_to_do(simple):
    with pytest.raises(HoldfastError, match="no face detector") as caught:
        SSOD({}, simple())
    assert "`detectors`" in caught.value.repair
