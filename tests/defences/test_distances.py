"""The distances of Table VIII against SciPy, closed forms and their laws."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from holdfast.defences import distances
from holdfast.defences.interruption import DISTANCES, Interruption
from holdfast.defences.tsdf import CHOICES, DEFAULTS, SETTINGS

BOTH = [distances.kl_divergence, distances.wasserstein]
features = arrays.arrays(np.float64, (2, 3, 2, 4), elements=st.floats(-20, 20))


def of_maps(distance, a, c):
    """The mean of `distance(values, values)` over the maps of two features."""
    return np.mean([distance(a[n, k].ravel(), c[n, k].ravel()) for n in range(2) for k in range(3)])


@given(features, features)
def test_kl_divergence_equals_scipy(a, c):
    softmax = scipy.special.softmax
    expected = of_maps(lambda x, y: scipy.stats.entropy(softmax(y), softmax(x)), a, c)
    assert distances.kl_divergence(torch.tensor(a), torch.tensor(c)).item() == pytest.approx(
        expected, abs=1e-9
    )


@given(features, features)
def test_wasserstein_equals_scipy(a, c):
    expected = of_maps(scipy.stats.wasserstein_distance, a, c)
    assert distances.wasserstein(torch.tensor(a), torch.tensor(c)).item() == pytest.approx(expected, abs=1e-9)


@given(features, features)
def test_both_are_nothing_for_equal_features_and_never_negative(a, c):
    a, c = torch.tensor(a), torch.tensor(c)
    for distance in BOTH:
        assert distance(a, a).item() == 0
        assert distance(a, c).item() >= -1e-12  # what is left of a sum that rounds


@given(features, features, st.floats(-5, 5), st.floats(0, 5))
def test_laws(a, c, shift, scale):
    a, c = torch.tensor(a), torch.tensor(c)
    apart = distances.wasserstein(a, c)
    torch.testing.assert_close(distances.wasserstein(c, a), apart)
    torch.testing.assert_close(distances.wasserstein(scale * a, scale * c), scale * apart)
    torch.testing.assert_close(distances.wasserstein(a + shift, a).item(), abs(shift))
    torch.testing.assert_close(distances.wasserstein(a.flip(3), c), apart)  # blind to places
    # A map's mean cancels in a softmax.
    torch.testing.assert_close(distances.kl_divergence(a + shift, c), distances.kl_divergence(a, c))


def test_kl_divergence_is_taken_from_the_clean_map_to_the_adversarial_one():
    clean = torch.log(torch.tensor([0.5, 0.5], dtype=torch.float64)).reshape(1, 1, 1, 2)
    adversarial = torch.log(torch.tensor([0.9, 0.1], dtype=torch.float64)).reshape(1, 1, 1, 2)
    forth = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    back = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    assert distances.kl_divergence(adversarial, clean).item() == pytest.approx(forth)
    assert distances.kl_divergence(clean, adversarial).item() == pytest.approx(back) != forth


@given(features, features)
def test_gradients_are_their_closed_forms(a, c):
    point, clean = torch.tensor(a, requires_grad=True), torch.tensor(c)
    (slope,) = torch.autograd.grad(distances.kl_divergence(point, clean), point)
    expected = scipy.special.softmax(a.reshape(2, 3, 8), -1) - scipy.special.softmax(c.reshape(2, 3, 8), -1)
    np.testing.assert_allclose(slope.reshape(2, 3, 8).numpy(), expected / 6, atol=1e-12)
    (slope,) = torch.autograd.grad(distances.wasserstein(point, clean), point)
    signs = (slope * a.size).numpy()
    np.testing.assert_allclose(signs, np.round(signs), atol=1e-12)
    assert abs(signs).max() <= 1 + 1e-12


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_float32_stays_finite(scale):
    clean = torch.zeros(2, 3, 4, 4)
    noise = torch.tensor(np.random.default_rng(0).normal(size=clean.shape), dtype=torch.float32)
    for distance in BOTH:
        point = (scale * noise).requires_grad_(True)
        loss = distance(point, clean)
        (slope,) = torch.autograd.grad(loss, point)
        assert torch.isfinite(loss) and torch.isfinite(slope).all()


def test_the_settings_name_every_distance():
    assert SETTINGS["feature_distance"]["enum"] == list(CHOICES["feature_distance"]) == list(DISTANCES)


@pytest.mark.parametrize("name", [name for name in DISTANCES if name != "none"])
def test_stage_1_ascends_the_distance_with_the_weight_lambda(name, simple, square_model):
    """The gradient with the distance less the one without it is lambda times the distance's own."""
    model = square_model("one")
    surroundings = simple({"one": model}, batch=6)
    point, positions = surroundings.epsilon * torch.ones(surroundings.shape), torch.arange(6)
    labels = surroundings.labels["one"]

    def slope(**settings):
        stage = Interruption(surroundings, DEFAULTS | {"feature_size": None, "lambda_enh": 0.5} | settings)
        stage._clean = {"one": model.features(surroundings.images, labels)}
        moved = point.clone().requires_grad_(True)
        ((loss, row),) = stage._losses(moved, positions)
        return torch.autograd.grad(loss, moved)[0], row

    moved = point.clone().requires_grad_(True)
    features = model.features(surroundings.images + moved, labels)
    distance = DISTANCES[name](features, model.features(surroundings.images, labels), DEFAULTS)
    (own,) = torch.autograd.grad(distance, moved)
    without, _ = slope(feature_distance="none")
    for sign, factor in (("ascend", 0.5), ("descend", -0.5)):
        found, row = slope(feature_distance=name, enhancement_sign=sign)
        torch.testing.assert_close(found, without + factor * own)
        assert row["l_enh"] == pytest.approx(distance.item()) and own.abs().max() > 0
