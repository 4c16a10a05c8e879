"""FOUND against a transcription of its update in NumPy; input diversity; what it does to a real network."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes.model import build, freeze
from holdfast.defences.diversity import diversified, placed
from holdfast.defences.found import FOUND, Disruption
from holdfast.defences.interruption import compact
from holdfast.defences.momentum import momentum_step, normalised
from holdfast.defences.random import Random
from holdfast.defences.stages import minibatch, uniform
from holdfast.errors import HoldfastError

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PLAIN = {"iterations": 2, "batch": 3, "diversity": 0, "feature_size": None, "step_size": 0.004}


@pytest.fixture
def two_models(simple, square_model):
    return simple({"one": square_model("one"), "loud": square_model("loud", scale=100.0)})


def transcribed(s, settings, feature_steps, output_steps):
    """The whole optimisation, loop by loop, with derivatives written out."""
    images = s.images.numpy().astype(np.float64)
    names = list(s.models)
    labels = s.labels[names[0]].numpy()[:, :, None, None]
    w = uniform(s.shape, s.epsilon, *s.seed_names, "found", "start").numpy().astype(np.float64)
    g, found = np.zeros_like(w), []
    visits = settings["iterations"] * -(-len(images) // settings["batch"])
    for visit in range(visits):
        chosen = minibatch(len(images), settings["batch"], visit, *s.seed_names, "found").numpy()
        x, y = images[chosen], labels[chosen]
        for turn in range(feature_steps + output_steps):
            total = np.zeros_like(w)
            for name in names:
                if turn < feature_steps:
                    a = s.models[name].a.numpy().sum(axis=0)[None, :, None, None]  # summed over channels
                    moved = (a * ((x + w + y) ** 2 - (x + y) ** 2)).sum(axis=1, keepdims=True)
                    slope = 2 * moved * a * 2 * (x + w + y)
                else:
                    b = s.models[name].b.numpy()
                    edit = (visit * output_steps + turn - feature_steps) % 2
                    scale = 1 + (y if edit == 0 else 1 - y)
                    moved = scale * np.einsum("cd,ndhw->nchw", b, (x + w) ** 3 - x**3)
                    slope = 2 * np.einsum("cd,nchw->ndhw", b, moved) * scale * 3 * (x + w) ** 2
                slope = slope.sum(axis=0, keepdims=True)  # mean over images: the factor is divided away
                total += slope / np.abs(slope).mean()
            g = settings["momentum"] * g + total / np.abs(total).mean()
            w = np.clip(w + settings["step_size"] * np.sign(g), -s.epsilon, s.epsilon)
            found.append(w)
    return found


@pytest.mark.parametrize(("feature_steps", "output_steps"), [(3, 1), (1, 0), (0, 2), (1, 3)])
def test_every_update_equals_its_equations(two_models, feature_steps, output_steps):
    steps = {"feature_steps": feature_steps, "output_steps": output_steps}
    settings = FOUND(PLAIN | steps, two_models).settings
    expected = transcribed(two_models, settings, feature_steps, output_steps)
    disruption = Disruption(two_models, settings)
    assert disruption.steps == len(expected) == 4 * (feature_steps + output_steps)
    for index, w in enumerate(expected):
        log = disruption.step(index)
        assert list(log) == [
            "l_feature" if index % (feature_steps + output_steps) < feature_steps else "l_output"
        ]
        np.testing.assert_allclose(disruption.perturbation, w, **CLOSE)
    assert np.abs(expected[-1] - expected[0]).max() > 0.001


def test_a_model_of_a_larger_scale_does_not_decide_alone(simple, square_model):
    def found(scales):
        models = {name: square_model(name, scale) for name, scale in scales.items()}
        return FOUND(PLAIN | {"output_steps": 0}, simple(models)).fit().perturbation

    plain, louder = found({"one": 1.0, "two": 1.0}), found({"one": 1.0, "two": 1000.0})
    torch.testing.assert_close(louder, plain, atol=1e-6, rtol=0)
    assert not torch.allclose(plain, found({"two": 1.0}), atol=1e-3)


def test_gradients_are_normalised_by_their_own_mean():
    gradient = torch.tensor(np.random.default_rng(0).normal(size=(3, 2, 4, 4))) * torch.tensor(
        [1.0, 10.0, 0.0]
    ).view(3, 1, 1, 1)
    each = gradient.numpy() / np.maximum(np.abs(gradient.numpy()).mean(axis=(1, 2, 3), keepdims=True), 1e-12)
    np.testing.assert_allclose(normalised(gradient, per_image=True), each, **CLOSE)
    np.testing.assert_allclose(normalised(gradient), gradient / gradient.abs().mean(), **CLOSE)
    start, still = torch.zeros_like(gradient), torch.zeros_like(gradient)
    moved, velocity = momentum_step(start, gradient, still + 0.5, 0.01, 0.8, 0.05, per_image=True)
    np.testing.assert_allclose(velocity, 0.4 + each, **CLOSE)
    np.testing.assert_allclose(moved, 0.01 * np.sign(0.4 + each), **CLOSE)


# ---- input diversity ---------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(0, 60), st.integers(0, 50))
def test_images_lie_within_the_frame(size, more, seed):
    place = placed(size, size + more, 1, "place", seed)
    side, top, left = place
    assert size <= side <= size + more
    assert min(top, left) >= 0 and max(top, left) + side <= size + more
    assert place == placed(size, size + more, 1, "place", seed)


def test_how_often_images_are_changed():
    drawn = [placed(256, 290, 0.5, "often", index) for index in range(400)]
    assert 160 < sum(place is not None for place in drawn) < 240
    assert len(set(drawn)) > 100
    assert all(placed(256, 290, 0, "often", index) is None for index in range(50))


def test_diversified_equals_padding_and_resizing():
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 4)).astype(np.float32)
    assert torch.equal(diversified(torch.tensor(x), None, 8), torch.tensor(x))
    framed = np.zeros((2, 3, 8, 8), np.float32)
    framed[:, :, 1:5, 3:7] = x
    # A frame of twice the size, brought back bilinearly: each pixel is the mean of four.
    expected = framed.reshape(2, 3, 4, 2, 4, 2).mean(axis=(3, 5))
    np.testing.assert_allclose(diversified(torch.tensor(x), (4, 1, 3), 8), expected, **CLOSE)
    # An image as large as the frame lies everywhere in it.
    constant = torch.full((1, 3, 4, 4), 0.7)
    np.testing.assert_allclose(diversified(constant, (8, 0, 0), 8), constant, **CLOSE)


def test_with_diversity_the_clean_image_goes_the_same_way(two_models):
    disruption = Disruption(
        two_models, FOUND(PLAIN | {"diversity": 1, "diversity_size": 2.0}, two_models).settings
    )
    disruption.perturbation = torch.zeros(two_models.shape)
    # Without a perturbation nothing has changed, wherever the images lie.
    assert [disruption.step(index) for index in (0, 3)] == [{"l_feature": 0.0}, {"l_output": 0.0}]


# ---- as a whole --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stargan(simple):
    settings = {"attributes": ["Male", "Young"], "generator_channels": 4, "discriminator_channels": 4}
    settings |= {"discriminator_layers": 3}
    model = freeze(build(DEEPFAKES, "stargan", settings, 16, ("found",)))
    s = simple({"stargan": model}, size=16)
    return dataclasses.replace(s, labels={"stargan": torch.cat([s.labels["stargan"]] * 2, dim=1)})


@pytest.mark.parametrize("diversity", [0, 1])
def test_features_and_outputs_move_more_than_with_noise_of_the_budget(stargan, diversity):
    settings = {"iterations": 6, "batch": 6, "step_size": 0.01, "diversity": diversity}
    found = FOUND(settings, stargan).fit().perturbation
    noise = Random({}, stargan).fit().perturbation.sign() * stargan.epsilon
    model, x, labels = stargan.models["stargan"], stargan.images, stargan.labels["stargan"]

    def moved(perturbation):
        features = compact(model.features(x + perturbation, labels) - model.features(x, labels), None, "sum")
        outputs = model.edits(x + perturbation, labels) - model.edits(x, labels)
        return features.square().mean(), outputs.square().mean()

    assert all(a > 1.2 * b for a, b in zip(moved(found), moved(noise), strict=True))


def test_only_features_run_no_decoder(stargan, monkeypatch):
    monkeypatch.setattr(type(stargan.models["stargan"]), "edit", None)
    assert FOUND({"iterations": 1, "output_steps": 0}, stargan).fit().perturbation is not None


def test_all_images_at_once_and_one_image(simple, square_model):
    one = simple({"one": square_model("one")}, count=1)
    assert Disruption(one, FOUND({"iterations": 2}, one).settings).steps == 2 * 1 * 4
    six = simple({"one": square_model("one")})
    assert Disruption(six, FOUND({"iterations": 2, "batch": None}, six).settings).steps == 2 * 1 * 4
    assert FOUND({"iterations": 1}, one).fit().perturbation.abs().max() <= 0.05


def test_what_is_missing_is_told(simple, two_models):
    with pytest.raises(HoldfastError, match="no deepfake model") as caught:
        FOUND({}, simple()).fit()
    assert "`deepfakes`" in caught.value.repair
    with pytest.raises(HoldfastError, match="nothing to do"):
        FOUND({"feature_steps": 0, "output_steps": 0}, two_models)
    with pytest.raises(HoldfastError, match="knows no setting `tau`"):
        FOUND({"tau": 1}, two_models)
