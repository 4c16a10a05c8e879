"""CMUA and TSDF as wholes, on tiny networks; poisoning also on real weights where the lab is at hand."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.data.pixels import to_float
from holdfast.deepfakes.stargan import StarGAN
from holdfast.defences import DEFENCES
from holdfast.defences.base import Surroundings
from holdfast.defences.cmua import cmua_step, factor_of
from holdfast.defences.fusion import detected
from holdfast.defences.poisoning import Poisoning
from holdfast.defences.random import Random
from holdfast.defences.stages import Stage, uniform
from holdfast.defences.tsdf import TSDF
from holdfast.detectors.dsfd import DSFD
from holdfast.detectors.retinaface import RetinaFace
from holdfast.detectors.s3fd import S3FD
from holdfast.detectors.training import initialise
from holdfast.errors import HoldfastError

EPSILON = 0.05
SHORT = {
    "cmua": {"steps": 2, "batch": 4, "factor": 1},
    "tsdf": {
        "iterations": 3,
        "poison_iterations": 3,
        "batch": 4,
        "fused_size": 8,
        "adaptor_channels": 8,
        "step_size": 0.01,
        "poison_step_size": 0.01,
    },
}


def lively(detector, images):
    """Untrained, but with batch statistics of `images` and decided scores: else all of it fades away."""
    for module in detector.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    detector.network.train()
    with torch.no_grad():
        for head in detector.network.ClassHead:
            head.conv1x1.weight.mul_(10)
        detector.raw(images)
    return detector.freeze()


@pytest.fixture(scope="module")
def surroundings(small_stargan):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, other = (small_stargan() for _ in range(2))
        images, labels = torch.rand(8, 3, 32, 32) * 2 - 1, (torch.rand(8, 5) > 0.5).float()
        detector = lively(RetinaFace(), images)
    return Surroundings(
        models={"stargan": model, "other": other},
        detectors={"retinaface": detector},
        images=images,
        labels={"stargan": labels, "other": labels},
        epsilon=EPSILON,
        seed_names=("test", 0),
        batch=3,
    )


@pytest.mark.parametrize("name", SHORT)
def test_budget_holds_in_float_and_after_eight_bits(surroundings, name):
    defence = DEFENCES[name](SHORT[name], surroundings).fit()
    assert defence.perturbation.shape == (1, 3, 32, 32)
    assert 0 < defence.perturbation.abs().max() <= EPSILON
    moved = defence.protect(surroundings.images) - surroundings.images
    assert moved.abs().max() <= EPSILON + 1 / 255 + 1e-6


@pytest.mark.parametrize("name", SHORT)
def test_deterministic_seeded_and_without_a_trace_in_the_networks(surroundings, name):
    networks = [n for m in surroundings.models.values() for n in m.networks.values()]
    networks.append(surroundings.detectors["retinaface"].network)
    before = [value.clone() for n in networks for value in n.state_dict().values()]
    first, again = (DEFENCES[name](SHORT[name], surroundings).fit().perturbation for _ in range(2))
    other = dataclasses.replace(surroundings, seed_names=("test", 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, DEFENCES[name](SHORT[name], other).fit().perturbation)
    after = [value for n in networks for value in n.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for n in networks for p in n.parameters())


@pytest.mark.parametrize("name", SHORT)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(surroundings, name, tmp_path, killed_before):
    whole = DEFENCES[name](SHORT[name], surroundings).fit().perturbation
    kept = dataclasses.replace(surroundings, state_path=tmp_path / "state.pt")
    for index in (1, 3, 8):
        killed_before(index, DEFENCES[name](SHORT[name], kept).fit)
    assert torch.equal(DEFENCES[name](SHORT[name], kept).fit().perturbation, whole)


@pytest.mark.parametrize("reading", ["perturbation", "update"])
@pytest.mark.parametrize("objective", ["minimise_sum", "descend_literal", "ascend_literal"])
def test_poisoning_stays_where_interruption_is_faint(surroundings, reading, objective):
    settings = SHORT["tsdf"] | {"mask_acts_on": reading, "poison_objective": objective}
    defence = DEFENCES["tsdf"](settings, surroundings).fit()
    interruption, delta = (defence.stages[name].perturbation for name in ("interruption", "poisoning"))
    strong = interruption.abs() >= 0.04
    assert strong.any() and (delta[strong] == 0).all() and (delta[~strong] != 0).any()
    assert torch.equal(defence.perturbation[strong], interruption[strong])


def test_poisoning_lowers_scores_more_than_interruption_alone(surroundings):
    detector, images = surroundings.detectors["retinaface"], surroundings.images
    # An untrained detector's features say nothing of its scores: only the output term is asked.
    settings = SHORT["tsdf"] | {"poison_iterations": 10, "iterations": 1, "level_weights": [0, 0, 0]}

    def scores(x):
        with torch.no_grad():
            return torch.softmax(detector.raw(x)[0], -1)[..., 1]

    chosen = detected(scores(images), 0.5)

    def left(tau):
        return scores(DEFENCES["tsdf"](settings | {"tau": tau}, surroundings).fit().protect(images))[
            chosen
        ].mean()

    assert left(0.04) < left(0) - 0.01


def test_the_three_poisoning_objectives_are_three(surroundings):
    found = [
        DEFENCES["tsdf"](SHORT["tsdf"] | {"poison_objective": objective}, surroundings).fit().perturbation
        for objective in ("minimise_sum", "descend_literal", "ascend_literal")
    ]
    assert not any(torch.equal(found[a], found[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    "choice",
    [
        {"enhancement_sign": "descend", "enhancement_target": "fixed"},
        {"feature_distance": "none", "feature_reduction": "sum"},
        {"restandardise": False, "batch": None},
        {},
    ],
)
def test_interruption_moves_features_more_than_noise_of_the_same_budget(surroundings, choice):
    settings = SHORT["tsdf"] | {"tau": 0.0, "iterations": 8} | choice
    defence = DEFENCES["tsdf"](settings, surroundings).fit()
    assert "poisoning" not in defence.stages
    noise = torch.sign(Random({}, surroundings).fit().perturbation) * EPSILON
    model, labels = surroundings.models["stargan"], surroundings.labels["stargan"]
    clean = model.features(surroundings.images, labels)

    def distance(perturbation):
        moved = model.features(surroundings.images + perturbation, labels)
        return (moved - clean).square().mean()

    assert distance(defence.perturbation) > 1.2 * distance(noise)


@pytest.mark.parametrize("factor, left", [(1.0, 0.5), (2.0, 0.5 * 1.5**9)])
def test_what_a_visit_of_cmua_leaves_of_the_watermark(factor, left):
    """A model without a gradient adds nothing: its first step halves W, the others see x + W."""
    x, before = torch.zeros(2, 3, 4, 4), torch.full((1, 3, 4, 4), 1e-4)
    after, seen = before, x
    for _ in range(10):
        after, seen = cmua_step(x, seen, torch.zeros_like(x), after, 0.01, factor, 0.5, EPSILON)
    assert torch.allclose(after, left * before)


def test_cmua_has_a_factor_for_all_models_or_one_for_each(surroundings):
    assert factor_of(2, "hisd") == factor_of({"default": 2, "stargan": 3}, "hisd") == 2
    assert factor_of({"default": 2, "stargan": 3}, "stargan") == 3 and factor_of({"stargan": 3}, "hisd") == 1
    settings = {"steps": 2, "batch": 8}
    found = [
        DEFENCES["cmua"](settings | {"factor": factor}, surroundings).fit().perturbation
        for factor in (2, {name: 2 for name in surroundings.models}, 1)
    ]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_cmua_moves_outputs_more_than_noise(surroundings):
    defence = DEFENCES["cmua"]({"steps": 10, "batch": 8, "factor": 1}, surroundings).fit()
    noise = Random({}, surroundings).fit().perturbation
    noise = noise / noise.square().mean().sqrt() * defence.perturbation.square().mean().sqrt()
    model, labels = surroundings.models["stargan"], surroundings.labels["stargan"]
    clean = model.edits(surroundings.images, labels)

    def distance(perturbation):
        return (model.edits(surroundings.images + perturbation, labels) - clean).square().mean()

    assert distance(defence.perturbation) > 1.2 * distance(noise)


def test_clean_features_are_computed_once(surroundings, monkeypatch):
    clean, features = [], StarGAN.features

    def counting(model, x, attributes):
        if not torch.is_grad_enabled():
            clean.append(len(x))
        return features(model, x, attributes)

    monkeypatch.setattr(StarGAN, "features", counting)
    monkeypatch.setattr(StarGAN, "edit", None)  # the decoder is not run
    DEFENCES["tsdf"](SHORT["tsdf"], surroundings).fit()
    assert sum(clean) == len(surroundings.images) * len(surroundings.models)


@pytest.mark.parametrize("kind", [S3FD, DSFD])
def test_poisoning_is_the_same_where_detectors_leave_out_maps_that_it_does_not_look_at(surroundings, kind):
    """Bit for bit, and they do leave some out: one prior of each image counts where no score is above 1."""
    moved, read = [], []
    for selective in (True, False):
        detector = kind({"width": 1 / 16})
        initialise(detector.network, "tests", kind.name)
        detector.selective = selective
        s = dataclasses.replace(surroundings, detectors={kind.name: detector})
        over = Stage()
        over.perturbation = uniform(s.shape, s.epsilon, "w0")
        poisoning = Poisoning(s, TSDF({**SHORT["tsdf"], "detected_above": 1.0}, s).settings, over)
        for head in detector.network.conf if kind is S3FD else detector.network.conf_pal2:
            head.register_forward_hook(lambda *_, selective=selective: read.append(selective))
        for index in range(3):
            poisoning.step(index)
        moved.append(poisoning.perturbation)
    assert moved[0].any() and torch.equal(*moved)
    assert read.count(False) > read.count(True) > 0


def test_without_a_detector_or_a_model_the_error_says_what_to_do(surroundings):
    blind = dataclasses.replace(surroundings, detectors={})
    with pytest.raises(HoldfastError, match="tau: 0"):
        DEFENCES["tsdf"](SHORT["tsdf"], blind).fit()
    assert DEFENCES["tsdf"](SHORT["tsdf"] | {"tau": 0}, blind).fit().perturbation is not None
    lonely = dataclasses.replace(surroundings, models={})
    for name in SHORT:
        with pytest.raises(HoldfastError, match="no deepfake model"):
            DEFENCES[name](SHORT[name], lonely).fit()
    with pytest.raises(HoldfastError, match="retinaface"):
        DEFENCES["tsdf"](SHORT["tsdf"] | {"fusion_weights": {"s3fd": 1.0}}, surroundings).fit()


@pytest.mark.skipif("HOLDFAST_LAB" not in os.environ, reason="HOLDFAST_LAB is not set")
def test_poisoning_lowers_real_face_scores_more_than_interruption_alone(surroundings):
    lab = Path(os.environ["HOLDFAST_LAB"])
    files = sorted((lab / "celeba" / "img_align_celeba").glob("*.jpg"))[:12]
    faces = [
        np.asarray(Image.open(f).convert("RGB").crop((2, 12, 87, 97)).resize((64, 64), Image.BILINEAR))
        for f in files
    ]
    images, labels = to_float(np.stack(faces)), torch.zeros(12, 5)
    detector = RetinaFace({"input_size": 128}).load(lab / "weights" / "retinaface_mobilenet0.25.pth")
    real = dataclasses.replace(
        surroundings,
        models={"stargan": surroundings.models["stargan"]},
        labels={"stargan": labels},
        detectors={"retinaface": detector},
        images=images,
        batch=12,
    )
    settings = SHORT["tsdf"] | {"batch": 12, "poison_iterations": 15, "iterations": 5}
    with torch.no_grad():
        found = torch.softmax(detector.raw(images)[0], -1)[..., 1] > 0.5

    def score(tau):
        protected = DEFENCES["tsdf"](settings | {"tau": tau}, real).fit().protect(images)
        with torch.no_grad():
            return torch.softmax(detector.raw(protected)[0], -1)[..., 1][found].mean()

    assert found.any(dim=1).all()
    assert score(0.04) < score(0) - 0.005
