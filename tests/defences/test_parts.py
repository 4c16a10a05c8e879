"""The parts of TSDF and CMUA against transcriptions of their equations in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from holdfast.defences import cmua, enhancement, fusion, separation
from holdfast.defences.chunks import filled, in_chunks
from holdfast.defences.interruption import Interruption, compact
from holdfast.defences.momentum import momentum_step
from holdfast.defences.options import options
from holdfast.defences.stages import gradient, minibatch, passes, uniform
from holdfast.defences.tsdf import TSDF
from holdfast.errors import HoldfastError

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def features(seed, shape=(3, 2, 4, 4), scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def test_momentum_step_equals_eq_10():
    w, g, velocity = features(0, scale=0.04), features(1), features(2)
    for _ in range(3):
        found_w, found_g = momentum_step(*map(torch.tensor, (w, g, velocity)), 0.013, 0.8, 0.05)
        velocity = 0.8 * velocity + g / np.mean(np.abs(g))
        w = np.clip(w + 0.013 * np.sign(velocity), -0.05, 0.05)
        np.testing.assert_allclose(found_w, w, **CLOSE)
        np.testing.assert_allclose(found_g, velocity, **CLOSE)


def test_momentum_step_stays_finite_without_a_gradient():
    w = torch.full((1, 3, 2, 2), 0.05)
    moved, velocity = momentum_step(w, torch.zeros_like(w), torch.zeros_like(w), 0.01, 0.8, 0.05)
    assert torch.equal(moved, w) and torch.isfinite(velocity).all()


def numpy_enhanced(a, c, alpha, sigma, restandardise):
    """Eq. 3-7, loop by loop; the constants are those that enhancement.py names."""
    z = 1e-5
    n, channels = a.shape[:2]

    def mean(x):
        return np.array([[x[i, j].mean() for j in range(channels)] for i in range(n)])

    def std(x):
        return np.array([[np.sqrt(x[i, j].var() + z**2) for j in range(channels)] for i in range(n)])

    def norm(x):
        return (x - mean(x)[:, :, None, None]) / (std(x)[:, :, None, None] + z)

    def att(x):
        rows = x.reshape(n, -1)
        logits = rows @ rows.T / np.sqrt(rows.shape[1])
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        return (weights @ rows).reshape(x.shape)

    local = norm(a) - norm(c)
    overall = np.broadcast_to(((mean(a) - mean(c)) / (std(c) + z))[:, :, None, None], a.shape)
    structural = att(norm(a)) - att(norm(c))
    direction = np.zeros_like(a)
    for part in (local, overall, structural):
        w = 1 / (1 + np.exp(-mean(np.abs(part))))
        direction = direction + w[:, :, None, None] * part
    shifted = np.stack(
        [a[i] + alpha * np.exp(np.abs(direction[i]).mean() / sigma) * direction[i] for i in range(n)]
    )
    if restandardise:
        shifted = norm(shifted) * std(a)[:, :, None, None] + mean(a)[:, :, None, None]
    return (local, overall, structural), shifted


@pytest.mark.parametrize("restandardise", [True, False])
def test_enhancement_equals_eq_3_to_8(restandardise):
    clean = features(3).astype(np.float64)
    adversarial = clean + features(4, scale=0.05)
    parts, shifted = numpy_enhanced(adversarial, clean, 0.4, 0.5, restandardise)
    a, c = torch.tensor(adversarial), torch.tensor(clean)
    for found, expected in zip(enhancement.differences(a, c), parts, strict=True):
        np.testing.assert_allclose(np.broadcast_to(found, expected.shape), expected, **CLOSE)
    np.testing.assert_allclose(enhancement.enhanced(a, c, 0.4, 0.5, restandardise), shifted, **CLOSE)
    np.testing.assert_allclose(
        enhancement.enhancement_loss(a, c, 0.4, 0.5, restandardise),
        np.mean((shifted - adversarial) ** 2),
        **CLOSE,
    )


def test_enhancement_of_equal_features_is_nothing():
    a = torch.tensor(features(5))
    assert torch.allclose(enhancement.enhanced(a, a, 0.4, 0.1), a, atol=1e-4)


@pytest.mark.parametrize("difference", [0.0, 1.0, 100.0])
def test_enhancement_has_finite_gradients_even_for_constant_maps_and_huge_differences(difference):
    clean = torch.zeros(2, 2, 4, 4)
    a = (clean + difference * torch.tensor(features(6, (2, 2, 4, 4)))).requires_grad_(True)
    (slope,) = torch.autograd.grad(enhancement.enhancement_loss(a, clean), a)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize(("fixed", "sign"), [(True, -1), (False, 1)])
def test_which_sign_of_the_enhancement_loss_enlarges_the_difference(fixed, sign):
    """A1: descending helps only towards a target that is held; without restandardising, Eq. 3 as it is."""
    clean = torch.tensor(features(7))
    a = (clean + torch.tensor(features(8, scale=0.1))).requires_grad_(True)
    loss = enhancement.enhancement_loss(a, clean, 0.4, 0.5, restandardise=False, fixed_target=fixed)
    (slope,) = torch.autograd.grad(loss, a)
    moved = a + sign * 1e-3 * slope / slope.abs().mean()
    assert (moved - clean).square().mean() > (a - clean).square().mean()


perturbations = arrays.arrays(np.float32, (3, 4, 4), elements=st.floats(-0.0625, 0.0625, width=32))


@settings(max_examples=60, deadline=None)
@given(w=perturbations, tau=st.floats(0, 0.1), beta=st.floats(0, 10))
def test_intensity_mask_equals_eq_15(w, tau, beta):
    mask = separation.intensity_mask(torch.tensor(w), tau, beta)
    w64 = np.abs(w.astype(np.float64))
    near = np.abs(w64 - tau) < 1e-7  # where float32 and float64 may fall on either side of the threshold
    expected = np.exp(-beta * w64) * (w64 < tau)
    np.testing.assert_allclose(mask.numpy()[~near], expected[~near], rtol=1e-5, atol=1e-6)
    assert mask.min() >= 0 and mask.max() <= 1


@settings(max_examples=60, deadline=None)
@given(w=perturbations, step=perturbations, reading=st.sampled_from(["perturbation", "update"]))
def test_poisoning_never_leaves_the_mask_nor_the_budget(w, step, reading):
    w, update = torch.tensor(w).clamp(-0.05, 0.05), torch.tensor(step)
    mask = separation.intensity_mask(w, 0.04, 0.4)
    delta = torch.zeros_like(w)
    for _ in range(4):
        delta = separation.masked_step(delta, update, mask, 0.05, reading)
    assert (delta[w.abs() >= 0.04] == 0).all()
    assert delta.abs().max() <= 0.05
    assert separation.combined(w, delta, 0.05).abs().max() <= 0.05


def test_masked_step_equals_eq_16_and_17():
    delta, slope, w = features(9, scale=0.03), features(10), features(11, scale=0.03)
    mask = np.exp(-0.4 * np.abs(w)) * (np.abs(w) < 0.04)
    found = separation.masked_step(*map(torch.tensor, (delta, -0.02 * slope, mask)), 0.05)
    np.testing.assert_allclose(found, np.clip(delta - 0.02 * slope, -0.05, 0.05) * mask, **CLOSE)
    found = separation.masked_step(*map(torch.tensor, (delta, -0.02 * slope, mask)), 0.05, "update")
    np.testing.assert_allclose(found, np.clip(delta - 0.02 * slope * mask, -0.05, 0.05), **CLOSE)
    np.testing.assert_allclose(
        separation.combined(torch.tensor(w), torch.tensor(delta), 0.05),
        np.clip(w + delta, -0.05, 0.05),
        **CLOSE,
    )


def test_cmua_step_equals_its_equations():
    x, seen, slope = (
        features(12, (4, 3, 4, 4), 0.5),
        features(13, (4, 3, 4, 4), 0.5),
        features(14, (4, 3, 4, 4)),
    )
    w = None
    for _ in range(3):
        found_w, found_seen = cmua.cmua_step(
            *map(torch.tensor, (x, seen, slope)), None if w is None else torch.tensor(w), 0.01, 1.7, 0.5, 0.05
        )
        eta = np.mean(np.clip(1.7 * (seen + 0.01 * np.sign(slope) - x), -0.05, 0.05), axis=0)[None]
        w = eta if w is None else 0.5 * w + 0.5 * eta
        seen = np.clip(x + w, -1, 1)
        np.testing.assert_allclose(found_w, w, **CLOSE)
        np.testing.assert_allclose(found_seen, seen, **CLOSE)


def test_cmua_as_a_whole_equals_its_equations(simple, square_model):
    """Batches, models in order, every edit, from noise; the derivative of B x^3 (1 + c) written out."""
    s = simple({"zeta": square_model("zeta"), "stargan": square_model("stargan")})
    settings = {"steps": 3, "batch": 4, "mixing": 0.3, "factor": {"default": 1.0, "zeta": 1.7}}
    w, visit = None, 0
    for batch in range(2):
        chosen = minibatch(6, 4, batch, *s.seed_names, "cmua").numpy()
        x = s.images.numpy().astype(np.float64)[chosen]
        y = s.labels["zeta"].numpy()[chosen][:, :, None, None]
        for name, factor in (("stargan", 1.0), ("zeta", 1.7)):
            b = s.models[name].b.numpy().astype(np.float64)
            for target in (y, 1 - y):
                seen = x + uniform(x.shape, s.epsilon, *s.seed_names, "cmua", "start", visit).numpy()
                for _ in range(3):
                    moved = (1 + target) * np.einsum("cd,ndhw->nchw", b, seen**3 - x**3)
                    slope = (1 + target) * np.einsum("cd,nchw->ndhw", b, moved) * 3 * seen**2
                    stepped = seen + 0.01 * np.sign(slope)
                    eta = np.clip(factor * (stepped - x), -0.05, 0.05).mean(axis=0, keepdims=True)
                    w = eta if w is None else 0.3 * w + 0.7 * eta
                    seen = np.clip(x + w, -1, 1)
                visit += 1
    np.testing.assert_allclose(cmua.CMUA(settings, s).fit().perturbation, w, **CLOSE)


def test_stage_1_of_tsdf_equals_its_equations(simple, square_model):
    """Eq. 2 and 10 over minibatches, without enhancement; the derivative of A (x + y)^2 written out."""
    s = simple({"one": square_model("one"), "two": square_model("two", scale=3.0)})
    given = {"feature_distance": "none", "feature_size": None, "iterations": 2, "batch": 4}
    stage = Interruption(s, TSDF(given | {"step_size": 0.007, "steps_per_batch": 2}, s).settings)
    w = uniform(s.shape, 0.05, *s.seed_names, "interruption", "start").numpy().astype(np.float64)
    g = np.zeros_like(w)
    assert stage.steps == 2 * 2 * 2
    for index in range(stage.steps):
        stage.step(index)
        chosen = minibatch(6, 4, index // 2, *s.seed_names, "interruption").numpy()
        x = s.images.numpy().astype(np.float64)[chosen]
        y = s.labels["one"].numpy()[chosen][:, :, None, None]
        slope = np.zeros_like(w)
        for model in s.models.values():
            a = model.a.numpy().astype(np.float64)
            moved = np.einsum("cd,ndhw->nchw", a, (x + w + y) ** 2 - (x + y) ** 2)
            each = 2 * np.einsum("cd,nchw->ndhw", a, moved) * 2 * (x + w + y) / moved.size / 2
            slope += each.sum(axis=0, keepdims=True)
        g = 0.8 * g + slope / np.abs(slope).mean()
        w = np.clip(w + 0.007 * np.sign(g), -0.05, 0.05)
        np.testing.assert_allclose(stage.perturbation, w, **CLOSE)
        np.testing.assert_allclose(stage.velocity, g, rtol=1e-4, atol=1e-4)


def test_cmua_takes_known_models_in_order_and_others_by_name():
    order = cmua.DEFAULTS["order"]
    assert cmua.in_order(["zeta", "attgan", "alpha", "stargan"], order) == [
        "stargan",
        "attgan",
        "alpha",
        "zeta",
    ]


def test_fused_features_equal_eq_11():
    levels = {
        "a": [torch.tensor(features(15, (2, 3, 4, 4)))],
        "b": [torch.tensor(features(16, (2, 5, 4, 4)))],
    }
    kernels = fusion.adaptors(levels, 6, "seed")
    (found,) = fusion.fused(levels, kernels, {"a": 0.25, "b": 2.0}, 4)
    expected = sum(
        weight * np.einsum("oc,nchw->nohw", kernels[name][0][:, :, 0, 0], levels[name][0])
        for name, weight in (("a", 0.25), ("b", 2.0))
    )
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_adaptors_are_the_same_at_every_call_and_depend_on_the_seed():
    levels = {"a": [torch.zeros(1, 3, 2, 2)] * 2}
    first, again, other = (fusion.adaptors(levels, 4, seed)["a"] for seed in ("s", "s", "t"))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


def test_output_loss_equals_eq_13():
    rng = np.random.default_rng(17)
    scores, boxes, centres = rng.random((2, 5)), rng.random((2, 5, 4)), rng.random((2, 5, 2))
    chosen = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 1, 0]], bool)
    per_image = []
    for n in range(2):
        terms = [
            scores[n, i] ** 2 + np.abs(boxes[n, i] - np.concatenate([centres[n, i]] * 2)).sum()
            for i in np.flatnonzero(chosen[n])
        ]
        per_image.append(np.mean(terms))
    found = fusion.output_loss(*map(torch.tensor, (scores, boxes, centres, chosen)))
    np.testing.assert_allclose(found, np.mean(per_image), **CLOSE)


def test_detected_takes_the_strongest_where_nothing_passes_the_threshold():
    scores = torch.tensor([[0.1, 0.6, 0.9], [0.1, 0.3, 0.2]])
    assert fusion.detected(scores, 0.5).tolist() == [[False, True, True], [False, True, False]]


def test_feature_loss_is_least_at_the_target():
    target = [torch.tensor(features(18)), torch.tensor(features(19))]
    assert fusion.feature_loss(target, target, [5, 3]) == 0
    shifted = [target[0] + 1, target[1] + 2]
    np.testing.assert_allclose(fusion.feature_loss(shifted, target, [5, 3]), 5 * 1 + 3 * 4, rtol=1e-5)


def test_compact_resizes_and_sums_over_channels():
    x = torch.tensor(features(20, (2, 3, 8, 8)))
    assert compact(x, 4, "none").shape == (2, 3, 4, 4)
    np.testing.assert_allclose(compact(x, None, "sum")[:, 0], x.numpy().sum(axis=1), **CLOSE)


def test_gradient_in_chunks_equals_the_gradient_at_once():
    images, point = torch.tensor(features(21, (5, 3, 4, 4))), torch.tensor(features(22, (1, 3, 4, 4)))

    def losses(perturbation, positions):
        x = images[positions] + perturbation
        yield x.pow(3).mean(), {"cube": x.pow(3).mean().item()}
        yield x.sin().mean(), {"sine": x.sin().mean().item()}

    at_once, log = gradient(point, torch.arange(5), 5, losses)
    in_chunks, log_in_chunks = gradient(point, torch.arange(5), 2, losses)
    np.testing.assert_allclose(in_chunks, at_once, **CLOSE)
    assert log == pytest.approx(log_in_chunks, abs=1e-5)


def test_gradients_for_each_image_are_those_of_the_mean_and_stay_apart():
    images, points = torch.tensor(features(23, (5, 3, 4, 4))), torch.tensor(features(24, (5, 3, 4, 4)))
    order = torch.tensor([3, 0, 4, 1, 2])

    def losses(perturbation, positions):
        loss = (images[positions] + perturbation).pow(3).mean()
        yield loss, {"cube": loss.item()}

    slope, log = gradient(points, order, 2, losses)
    moved = images.numpy()[order] + points.numpy()
    np.testing.assert_allclose(slope, 3 * moved**2 / moved.size, **CLOSE)
    np.testing.assert_allclose(log["cube"], np.mean(moved**3), rtol=1e-4)


def test_a_loss_that_the_perturbation_does_not_reach_has_no_slope():
    def losses(perturbation, positions):
        yield perturbation.detach().square().sum() + 1, {"one": 1.0}

    slope, log = gradient(torch.zeros(1, 3, 2, 2), torch.arange(4), 2, losses)
    assert not slope.any() and log == {"one": 1.0}


def test_a_pass_sees_every_image_once():
    batch, updates = passes(12, 4)
    seen = torch.cat([minibatch(12, batch, index, "seed") for index in range(updates)])
    assert sorted(seen.tolist()) == list(range(12))
    assert passes(12, None) == (12, 1) and passes(12, 64) == (12, 1) and passes(12, 5) == (5, 3)


def test_settings_with_a_typo_or_a_wrong_choice_are_refused():
    with pytest.raises(HoldfastError, match="knows no setting `iteratons`"):
        options("TSDF", {"iterations": 1}, {"iteratons": 2})
    with pytest.raises(HoldfastError, match="cannot take this `sign`"):
        options("TSDF", {"sign": "up"}, {"sign": "sideways"}, {"sign": ("up", "down")})


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_chunks_have_one_size_and_what_fills_the_last_one_is_dropped(count):
    x, y, sizes = torch.arange(count * 2.0).view(count, 2), torch.arange(count), []

    def made(a, b):
        sizes.append((len(a), len(b)))
        return 10 * a, b + 1

    tens, ones = in_chunks(made, 3, x, y)
    assert torch.equal(tens, 10 * x) and torch.equal(ones, y + 1)
    assert sizes == [(3, 3)] * -(-count // 3)
    assert torch.equal(in_chunks(lambda a: a.square(), 3, x), x.square())
    assert filled(torch.tensor([4, 1]), 4).tolist() == [4, 1, 4, 4]
