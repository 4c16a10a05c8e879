"""The hiding objective against NumPy and closed forms."""

import math

import numpy as np
import pytest
import torch

from holdfast.data.pixels import stored
from holdfast.defences import hiding
from holdfast.metrics import image as image_metrics

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
BOXES = torch.tensor(
    [[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.4], [0.5, 0.5, 1.0, 1.0], [0.25, 0.0, 0.75, 0.5]]
)


def test_margins_and_the_strongest():
    logits = torch.tensor([[[0.0, 3.0], [1.0, 1.0], [5.0, 1.0], [0.0, 3.0]]])
    margins = hiding.margin(logits)
    assert margins.tolist() == [[3.0, 0.0, -4.0, 3.0]]
    assert hiding.strongest(margins, 1).tolist() == [[True, False, False, True]]  # equal ones both count
    assert hiding.strongest(margins, 3).tolist() == [[True, True, False, True]]
    assert hiding.strongest(margins, 100).all()


def test_the_hinge_equals_its_equation():
    rng = np.random.default_rng(0)
    margins, chosen = rng.normal(size=(3, 20)) * 4, rng.random((3, 20)) < 0.4
    expected = [sum(max(0.0, m + 1.5) for m in row[of]) for row, of in zip(margins, chosen, strict=True)]
    found = hiding.hinge(torch.tensor(margins), torch.tensor(chosen), 1.5)
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert hiding.hinge(torch.tensor([[-1.5, -9.0]]), torch.ones(1, 2, dtype=torch.bool), 1.5) == 0


def test_anchors_on_a_face_by_overlap():
    # IoU with the face (0, 0, 1/2, 1/2): 1, 0.8, 0, 1/3.
    face = [BOXES[:1]]
    assert hiding.overlapping(BOXES[None], face, 0.35).tolist() == [[True, True, False, False]]
    assert hiding.overlapping(BOXES[None], face, 0.3).tolist() == [[True, True, False, True]]
    two = [torch.cat([face[0], BOXES[2:3]])]
    assert hiding.overlapping(BOXES[None], two, 0.9).tolist() == [[True, False, True, False]]


def test_faces_are_what_the_detector_sees_once_each():
    scores = torch.tensor([[0.7, 0.9, 0.8, 0.2], [0.1, 0.2, 0.4, 0.3]])
    first, second = hiding.faces_of(BOXES.expand(2, 4, 4), scores, 0.5)
    assert torch.equal(first, BOXES[[1, 2]])  # the second is the surer of two boxes of one face
    assert torch.equal(second, BOXES[[2]])  # nothing is above 1/2: the strongest


def test_balancing():
    small, large = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2), torch.tensor([1e4, 3e4]).view(1, 1, 1, 2)
    np.testing.assert_allclose(hiding.balanced([small, large], "normalised").flatten(), [1.5, 0.5], **CLOSE)
    np.testing.assert_allclose(hiding.balanced([small, large], "sum").flatten(), [10001, 29999], **CLOSE)
    nothing = torch.zeros(1, 1, 1, 2)  # a detector from which the face is hidden
    assert torch.equal(hiding.balanced([small, nothing], "normalised"), small)
    weights = torch.tensor([[1.0], [0.1]])
    np.testing.assert_allclose(
        hiding.balanced([small, large], "adaptive", weights).flatten(), [1.05, -0.85], **CLOSE
    )
    same = [hiding.balanced([small, large], balance) for balance in ("adaptive", "normalised")]
    assert torch.equal(*same)


def test_weights_of_blind_detectors_fall_beside_the_others():
    weights = torch.tensor([[1.0, 0.5, 0.2], [0.4, 1.0, 1.0]])
    hidden = torch.tensor([[True, False, True], [False, True, True]])
    np.testing.assert_allclose(
        hiding.shifted(weights, hidden, 0.5), [[1.0, 1.0, 0.2], [0.8, 1.0, 1.0]], **CLOSE
    )
    blind = torch.tensor([[True], [False]])
    for _ in range(200):
        weights = hiding.shifted(weights[:, :1], blind, 0.5)
    assert (weights > 0).all()


def test_the_least_costly_entries():
    gain = torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]]).view(2, 1, 2, 2)
    cost = torch.tensor([8.0, 1.0, 1.0, 0.25]).view(1, 1, 2, 2)  # worth 0.5, 3, 2, 4
    taken = hiding.least_costly(gain, cost, 0.5).flatten(1)
    assert taken[0].tolist() == [False, True, False, True] and taken[1].sum() == 2


def test_the_least_costly_entries_of_an_image_do_not_depend_on_its_neighbours():
    random = torch.Generator().manual_seed(0)
    gain, cost = torch.rand(2, 2, 3, 8, 8, generator=random).unbind()
    cost[0, :, :4] *= 1e-4  # below the least of a costly neighbour's
    alone = hiding.least_costly(gain[:1], cost[:1], 0.3)
    cost[1] *= 1e6
    assert torch.equal(hiding.least_costly(gain, cost, 0.3)[:1], alone)


@pytest.mark.parametrize("levels", [1, 6, 12])
def test_psnr_of_what_is_stored(levels):
    perturbation = torch.full((1, 3, 16, 16), (levels + 0.4) / 127.5)
    perturbation[..., ::2] *= -1
    expected = 20 * math.log10(255 / levels)  # 32.57 dB at 6 levels, epsilon = 0.05
    assert hiding.stored_psnr(perturbation).item() == pytest.approx(expected, abs=1e-4)
    grey = stored(torch.zeros(1, 3, 16, 16))
    measured = image_metrics.psnr(grey, stored(grey + perturbation))
    assert hiding.stored_psnr(perturbation).item() == pytest.approx(measured[0], abs=1e-4)


def test_the_floor_takes_no_more_levels_than_it_has_to():
    random = torch.Generator().manual_seed(0)
    strong = (torch.rand(2, 3, 16, 16, generator=random) * 0.2 - 0.1).clamp(-0.05, 0.05)
    weak = strong * 0.2
    order = torch.randperm(768, generator=random)
    found = hiding.keeping_psnr(torch.cat([strong, weak]), 35.0, order)
    assert torch.equal(found[2:], weak)
    psnr = hiding.stored_psnr(found)
    assert (psnr >= 35).all() and (psnr[:2] < 35.01).all()
    levels, before = (found[:2] * 127.5).round().flatten(1), (strong * 127.5).round().flatten(1)
    down = before.abs() - levels.abs()
    assert set(down.unique().tolist()) == {0.0, 1.0} and (levels * before >= 0).all()
    assert torch.equal(found[:2].flatten(1)[down == 0], strong.flatten(1)[down == 0])
    # In the order given: nothing changes behind the last entry that gives way.
    for row, level in zip(down[:, order] > 0, before[:, order], strict=True):
        assert row.equal((torch.arange(768) <= row.nonzero().max()) & (level != 0))
    assert hiding.keeping_psnr(strong, None, order) is strong
    nothing = torch.zeros(1, 3, 4, 4)
    assert torch.equal(hiding.keeping_psnr(nothing, 33.0, order[order < 48]), nothing)


def test_a_floor_far_above_takes_several_levels():
    strong = torch.full((1, 3, 4, 4), 0.05)
    for floor in (36.0, 40.0, 60.0):
        found = hiding.keeping_psnr(strong, floor, torch.arange(48))
        levels = (found * 127.5).round()
        assert hiding.stored_psnr(found) >= floor and levels.max() - levels.min() <= 1


def test_a_shrunk_view_keeps_what_is_smooth():
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    checks = (torch.arange(16) % 2 * 2.0 - 1).expand(1, 3, 16, 16)
    assert hiding.shrunk(ramp, 16) is ramp
    inside = (..., slice(4, 12), slice(4, 12))
    assert (hiding.shrunk(ramp, 8) - ramp)[inside].abs().max() < 0.05
    assert hiding.shrunk(checks, 8)[inside].abs().max() < 0.3
