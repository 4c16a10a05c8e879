"""TSDF hidden as a whole: its steps in closed form, its bounds, and that faces do disappear."""

import dataclasses

import numpy as np
import pytest
import torch

from holdfast.data.pixels import stored
from holdfast.defences import hiding
from holdfast.defences.base import Surroundings
from holdfast.defences.interruption import compact
from holdfast.defences.tsdf_hidden import (
    TSDFHidden,
    UniversalTSDFHidden,
    poison_step,
    restored,
)
from holdfast.detectors.retinaface import RetinaFace
from holdfast.errors import HoldfastError
from holdfast.metrics import image as image_metrics

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
EPSILON = 0.05
STRONGEST = {"anchors": "strongest", "count": 3, "iterations": 1, "lambda_enh": 0, "interruption_weight": 0}
STRONGEST |= {"when_hidden": "stay", "poison_step_size": 0.01, "edit_turns": "equal"}
STRONGEST |= {"more_poison_iterations": 0}
BOTH = [TSDFHidden, UniversalTSDFHidden]
INTERRUPTION = ["interruption_balance", "interruption_target", "edit_turns"]
TURNS = [("features", 0), ("outputs", 0), ("outputs", 3)]


@pytest.fixture
def powers(simple, square_model, power_detector):
    """Images of a few pixels, and networks whose gradients can be written down."""
    detectors = {"one": power_detector("one"), "two": power_detector("two", anchors=3)}
    return simple(models={"square": square_model("square")}, detectors=detectors)


def on_grid(surroundings):
    return dataclasses.replace(surroundings, images=stored(surroundings.images))


def interrupted(settings, surroundings, interruption):
    """A defence per image whose W0 is given."""
    defence = TSDFHidden(settings, surroundings)
    defence.perturbation = interruption
    return defence


def w0(surroundings, scale=0.03):
    random = torch.Generator().manual_seed(5)
    return (torch.rand(surroundings.shape, generator=random) * 2 - 1) * scale


def gradients(x, detector, count, kappa):
    """Of L at one image, written out anchor by anchor; and the largest margin."""
    kernel, offset = detector.kernel.numpy().astype(np.float64), detector.offset.numpy()
    margins = (kernel[:, 1] - kernel[:, 0]) @ x.reshape(-1) + offset[1] - offset[0]
    total = np.zeros(x.size)
    for anchor in np.argsort(-margins)[:count]:
        if margins[anchor] + kappa > 0:
            total += kernel[anchor, 1] - kernel[anchor, 0]
    return total.reshape(x.shape), margins.max()


def test_a_step_and_a_step_back_equal_their_equations():
    rng = np.random.default_rng(0)
    w, grad, v = rng.normal(size=(3, 2, 3, 4, 4))
    mask = rng.random((1, 3, 4, 4))
    size = np.abs(grad).mean(axis=(1, 2, 3), keepdims=True)
    velocity = 0.5 * v + grad / size
    found, found_velocity = poison_step(*map(torch.tensor, (w, grad, v)), 0.01, 0.5, torch.tensor(mask))
    np.testing.assert_allclose(found, w - 0.01 * np.sign(velocity) * mask, **CLOSE)
    np.testing.assert_allclose(found_velocity, velocity, **CLOSE)
    start = torch.zeros(1, 3, 1, 1)
    moved = torch.tensor([0.5, -0.5, 0.003]).view(1, 3, 1, 1)
    np.testing.assert_allclose(restored(moved, start, 0.01).flatten(), [0.49, -0.49, 0.0], **CLOSE)


def test_one_step_per_image_in_closed_form(powers):
    s, interruption = on_grid(powers), w0(powers)
    settings = STRONGEST | {
        "poison_iterations": 1,
        "kappa": 50.0,
        "psnr_floor": None,
        "poison_step_size": 0.01,
    }
    found = interrupted(settings, s, interruption).perturb(s.images)
    for x, perturbation in zip(s.images.numpy().astype(np.float64), found, strict=True):
        levels = np.round((np.clip(x + interruption[0].numpy(), -1, 1) + 1) * 127.5)
        slopes = [gradients(levels / 127.5 - 1, d, 3, 50.0)[0] for d in s.detectors.values()]
        total = sum(slope / np.abs(slope).mean() for slope in slopes)
        moved = np.clip(interruption[0].numpy() - 0.01 * np.sign(total), -EPSILON, EPSILON)
        np.testing.assert_allclose(perturbation, np.clip(x + moved, -1, 1) - x, **CLOSE)


def test_an_image_that_is_hidden_from_the_start_stays_at_the_interruption(powers):
    s = on_grid(powers)
    for detector in s.detectors.values():
        detector.offset = torch.tensor([100.0, 0.0])
    interruption = w0(s)
    found = interrupted(STRONGEST | {"psnr_floor": None}, s, interruption).perturb(s.images)
    np.testing.assert_allclose(found, (s.images + interruption).clamp(-1, 1) - s.images, **CLOSE)


def test_no_anchor_is_left_and_what_hidden_images_do_with_their_steps(powers):
    s = dataclasses.replace(on_grid(powers), epsilon=0.5)
    settings = STRONGEST | {"poison_iterations": 60, "psnr_floor": None}
    interruption = w0(s)
    far, gained = {}, {}
    for then in ("stay", "restore", "ascend", "continue"):
        own = {"when_hidden": then, "interruption_weight": float(then == "continue"), "kappa": 0.4}
        defence = interrupted(settings | own, s, interruption)
        found = defence.perturb(s.images)
        # What is kept was looked at as a reader of the file sees it.
        seen = defence.protect(s.images)
        for detector in s.detectors.values():
            before = hiding.margin(detector.raw(stored(s.images + interruption))[0]).amax(dim=1)
            after = hiding.margin(detector.raw(seen)[0]).amax(dim=1)
            assert (before > -0.2).any() and (after <= -0.2 + 1e-4).all()
        far[then] = (found - interruption).square().sum()
        unmoved = defence._poisoning.unmoved(s.images)
        gained[then] = sum(unmoved.distance("square", seen, turn).mean() for turn in (0, 1))
    assert far["restore"] < far["stay"]
    assert gained["ascend"] > gained["stay"] and gained["continue"] > gained["stay"]


@pytest.mark.parametrize("split", ["intensity", "sensitivity"])
@pytest.mark.parametrize("kind", BOTH)
def test_a_split_leaves_the_other_entries_to_the_interruption(powers, kind, split):
    s = powers
    settings = STRONGEST | {"split": split, "share": 0.25, "poison_iterations": 3, "kappa": 50.0}
    settings |= {"psnr_floor": None, "step_size": 0.02}
    if kind is TSDFHidden:
        interruption = w0(s, 0.05)
        found = interrupted(settings, s, interruption).perturb(s.images)
    else:
        # Without a step worth the name in stage 2, what is learnt is W0.
        interruption = kind(settings | {"poison_step_size": 1e-9}, s).fit().perturbation
        found = kind(settings, s).fit().perturbation
    changed = (found - interruption).abs() > 1e-4
    inside = (s.images + interruption).abs() < 0.95 if kind is TSDFHidden else torch.ones_like(changed)
    changed &= inside.bool()
    assert changed.any()
    if split == "intensity":
        assert not changed[(interruption.abs() >= 0.04).expand_as(changed)].any()
    else:
        assert (changed.flatten(1).sum(dim=1) <= 12).all()  # a quarter of 3 x 4 x 4


@pytest.mark.parametrize("target, turns", [("outputs", 2), ("features", 1)])
def test_sensitivity_counts_what_every_edit_loses(powers, target, turns):
    settings = STRONGEST | {"split": "sensitivity", "share": 0.25, "interruption_target": target}
    poisoning = TSDFHidden(settings, powers)._poisoning
    gain, *costs = torch.randn(3, 1, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    found = poisoning.mask(w0(powers), lambda: gain, lambda turn: costs[turn])
    spent = sum(cost.abs() for cost in costs[:turns])
    least = (gain.abs() / spent).flatten().sort(descending=True).values[11]  # a quarter of 3 x 4 x 4
    assert torch.equal(found.bool(), gain.abs() / spent >= least)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("floor", [36.0, 39.0])
def test_the_budget_and_the_floor_hold_for_what_is_stored(powers, kind, floor):
    s = on_grid(powers)
    settings = STRONGEST | {"poison_iterations": 5, "kappa": 50.0, "psnr_floor": floor, "step_size": 0.05}
    protected = kind(settings, s).fit().protect(s.images)
    assert (protected - s.images).abs().max() <= EPSILON + 1 / 255 + 1e-6
    psnr = image_metrics.psnr(s.images, protected)
    assert psnr.min() >= floor and psnr.min() < floor + 3  # and the floor is what holds it back


@pytest.mark.parametrize("kind", BOTH)
def test_one_floor_lower_is_another_result(powers, kind):
    settings = STRONGEST | {"poison_iterations": 3, "kappa": 50.0, "step_size": 0.05}
    free, held = (
        kind(settings | {"psnr_floor": floor}, powers).fit().protect(powers.images) for floor in (None, 36.0)
    )
    assert not torch.equal(free, held)


@pytest.mark.parametrize("views", [0, 2])
def test_an_image_does_not_see_those_beside_it(powers, views):
    settings = STRONGEST | {"poison_iterations": 6, "kappa": 0.5, "views": views, "diversity": 0.5}
    interruption = w0(powers)
    together = interrupted(settings, powers, interruption).perturb(powers.images)
    order = [4, 2, 0, 5, 1, 3]
    other = interrupted(settings, dataclasses.replace(powers, batch=6), interruption)
    torch.testing.assert_close(other.perturb(powers.images[order]), together[order], atol=1e-6, rtol=0)


def test_views_are_drawn_by_step_and_number(powers):
    poisoning = TSDFHidden(STRONGEST | {"views": 2, "least_side": 0.5}, powers)._poisoning
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    views = [poisoning._view(images, step, view) for step in range(4) for view in range(2)]
    assert poisoning._view(images, 0, None) is images
    assert all(torch.equal(a, poisoning._view(images, n // 2, n % 2)) for n, a in enumerate(views))
    assert len({tuple(view.flatten().tolist()) for view in views}) > 4


def looked_at(model, target, x, labels, turn):
    """What F compares, in the model's own words; SquareModel has two edits."""
    if target == "features":
        return compact(model.features(x, labels), 32, "none")
    return model.edit(x, labels.round() if turn % 2 == 0 else 1 - labels.round())


@pytest.mark.parametrize("target, turn", TURNS)
def test_the_interruptions_gradient_is_that_of_its_mean_square(powers, target, turn):
    poisoning = TSDFHidden(STRONGEST | {"interruption_target": target}, powers)._poisoning
    point = w0(powers).requires_grad_(True)
    model, labels = powers.models["square"], powers.labels["square"]
    pair = (looked_at(model, target, x, labels, turn) for x in (powers.images + point, powers.images))
    (expected,) = torch.autograd.grad(torch.sub(*pair).square().mean(), point)
    found = poisoning.interruption_slope(point.detach(), torch.arange(len(powers.images)), turn)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("target", ["outputs", "features"])
def test_what_is_known_of_edits_goes_along_with_some_of_the_images(powers, target):
    poisoning = TSDFHidden(STRONGEST | {"interruption_target": target}, powers)._poisoning
    whole, seen = poisoning.unmoved(powers.images, turns="weakest"), powers.images + w0(powers)
    for turn in range(2):
        whole.distance("square", seen * (1 - turn / 2), turn)
    rows = torch.tensor([2, 0, 2])
    part = whole.of(rows)
    assert whole.weakest("square").min() > 0
    for turn in range(2, 4):
        assert torch.equal(part.weakest("square"), whole.weakest("square")[rows])
        found = part.distance("square", seen[rows], turn)
        torch.testing.assert_close(found, whole.distance("square", seen, turn)[rows])


@pytest.mark.parametrize("target, turn", TURNS)
@pytest.mark.parametrize("balance", ["sum", "normalised"])
def test_the_ascent_per_image_is_that_of_its_own_mean_square(powers, square_model, balance, target, turn):
    models = {"square": powers.models["square"], "other": square_model("other")}
    s = dataclasses.replace(powers, models=models, labels=dict.fromkeys(models, powers.labels["square"]))
    poisoning = TSDFHidden(
        STRONGEST | {"interruption_balance": balance, "interruption_target": target}, s
    )._poisoning
    labels = s.labels["square"].mean(dim=0, keepdim=True)
    assert labels.item() not in (0, 1)
    seen = s.images + w0(s)
    found, values = poisoning.ascent(seen, poisoning.unmoved(s.images), turn)
    for x, moved, slope, value in zip(s.images, seen, found, values, strict=True):
        each, total = [], 0
        for model in models.values():
            point = moved[None].clone().requires_grad_(True)
            pair = (looked_at(model, target, image, labels, turn) for image in (point, x[None]))
            each.append(torch.sub(*pair).square().mean())
            (expected,) = torch.autograd.grad(each[-1], point)
            total = total + (expected / expected.abs().mean() if balance == "normalised" else expected)
        torch.testing.assert_close(value, torch.stack(each).mean().detach())
        torch.testing.assert_close(slope[None], total, atol=1e-4, rtol=1e-4)


@pytest.fixture
def apart(powers, square_model):
    """Detectors that see no face in anything, so that steps only ascend, and a model whose two edits look at
    channels of their own, so that a step shows whose turn it was.
    """

    class Apart(square_model):
        def edit(self, x, target):
            first = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
            return super().edit(x * torch.where(target[:, :, None, None] > 0.5, first, 1 - first), target)

    for detector in powers.detectors.values():
        detector.offset = torch.tensor([100.0, 0.0])
    return dataclasses.replace(on_grid(powers), models={"square": Apart("square")})


ASCENDING = STRONGEST | {"interruption_weight": 1.0, "when_hidden": "continue", "poison_momentum": 0.0}
ASCENDING |= {"psnr_floor": None, "poison_step_size": 0.005}


@pytest.mark.parametrize("steps", [3, 4])
def test_edits_take_turns_and_the_last_hidden_iterate_is_kept(apart, steps):
    """One of the two ends with the edit whose F is the smaller one."""
    s, interruption = apart, w0(apart, 0.01)
    found = interrupted(ASCENDING | {"poison_iterations": steps}, s, interruption).perturb(s.images)
    model, labels = s.models["square"], s.labels["square"].mean(dim=0, keepdim=True)
    w = interruption.expand_as(s.images).clone()
    for turn in range(steps):
        point = stored(s.images + w).requires_grad_(True)
        pair = (looked_at(model, "outputs", x, labels, turn) for x in (point, s.images))
        (slope,) = torch.autograd.grad(torch.sub(*pair).square().sum(), point)
        w = (w + 0.005 * slope.sign()).clamp(-EPSILON, EPSILON)
    np.testing.assert_allclose(found, (s.images + w).clamp(-1, 1) - s.images, **CLOSE)


def test_each_images_weakest_edit_has_its_turn_and_the_best_hidden_iterate_is_kept(apart):
    s, interruption, steps, eta = apart, w0(apart, 0.01), 9, 0.03
    settings = ASCENDING | {"poison_iterations": steps, "edit_turns": "weakest", "poison_step_size": eta}
    found = interrupted(settings, s, interruption).perturb(s.images)
    model, labels = s.models["square"], s.labels["square"].mean(dim=0, keepdim=True)
    turns, kept_at = [], []
    for n, x in enumerate(s.images):
        w, moved, iterates = interruption.clone(), np.zeros(2), []
        turns.append([])
        for _ in range(steps + 1):
            turn = int(moved.argmin())
            point = stored(x[None] + w).requires_grad_(True)
            pair = (looked_at(model, "outputs", image, labels, turn) for image in (point, x[None]))
            distance = torch.sub(*pair).square().mean()
            moved *= 0.9
            moved[turn] = distance.item()
            turns[n].append(turn)
            iterates.append((moved.min(), w))
            w = (w + eta * torch.autograd.grad(distance, point)[0].sign()).clamp(-EPSILON, EPSILON)
        kept_at.append(max(range(steps + 1), key=lambda step: (iterates[step][0], step)))
        kept = iterates[kept_at[n]][1]
        np.testing.assert_allclose(found[n], ((x + kept).clamp(-1, 1) - x)[0], err_msg=str(n), **CLOSE)
    assert all(sequence[:2] == [0, 1] for sequence in turns)
    assert len(set(map(tuple, turns))) > 1  # each image has its own order
    assert min(kept_at) < steps  # and not every image keeps its last iterate


def test_edits_take_turns_in_the_updates_of_the_universal_form(apart):
    s = dataclasses.replace(apart, labels={"square": torch.ones(6, 1)})
    settings = ASCENDING | {"batch": 6, "step_size": 0.005}
    found = {
        steps: UniversalTSDFHidden(settings | {"poison_iterations": steps}, s).fit().perturbation
        for steps in (1, 2)
    }
    start = UniversalTSDFHidden(settings | {"poison_iterations": 1, "poison_step_size": 1e-9}, s).fit()
    first, second = (found[1] - start.perturbation).abs() > 1e-4, (found[2] - found[1]).abs() > 1e-4
    assert first[:, :1].any() and not first[:, 1:].any()
    assert second[:, 1:].any() and not second[:, :1].any()


@pytest.mark.parametrize("kappa", [0.0, 0.3])
def test_the_detector_that_still_sees_the_face_weighs_more_step_by_step(powers, kappa):
    s, interruption = on_grid(powers), w0(powers)
    steps, eta, factor = 12, 0.004, 0.5
    settings = STRONGEST | {"poison_iterations": steps, "kappa": kappa, "slack": kappa, "psnr_floor": None}
    settings |= {"poison_step_size": eta, "poison_momentum": 0.0, "weight_factor": factor}
    found = interrupted(settings, s, interruption).perturb(s.images)
    weights_seen = set()
    for x, perturbation in zip(s.images.numpy().astype(np.float64), found, strict=True):
        w, weights = interruption[0].numpy().astype(np.float64), np.ones(2)
        most, kept = (0, 0), w
        for step in range(steps + 1):
            levels = np.round((np.clip(x + w, -1, 1) + 1) * 127.5)
            given = [gradients(levels / 127.5 - 1, d, 3, kappa) for d in s.detectors.values()]
            worst = np.array([largest for _, largest in given])
            blind = worst <= -kappa
            total = sum(k * g / (np.abs(g).mean() or 1) for k, (g, _) in zip(weights, given, strict=True))
            if (rank := ((worst <= 0).sum(), blind.sum())) >= most:
                most, kept = rank, w
            if step < steps and not blind.all():
                w = np.clip(w - eta * np.sign(total), -EPSILON, EPSILON)
            weights = weights * np.where(blind, factor, 1)
            weights = weights / weights.max()
            weights_seen |= set(weights)
        np.testing.assert_allclose(perturbation, np.clip(x + kept, -1, 1) - x, **CLOSE)
    assert {1.0, factor, factor**2} <= weights_seen  # a detector went blind before the other


def test_an_iterate_that_no_detector_sees_is_not_given_up_for_the_slack_of_some(
    simple, square_model, power_detector
):
    detectors = {name: power_detector(name, offset=-0.3) for name in ("one", "two")}
    detectors["strong"] = power_detector("strong", offset=0.5)
    s = on_grid(simple({"square": square_model("square")}, detectors, 40, epsilon=0.4, batch=40))
    settings = STRONGEST | {"poison_iterations": 60, "psnr_floor": None, "when_hidden": "continue"}
    defence = interrupted(settings, s, torch.zeros(s.shape))
    poisoning, looked_at = defence._poisoning, []
    slope = poisoning.slope

    def recorded(*given):
        looked_at.append(slope(*given)[1])
        return slope(*given)

    poisoning.slope = recorded
    found = defence.perturb(s.images)
    margins = torch.stack(looked_at)  # (steps, D, N)
    kept = slope(stored(s.images + found), poisoning.targets(s.images), 0)[1]
    most = (margins <= 0).sum(dim=1).max(dim=0).values
    assert ((kept <= 0).sum(dim=0) == most).all()
    assert 0 < (most == len(margins[0])).sum() < len(most)


@pytest.mark.parametrize("batch", [40, 3])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_only_images_that_are_still_seen_take_the_further_steps(
    simple, square_model, power_detector, weight, batch
):
    detectors = {name: power_detector(name, offset=-0.3) for name in ("one", "two")}
    s = on_grid(simple({"square": square_model("square")}, detectors, 40, epsilon=0.4, batch=batch))
    settings = STRONGEST | {"psnr_floor": None, "when_hidden": "continue", "interruption_weight": weight}

    def perturbed(first, more):
        own = {"poison_iterations": first, "more_poison_iterations": more}
        defence = interrupted(settings | own, s, torch.zeros(s.shape))
        found = defence.perturb(s.images)
        poisoning = defence._poisoning
        margins = poisoning.slope(stored(s.images + found), poisoning.targets(s.images), 0)[1]
        return found, (margins > 0).any(dim=0)

    short, seen = perturbed(8, 0)
    long, seen_later = perturbed(20, 0)
    found, seen_then = perturbed(8, 12)
    assert 0 < seen_later.sum() < seen.sum() < len(seen)
    np.testing.assert_allclose(found[~seen], short[~seen], **CLOSE)
    np.testing.assert_allclose(found[seen], long[seen], **CLOSE)
    assert torch.equal(seen_then, seen & seen_later)


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_one_step_towards_both_goals_in_closed_form(powers, weight):
    s, interruption = on_grid(powers), w0(powers)
    settings = STRONGEST | {"poison_iterations": 1, "kappa": 50.0, "psnr_floor": None}
    settings |= {"interruption_weight": weight, "poison_step_size": 0.01}
    defence = interrupted(settings, s, interruption)
    found = defence.perturb(s.images)
    seen = stored(s.images + interruption)
    ascent = defence._poisoning.ascent(seen, defence._poisoning.unmoved(s.images), 0)[0].numpy()
    for n, x in enumerate(seen.numpy().astype(np.float64)):
        total = sum(
            slope / np.abs(slope).mean()
            for slope in (gradients(x, d, 3, 50.0)[0] for d in s.detectors.values())
        )
        both = total / np.abs(total).mean() - weight * ascent[n] / np.abs(ascent[n]).mean()
        moved = np.clip(interruption[0].numpy() - 0.01 * np.sign(both), -EPSILON, EPSILON)
        clean = s.images[n].numpy()
        np.testing.assert_allclose(found[n], np.clip(clean + moved, -1, 1) - clean, **CLOSE)


@pytest.mark.parametrize("floor, weights", [(0.4, [2.0, 1.0, 0.8, 0.8]), (0.0, [2.0, 1.0, 0.5, 0.25])])
def test_a_face_that_stays_in_sight_takes_the_interruptions_weight_down_to_its_floor(powers, floor, weights):
    s, interruption = on_grid(powers), w0(powers)
    settings = STRONGEST | {"poison_iterations": len(weights), "kappa": 50.0, "psnr_floor": None}
    settings |= {"interruption_weight": 2.0, "when_hidden": "continue", "weight_factor": 0.5}
    settings |= {"weight_floor": floor, "poison_momentum": 0.0, "poison_step_size": 0.003}
    found = interrupted(settings, s, interruption).perturb(s.images)
    model, labels = s.models["square"], s.labels["square"].mean(dim=0, keepdim=True)
    for n, x in enumerate(s.images):
        w = interruption[0].numpy().astype(np.float64)
        for turn, weight in enumerate(weights):
            seen = stored(x[None] + torch.tensor(w, dtype=torch.float32))
            given = [gradients(seen.numpy().astype(np.float64), d, 3, 50.0)[0] for d in s.detectors.values()]
            hiding_slope = sum(slope / np.abs(slope).mean() for slope in given)[0]
            point = seen.requires_grad_(True)
            pair = (looked_at(model, "outputs", image, labels, turn) for image in (point, x[None]))
            ascent = torch.autograd.grad(torch.sub(*pair).square().mean(), point)[0][0].numpy()
            both = hiding_slope / np.abs(hiding_slope).mean() - weight * ascent / np.abs(ascent).mean()
            w = np.clip(w - 0.003 * np.sign(both), -EPSILON, EPSILON)
        clean = x.numpy()
        np.testing.assert_allclose(found[n], np.clip(clean + w, -1, 1) - clean, err_msg=str(n), **CLOSE)


# ---- a real architecture -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeing(square_model):
    """A RetinaFace of random weights that sees a face in noise: its scores are decided."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = stored(torch.rand(4, 3, 32, 32) * 2 - 1)
        detector = RetinaFace({"width": 1 / 8})
        with torch.no_grad():
            for module in detector.network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = None
            for head in detector.network.ClassHead:
                head.conv1x1.weight.mul_(10)
            detector.network.train()
            detector.raw(images)
    labels = {"square": torch.ones(4, 1)}
    return Surroundings(
        {"square": square_model("square")},
        {"retinaface": detector.freeze()},
        images,
        labels,
        EPSILON,
        batch=3,
    )


@pytest.mark.parametrize("anchors", ["matching", "strongest"])
def test_faces_disappear(seeing, anchors):
    settings = {"anchors": anchors, "poison_iterations": 20, "iterations": 1, "lambda_enh": 0, "kappa": 1.0}
    # Random weights make margins of hundreds that turn within 0.01: small steps.
    settings |= {"interruption_weight": 0, "when_hidden": "stay", "poison_step_size": 0.002}
    defence = TSDFHidden(settings, seeing).fit()
    objective = defence._poisoning.hiding
    faces = objective.faces(seeing.images)
    clean = objective.clean(seeing.images, faces)["retinaface"]
    start = stored(seeing.images + defence.perturbation)
    before = objective.loss("retinaface", start, faces, clean)
    after = objective.loss("retinaface", defence.protect(seeing.images), faces, clean)
    assert (before[1] > 0).any()  # there is something to hide
    assert after[0].sum() < 0.85 * before[0].sum()


def test_the_anchors_of_a_face_overlap_it(seeing):
    defence = TSDFHidden({}, seeing)
    objective, detector = defence._poisoning.hiding, seeing.detectors["retinaface"]
    faces = objective.faces(seeing.images)
    clean = objective.clean(seeing.images, faces)["retinaface"]
    logits, encoded = detector.raw(seeing.images)
    boxes = detector.decode(encoded, detector.priors(32, 32))
    assert clean.any(dim=1).all() and not clean.all()
    surest = hiding.margin(logits).argmax(dim=1)
    assert clean[torch.arange(4), surest].all()
    for row, of, face in zip(boxes, clean, faces, strict=True):
        assert (hiding.box_math.iou(row[of], face).amax(dim=1) >= 0.35).all()


def test_the_universal_one_lowers_margins_on_the_images_it_is_learnt_on(seeing):
    settings = {"iterations": 1, "lambda_enh": 0, "kappa": 1.0, "psnr_floor": None, "batch": 4}
    settings |= {"interruption_weight": 0, "poison_step_size": 0.002}
    kinds = {count: settings | {"poison_iterations": count} for count in (1, 20)}
    kinds[1] |= {"poison_step_size": 1e-9}
    margins = {}
    for count, given in kinds.items():
        defence = UniversalTSDFHidden(given, seeing).fit()
        objective = TSDFHidden({}, seeing)._poisoning.hiding
        faces = objective.faces(seeing.images)
        clean = objective.clean(seeing.images, faces)["retinaface"]
        seen = (seeing.images + defence.perturbation).clamp(-1, 1)
        margins[count] = objective.loss("retinaface", seen, faces, clean)[0].sum()
    assert margins[20] < 0.9 * margins[1]


# ---- state, and what is missing ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_a_killed_run_ends_like_an_uninterrupted_one(powers, kind, tmp_path, killed_before):
    settings = STRONGEST | {"poison_iterations": 2, "batch": 4, "poison_momentum": 0.9, "iterations": 2}
    whole, kept = kind(settings, powers).fit(), dataclasses.replace(powers, state_path=tmp_path / "state.pt")
    for index in (1, 3, 5) if kind is UniversalTSDFHidden else (1, 3):
        killed_before(index, kind(settings, kept).fit)
    again = kind(settings, kept).fit()
    assert torch.equal(again.perturbation, whole.perturbation)
    assert torch.equal(again.protect(powers.images), whole.protect(powers.images))


def test_the_interruption_is_in_the_file_and_protection_goes_on_from_it(powers, tmp_path):
    settings = STRONGEST | {"poison_iterations": 3}
    defence = TSDFHidden(settings, powers).fit()
    defence.save(tmp_path / "w.safetensors")
    loaded = TSDFHidden(settings, powers).load(tmp_path / "w.safetensors")
    assert torch.equal(loaded.perturbation, defence.perturbation)
    assert torch.equal(loaded.protect(powers.images), defence.protect(powers.images))
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(HoldfastError):
        TSDFHidden(settings, powers).load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("missing, told", [("models", "deepfake model"), ("detectors", "face detector")])
def test_without_a_network_the_error_says_what_to_do(powers, kind, missing, told):
    with pytest.raises(HoldfastError, match=f"no {told}") as caught:
        kind({}, dataclasses.replace(powers, **{missing: {}}))
    assert "config" in caught.value.repair


@pytest.mark.parametrize("key", ["anchors", "balance", "split", "when_hidden", *INTERRUPTION])
def test_a_choice_that_nobody_knows_is_refused(powers, key):
    with pytest.raises(HoldfastError, match=f"cannot take this `{key}`"):
        TSDFHidden({key: "best"}, powers)


def test_a_slack_that_no_image_could_reach_is_refused(powers):
    with pytest.raises(HoldfastError, match=r"(?s)slack: 0.2, kappa: 0.1.*expected"):
        TSDFHidden({"kappa": 0.1}, powers)
