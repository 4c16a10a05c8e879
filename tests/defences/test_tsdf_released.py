"""TSDF as released: each known fact of its code against a transcription in NumPy or a closed form."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes.model import build, freeze
from holdfast.defences.adam import adam_change, cosine, limited
from holdfast.defences.enhancement import enhancement_loss
from holdfast.defences.fusion import adaptors
from holdfast.defences.interruption_released import ReleasedInterruption, model_weights, moving_average
from holdfast.defences.poisoning_released import ReleasedPoisoning, flooding_loss
from holdfast.defences.random import Random
from holdfast.defences.stages import Stage, gradient, minibatch, uniform
from holdfast.defences.tsdf_released import DEFAULTS, TSDFReleased
from holdfast.detectors.retinaface import RetinaFace
from holdfast.detectors.s3fd import BACKGROUNDS, S3FD
from holdfast.detectors.training import initialise
from holdfast.errors import HoldfastError
from holdfast.seeds import generator

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
PLAIN = {"iterations": 2, "batch": 3, "diversity": 0, "feature_size": None, "step_size": 0.004}
POISON = {"batch": 3, "poison_steps": 4, "fused_size": 4, "adaptor_channels": 5, "flood_weight": 0}


def settings_of(surroundings, **changes):
    return TSDFReleased(changes, surroundings).settings


def interruption_of(surroundings, **changes):
    return ReleasedInterruption(surroundings, settings_of(surroundings, **changes))


def poisoning_of(surroundings, w=None, **changes):
    """The stage behind a stage 1 that left `w`."""
    over = Stage()
    over.perturbation = uniform(surroundings.shape, surroundings.epsilon, "w0") if w is None else w
    return ReleasedPoisoning(surroundings, settings_of(surroundings, **changes), over)


@pytest.fixture
def two_models(simple, square_model):
    return simple({"one": square_model("one"), "loud": square_model("loud", scale=2.0)})


@pytest.fixture
def two_detectors(simple, power_detector):
    return simple(detectors={"a": power_detector("a"), "b": power_detector("b")})


# ---- the defaults ------------------------------------------------------------------------------------


def test_the_released_constants_are_the_defaults():
    known = {"iterations": 30, "batch": 8, "feature_steps": 3, "output_steps": 1, "step_size": 0.001}
    known |= {"momentum": 0.8, "feature_size": 32, "enhancement_sign": "descend", "restandardise": True}
    known |= {"lambda_enh": 0.001, "alpha": 0.4, "sigma": 0.1, "output_share": 0.7, "feature_share": 0.3}
    known |= {"loss_average": 0.9, "temperature": 0.1, "diversity": 0.5, "tau": 0.04, "beta": 5}
    known |= {"poison_rate": 0.02, "poison_steps": 50, "gradient_norm": 1, "poison_limit": 0.4}
    known |= {"adaptor_channels": 128, "adaptors": "redrawn", "level_weights": [5, 3, 4], "levels": "last"}
    known |= {"without_gradient": ["retinaface"]}
    assert {name: DEFAULTS[name] for name in known} == known and DEFAULTS["flood_weight"] > 0


def test_steps_at_the_papers_size(simple, square_model, power_detector):
    s = simple({"one": square_model("one")}, {"a": power_detector()}, count=128)
    assert interruption_of(s).steps == 30 * 16 * (3 + 1)
    assert poisoning_of(s, flood_weight=0).steps == 16 * 50


@pytest.mark.parametrize("size", [4, 64, 256])
def test_diversity_enlarges_to_at_most_290_of_256(simple, square_model, size):
    stage = interruption_of(simple({"one": square_model("one")}, count=2, size=size))
    assert stage.pairs.frame == round(size * 1.133) and (size != 256 or stage.pairs.frame == 290)


# ---- stage 1 -----------------------------------------------------------------------------------------


def transcribed(s, settings, feature_steps, output_steps):
    """Stage 1 without enhancement, loop by loop, with derivatives written out."""
    images, names = s.images.numpy().astype(np.float64), list(s.models)
    labels = s.labels[names[0]].numpy()[:, :, None, None]
    w = uniform(s.shape, s.epsilon, *s.seed_names, "interruption", "start").numpy().astype(np.float64)
    g, found, average, edit = np.zeros_like(w), [], None, 0

    def of_features(name, x, y):
        """Sum over channels of a model's feature, moved and its derivative."""
        a = s.models[name].a.numpy().astype(np.float64).sum(axis=0)[None, :, None, None]
        moved = (a * ((x + w + y) ** 2 - (x + y) ** 2)).sum(axis=1, keepdims=True)
        return moved, a * 2 * (x + w + y)

    for visit in range(settings["iterations"] * -(-len(images) // settings["batch"])):
        chosen = minibatch(len(images), settings["batch"], visit, *s.seed_names, "interruption").numpy()
        x, y = images[chosen], labels[chosen]
        for turn in range(feature_steps + output_steps):
            if turn < feature_steps:
                moved, slopes = zip(*(of_features(name, x, y) for name in names), strict=True)
                # One map: the models' features side by side, summed over all channels.
                slope = (2 * sum(moved) * sum(slopes)).sum(axis=0, keepdims=True) / sum(moved).size
            else:
                losses, slopes = [], []
                for name in names:
                    moved, derivative = of_features(name, x, y)
                    b = s.models[name].b.numpy().astype(np.float64)
                    scale = 1 + (y if edit % 2 == 0 else 1 - y)
                    out = scale * np.einsum("cd,ndhw->nchw", b, (x + w) ** 3 - x**3)
                    losses.append(0.7 * np.mean(out**2) + 0.3 * np.mean(moved**2))
                    of_out = 2 * np.einsum("cd,nchw->ndhw", b, out * scale) * 3 * (x + w) ** 2 / out.size
                    total = 0.7 * of_out + 0.3 * 2 * moved * derivative / moved.size
                    slopes.append(total.sum(axis=0, keepdims=True))
                losses = np.array(losses)
                average = losses if average is None else 0.9 * average + 0.1 * losses
                weights = np.exp(average / 0.1) / np.exp(average / 0.1).sum()
                slope = sum(weight * each for weight, each in zip(weights, slopes, strict=True))
                edit += 1
            g = settings["momentum"] * g + slope / np.abs(slope).mean()
            w = np.clip(w + settings["step_size"] * np.sign(g), -s.epsilon, s.epsilon)
            found.append((w, average))
    return found


@pytest.mark.parametrize("chunk", [2, 3])
@pytest.mark.parametrize(("feature_steps", "output_steps"), [(3, 1), (1, 0), (0, 2)])
def test_every_update_of_stage_1_equals_its_equations(two_models, feature_steps, output_steps, chunk):
    s = dataclasses.replace(two_models, batch=chunk)
    choice = {"feature_steps": feature_steps, "output_steps": output_steps, "feature_distance": "none"}
    stage = interruption_of(s, **PLAIN, **choice)
    expected = transcribed(s, stage.settings, feature_steps, output_steps)
    assert stage.steps == len(expected) == 4 * (feature_steps + output_steps)
    for index, (w, average) in enumerate(expected):
        log = stage.step(index)
        end_to_end = index % (feature_steps + output_steps) >= feature_steps
        assert list(log) == ["l_end" if end_to_end else "l_mse"]
        np.testing.assert_allclose(stage.perturbation, w, **CLOSE)
        if average is not None:
            np.testing.assert_allclose(stage.averages, average, rtol=1e-4, atol=1e-6)
    assert np.abs(expected[-1][0] - expected[0][0]).max() > 0.001


def test_features_are_resized_concatenated_and_summed(two_models):
    """One loss of one map, L_MSE less lambda L_enh, of all models' channels at 2 x 2."""
    stage = interruption_of(two_models, **PLAIN | {"feature_size": 2, "lambda_enh": 0.5})
    images, labels = two_models.images[:3], two_models.labels["one"][:3]
    ((loss, log),) = stage._features(None)(stage.perturbation, torch.arange(3))

    def joined(x):
        maps = [model.features(x, labels).numpy() for model in two_models.models.values()]
        # Bilinearly to half the size: each pixel is the mean of four.
        halved = [m.reshape(*m.shape[:2], 2, 2, 2, 2).mean(axis=(3, 5)) for m in maps]
        return np.concatenate(halved, axis=1).sum(axis=1, keepdims=True)

    clean, moved = joined(images), joined(images + stage.perturbation)
    enhancement = enhancement_loss(torch.tensor(moved), torch.tensor(clean), 0.4, 0.1).item()
    mse = np.mean((moved - clean) ** 2)
    assert log == pytest.approx({"l_mse": mse, "l_enh": enhancement}, rel=1e-4)
    np.testing.assert_allclose(loss, mse - 0.5 * enhancement, rtol=1e-4)


def test_the_enhancement_loss_is_descended(two_models):
    """With L_enh alone, a tiny step lowers it; ascending raises it."""

    def enhanced_by(sign):
        choice = {"lambda_enh": 1e6, "output_steps": 0, "step_size": 1e-5, "enhancement_sign": sign}
        stage = interruption_of(two_models, **PLAIN | choice | {"batch": 6})
        # All images in one chunk, and the same ones in every step.
        stage.surroundings = dataclasses.replace(two_models, batch=6)
        return [stage.step(index)["l_enh"] for index in range(2)]

    descended, ascended = enhanced_by("descend"), enhanced_by("ascend")
    assert descended[1] < descended[0] == ascended[0] < ascended[1]


def test_models_are_weighed_by_the_softmax_of_their_average_loss():
    average = moving_average(None, torch.tensor([0.2, 0.1]), 0.9)
    assert average.tolist() == pytest.approx([0.2, 0.1])
    average = moving_average(average, torch.tensor([0.0, 0.5]), 0.9)
    np.testing.assert_allclose(average, [0.18, 0.14], **CLOSE)
    expected = np.exp([1.8, 1.4]) / np.exp([1.8, 1.4]).sum()
    np.testing.assert_allclose(model_weights(average, 0.1), expected, **CLOSE)


@pytest.mark.parametrize("index", [0, 3])
def test_with_diversity_nothing_has_changed_without_a_perturbation(two_models, index):
    stage = interruption_of(two_models, **PLAIN | {"diversity": 1, "diversity_size": 2.0})
    stage.perturbation = torch.zeros(two_models.shape)
    assert stage.pairs.place(1, "any") is not None
    assert stage.step(index)["l_mse" if index == 0 else "l_end"] == 0


def test_diversity_is_drawn_anew_for_both_kinds_of_step(two_models, monkeypatch):
    choice = {"iterations": 10, "diversity": 0.5, "diversity_size": 2.0}
    stage, drawn = interruption_of(two_models, **PLAIN | choice), []
    place = stage.pairs.place
    monkeypatch.setattr(stage.pairs, "place", lambda *args: drawn.append(place(*args)) or drawn[-1])
    for index in range(stage.steps):
        stage.step(index)
    of_outputs, of_features = drawn[3::4], [drawn[i] for i in range(len(drawn)) if i % 4 < 3]
    assert len(drawn) == 80 and len(set(drawn)) > 10
    for kind in (of_outputs, of_features):
        assert 0.25 < sum(place is not None for place in kind) / len(kind) < 0.75


# ---- Adam --------------------------------------------------------------------------------------------


def test_adam_with_cosine_and_bounded_norm_equals_torch_s(simple):
    random = generator("adam")
    point = torch.nn.Parameter(torch.randn(2, 3, 4, 4, generator=random))
    optimiser = torch.optim.Adam([point], 0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6)
    ours, first, second = point.detach().clone(), torch.zeros_like(point), torch.zeros_like(point)
    for number in range(6):
        slope = torch.randn(2, 3, 4, 4, generator=random) * 10.0 ** (number - 4)  # norms on both sides of 1
        point.grad = slope.clone()
        torch.nn.utils.clip_grad_norm_([point], 1.0)
        optimiser.step()
        schedule.step()
        change, first, second = adam_change(
            limited(slope, 1.0), first.detach(), second.detach(), number, 0.02 * cosine(number, 6)
        )
        ours = ours + change
        np.testing.assert_allclose(ours, point.detach(), **CLOSE)


def test_a_gradient_is_never_longer_than_its_bound():
    slope = torch.tensor([3.0, 4.0])
    np.testing.assert_allclose(limited(slope, 1.0), [0.6, 0.8], **CLOSE)
    assert torch.equal(limited(slope, 10.0), slope) and torch.equal(limited(0 * slope, 1.0), 0 * slope)
    assert cosine(0, 50) == 1 and cosine(25, 50) == pytest.approx(0.5) and 0 < cosine(49, 50) < 0.01


# ---- stage 2 -----------------------------------------------------------------------------------------


def transcribed_poisoning(s, settings, w0):
    """Stage 2 with fixed or re-drawn adaptors, on the last level only, derivatives written out."""
    images, names = s.images.numpy().astype(np.float64), (*s.seed_names, "poisoning")
    w0 = w0.numpy().astype(np.float64)
    mask = np.exp(-5 * np.abs(w0)) * (np.abs(w0) < 0.04)
    margin = mask.mean(axis=1, keepdims=True)  # nu is 1, and the features have the images' size
    steps, batch = settings["poison_steps"], settings["batch"]
    delta, found = np.zeros_like(w0), []

    def last(name, x):
        detector = s.detectors[name]
        mixed = np.einsum("cd,ndhw->nchw", detector.mixes[2].numpy().astype(np.float64), x)
        return detector.scales[2] * mixed**3, detector.scales[2] * 3 * mixed**2

    def kernels(*call):
        shapes = {name: [torch.zeros(1, 4, 1, 1)] for name in s.detectors}
        call = call if settings["adaptors"] == "redrawn" else ()
        drawn = adaptors(shapes, settings["adaptor_channels"], *names, "adaptor", *call)
        return {name: k[0][:, :, 0, 0].numpy().astype(np.float64) for name, k in drawn.items()}

    for visit in range(-(-len(images) // batch)):
        x = images[minibatch(len(images), batch, visit, *names).numpy()]
        delta = np.repeat(delta, len(x), axis=0)
        first, second = np.zeros_like(delta), np.zeros_like(delta)
        for number in range(steps):
            index = visit * steps + number
            of_clean, of_perturbed = kernels(index, "clean"), kernels(index, "perturbed")
            seen = x + np.clip(w0 + delta, -s.epsilon, s.epsilon)
            target = margin - sum(
                0.5 * np.einsum("oc,nchw->nohw", of_clean[name], last(name, x)[0]) for name in s.detectors
            )
            fused = sum(
                0.5 * np.einsum("oc,nchw->nohw", of_perturbed[name], last(name, seen)[0])
                for name in s.detectors
            )
            of_fused = 4 * 2 * (fused - target) / fused.size
            slope = np.zeros_like(delta)
            for name in s.detectors:
                if name not in settings["without_gradient"]:
                    back = 0.5 * np.einsum("oc,nohw->nchw", of_perturbed[name], of_fused)
                    back = back * last(name, seen)[1]
                    slope += np.einsum("cd,nchw->ndhw", s.detectors[name].mixes[2].numpy(), back)
            slope = slope / max(1.0, np.sqrt((slope**2).sum()))
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            rate = 0.02 * (1 + math.cos(math.pi * number / steps)) / 2
            mean, size = first / (1 - 0.9 ** (number + 1)), second / (1 - 0.999 ** (number + 1))
            delta = np.clip(delta - rate * mean / (np.sqrt(size) + 1e-8), -0.4, 0.4) * mask
            if number == steps - 1:
                delta = delta.mean(axis=0, keepdims=True)
            found.append(delta)
    return found


@pytest.mark.parametrize("cut", [[], ["b"]])
@pytest.mark.parametrize("kind", ["redrawn", "fixed"])
@pytest.mark.parametrize("chunk", [2, 3])
def test_every_update_of_stage_2_equals_its_equations(two_detectors, kind, cut, chunk):
    s = dataclasses.replace(two_detectors, batch=chunk)
    stage = poisoning_of(s, **POISON, adaptors=kind, without_gradient=cut)
    expected = transcribed_poisoning(s, stage.settings, stage.interruption.perturbation)
    assert stage.steps == len(expected) == 2 * 4
    for index, delta in enumerate(expected):
        assert list(stage.step(index)) == ["l_feat"]
        assert stage.perturbation.shape == delta.shape == ((1 if index % 4 == 3 else 3), 3, 4, 4)
        np.testing.assert_allclose(stage.perturbation, delta, rtol=1e-4, atol=1e-5)
    assert np.abs(expected[-1]).max() > 0.005


def test_only_the_last_level_contributes(two_detectors):
    def learnt(**choice):
        stage = poisoning_of(two_detectors, **POISON, **choice)
        for index in range(stage.steps):
            stage.step(index)
        return stage.perturbation

    plain = learnt()
    assert torch.equal(learnt(level_weights=[0, 9, 4]), plain)
    assert not torch.equal(learnt(levels="all"), plain)
    assert not learnt(level_weights=[5, 3, 0]).any()


def test_adaptors_are_drawn_at_every_call(two_detectors):
    stage = poisoning_of(two_detectors, **POISON)
    levels, _ = stage._observed(two_detectors.images)
    seen = [stage._fused(levels, *call)[0] for call in ((0, "clean"), (0, "perturbed"), (1, "clean"))]
    assert not any(torch.equal(seen[a], seen[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(stage._fused(levels, 0, "clean")[0], seen[0])
    fixed = poisoning_of(two_detectors, **POISON, adaptors="fixed")
    assert torch.equal(fixed._fused(levels, 0, "clean")[0], fixed._fused(levels, 1, "perturbed")[0])


def test_delta_stays_in_the_mask_and_within_its_own_bound(two_detectors):
    stage = poisoning_of(two_detectors, **POISON, poison_limit=0.01, poison_rate=1.0)
    for index in range(stage.steps):
        stage.step(index)
        strong = (stage.interruption.perturbation.abs() >= 0.04).expand_as(stage.perturbation)
        assert (stage.perturbation[strong] == 0).all() and stage.perturbation.abs().max() <= 0.01
    assert strong.any() and stage.perturbation.abs().max() > 0.001


# ---- real detectors ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(simple):
    """Tiny S3FD and RetinaFace with weights that let something through."""
    s = simple(count=4, size=32, batch=4)
    s3fd, retinaface = S3FD({"width": 1 / 16}), RetinaFace({"width": 1 / 8})
    for detector in (s3fd, retinaface):
        initialise(detector.network, "released", detector.name)
    with torch.no_grad():
        s3fd.network.conf[0].weight.mul_(10)
        for module in retinaface.network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        retinaface.network.train()
        retinaface.raw(s.images)
    return dataclasses.replace(s, detectors={"s3fd": s3fd.freeze(), "retinaface": retinaface.freeze()})


def with_only(s, *names):
    return dataclasses.replace(s, detectors={name: s.detectors[name] for name in names})


SMALL = {"batch": 4, "fused_size": 8, "adaptor_channels": 8}


def slope_of(surroundings, **changes):
    stage = poisoning_of(surroundings, **SMALL, **changes)
    stage._prepare(0)
    seen = stage.interruption.perturbation.expand(4, -1, -1, -1)
    return gradient(seen, stage._positions, 4, stage._losses_of(0))


def test_no_gradient_reaches_through_retinaface(real):
    alone = with_only(real, "retinaface")
    slope, log = slope_of(alone, flood_weight=0)
    assert slope.shape == (4, 3, 32, 32) and not slope.any() and log["l_feat"] > 0
    # The same network gives one where it is asked for it: what is cut is not the network's own doing.
    assert slope_of(alone, flood_weight=0, without_gradient=[])[0].any()
    both, asked = (slope_of(real, without_gradient=names)[0] for names in (["retinaface"], []))
    assert both.any() and not torch.allclose(both, asked)


def test_with_retinaface_alone_nothing_is_poisoned(real, square_model):
    s = dataclasses.replace(with_only(real, "retinaface"), models={"one": square_model("one")})
    s = dataclasses.replace(s, labels={"one": torch.zeros(4, 1)})
    settings = SMALL | {"iterations": 1, "flood_weight": 0}
    defence = TSDFReleased(settings, s).fit()
    assert defence.stages["poisoning"].steps == 0 and not defence.stages["poisoning"].perturbation.any()
    assert torch.equal(defence.perturbation, TSDFReleased(settings | {"tau": 0}, s).fit().perturbation)


def test_the_s3fd_term_is_the_mean_margin_on_the_stride_4_head(real):
    detector = real.detectors["s3fd"]
    network, maps = detector.network, {}
    handle = network.conf[0].register_forward_hook(lambda module, given, out: maps.update(finest=out))
    levels, (logits, _) = detector.levels_and_raw(real.images)
    handle.remove()
    finest = maps["finest"].detach().numpy()
    assert finest.shape == (4, BACKGROUNDS + 1, 8, 8)  # 32 pixels at stride 4
    expected = np.mean(finest[:, :BACKGROUNDS].max(axis=1) - finest[:, BACKGROUNDS])
    np.testing.assert_allclose(flooding_loss(logits, 64), expected, **CLOSE)
    stage = poisoning_of(real, **SMALL)
    np.testing.assert_allclose(stage._observed(real.images)[1], expected, **CLOSE)
    log = slope_of(real)[1]
    assert set(log) == {"l_feat", "l_flood"}


def test_descending_the_s3fd_term_raises_face_scores(real):
    s3fd = real.detectors["s3fd"]
    choice = SMALL | {"level_weights": [0, 0, 0], "poison_steps": 20, "tau": 1.0, "mask_acts_on": "update"}
    stage = poisoning_of(with_only(real, "s3fd"), torch.zeros(real.shape), **choice)
    losses = [stage.step(index)["l_flood"] for index in range(stage.steps)]
    assert losses[-1] < losses[0] - 1e-3

    def scores(x):
        return torch.softmax(s3fd.raw(x)[0][:, :64], -1)[..., 1].mean()

    moved = stage.perturbation.clamp(-real.epsilon, real.epsilon)
    assert scores(real.images + moved) > scores(real.images)


def test_weight_zero_leaves_the_s3fd_term_out(real):
    with_term, (without, log) = slope_of(real)[0], slope_of(real, flood_weight=0)
    assert set(log) == {"l_feat"}
    doubled = slope_of(real, flood_weight=2)[0]
    # Linear in the weight: 0 is the feature loss and nothing else.
    torch.testing.assert_close(doubled - with_term, with_term - without, atol=1e-6, rtol=1e-3)
    assert not torch.allclose(with_term, without)
    unasked = with_only(real, "retinaface")
    assert poisoning_of(unasked, **SMALL, flood_weight=0, without_gradient=[]).steps == 50


# ---- as a whole --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(real, square_model):
    models = {"one": square_model("one"), "two": square_model("two")}
    return dataclasses.replace(real, models=models, labels=dict.fromkeys(models, torch.zeros(4, 1)))


WHOLE = {"iterations": 2, "batch": 2, "poison_steps": 3, "fused_size": 8, "adaptor_channels": 8}


@pytest.mark.parametrize("diversity", [0, 1])
def test_stage_1_moves_features_and_outputs_more_than_noise_of_the_budget(simple, diversity):
    small = {"attributes": ["Male", "Young"], "generator_channels": 4, "discriminator_channels": 4}
    small |= {"discriminator_layers": 3}
    models = {n: freeze(build(DEEPFAKES, "stargan", small, 16, ("released", n))) for n in ("one", "two")}
    s = simple(models, size=16)
    s = dataclasses.replace(s, labels={n: torch.cat([labels] * 2, dim=1) for n, labels in s.labels.items()})
    settings = {"iterations": 6, "batch": 6, "step_size": 0.01, "tau": 0, "diversity": diversity}
    found = TSDFReleased(settings, s).fit().perturbation
    noise = Random({}, s).fit().perturbation.sign() * s.epsilon
    x, labels = s.images, s.labels["one"]

    def moved(perturbation):
        # Of the models together: nothing in the released losses protects one model's share of the sum.
        features = sum(m.features(x + perturbation, labels) - m.features(x, labels) for m in models.values())
        outputs = [m.edits(x + perturbation, labels) - m.edits(x, labels) for m in models.values()]
        return features.sum(dim=1).square().mean(), torch.stack(outputs).square().mean()

    assert all(a > 1.2 * b for a, b in zip(moved(found), moved(noise), strict=True))


@pytest.mark.parametrize("index", [1, 4, 15, 16, 17, 19, 21])
def test_a_killed_run_goes_on_and_ends_the_same(whole, index, tmp_path, killed_before):
    """Killed in stage 1, before its end-to-end step and after it, between the stages, within a minibatch."""
    expected = TSDFReleased(WHOLE, whole).fit()
    assert [stage.steps for stage in expected.stages.values()] == [16, 6]
    kept = dataclasses.replace(whole, state_path=tmp_path / "state.pt")
    killed_before(index, TSDFReleased(WHOLE, kept).fit)
    assert torch.equal(TSDFReleased(WHOLE, kept).fit().perturbation, expected.perturbation)


def test_what_is_missing_is_told(whole):
    with pytest.raises(HoldfastError, match="no S3FD for the S3FD term") as caught:
        TSDFReleased(WHOLE, with_only(whole, "retinaface")).fit()
    assert "`flood_weight: 0`" in caught.value.repair
    blind = with_only(whole)
    with pytest.raises(HoldfastError, match="no face detector") as caught:
        TSDFReleased(WHOLE, blind).fit()
    assert "tau: 0" in caught.value.repair
    assert "poisoning" not in (defence := TSDFReleased(WHOLE | {"tau": 0}, blind).fit()).stages
    assert defence.perturbation.abs().max() <= blind.epsilon
    with pytest.raises(HoldfastError, match="no deepfake model"):
        TSDFReleased(WHOLE, dataclasses.replace(whole, models={})).fit()
    with pytest.raises(HoldfastError, match="nothing to do"):
        TSDFReleased({"feature_steps": 0, "output_steps": 0}, whole)
    halved = dict(whole.models)
    halved["two"] = copy.copy(halved["two"])
    halved["two"].features = lambda x, labels: whole.models["two"].features(x, labels)[..., ::2, ::2]
    with pytest.raises(HoldfastError, match="different sizes") as caught:
        TSDFReleased(WHOLE | {"feature_size": None}, dataclasses.replace(whole, models=halved)).fit()
    assert caught.value.found == "16 x 16, 32 x 32" and "feature_size" in caught.value.repair
    with pytest.raises(HoldfastError, match="`levels`"):
        TSDFReleased({"levels": "first"}, whole)
    with pytest.raises(HoldfastError, match="knows no setting `output_weight`"):
        TSDFReleased({"output_weight": 1}, whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_ends_close_to_where_it_ends_on_a_cpu(real, whole):
    on_gpu = dataclasses.replace(
        whole,
        device="cuda",
        images=whole.images.cuda(),
        detectors={name: detector.to("cuda") for name, detector in whole.detectors.items()},
        models={},
    )
    try:
        stage = poisoning_of(on_gpu, uniform(whole.shape, 0.05, "w0").cuda(), **SMALL, poison_steps=3)
        found = [stage.step(index)["l_feat"] for index in range(3)]
    finally:
        for detector in whole.detectors.values():
            detector.to("cpu")
    stage = poisoning_of(real, uniform(whole.shape, 0.05, "w0"), **SMALL, poison_steps=3)
    assert found == pytest.approx([stage.step(index)["l_feat"] for index in range(3)], rel=1e-2)
