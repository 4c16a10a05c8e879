import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import compat
from holdfast.detectors import boxes
from holdfast.errors import HoldfastError

quick = settings(max_examples=60, deadline=None)


def drawn(seed, count, side=100.0, smallest=0.5):
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=random) * side
    return torch.cat([low, low + smallest + torch.rand(count, 2, generator=random) * side], dim=1)


def with_flat(seed, count):
    """Boxes of which about a third have no area: without width, without height, or a point."""
    found = drawn(seed, count, side=60.0)
    random = torch.Generator().manual_seed(seed + 1)
    kind = torch.randint(0, 9, (count,), generator=random)
    found[:, 2] = torch.where((kind == 0) | (kind == 2), found[:, 0], found[:, 2])
    found[:, 3] = torch.where((kind == 1) | (kind == 2), found[:, 1], found[:, 3])
    return found


seeds = st.integers(0, 2**31)
counts = st.integers(0, 12)


@quick
@given(seeds, counts, counts)
def test_iou_is_symmetric_and_in_range(seed, n, m):
    a, b = drawn(seed, n), drawn(seed + 1, m)
    found = boxes.iou(a, b)
    assert found.shape == (n, m)
    assert torch.equal(found, boxes.iou(b, a).T)
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close(boxes.iou(a, a).diagonal(), torch.ones(n))


@quick
@given(seeds, st.integers(1, 12))
def test_iou_does_not_depend_on_the_order(seed, n):
    a, b = drawn(seed, n), drawn(seed + 1, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(boxes.iou(a[order], b), boxes.iou(a, b)[order])


@quick
@given(seeds, counts, counts)
def test_iou_of_boxes_without_an_area_among_others(seed, n, m):
    a, b = with_flat(seed, n), with_flat(seed + 2, m)
    found = boxes.iou(a, b)
    assert torch.equal(found, boxes.iou(b, a).T) and ((found >= 0) & (found <= 1)).all()
    assert (found[boxes.areas(a) == 0] == 0).all()


@quick
@given(seeds, counts, counts)
def test_iou_areas_and_forms_equal_torchvisions(seed, n, m):
    """Its Python functions run everywhere, once compat has declared the operators."""
    from torchvision.ops import box_area, box_convert, box_iou

    a, b = drawn(seed, n), with_flat(seed + 1, m)
    torch.testing.assert_close(boxes.iou(a, b), box_iou(a, b))
    torch.testing.assert_close(boxes.areas(b), box_area(b))
    torch.testing.assert_close(boxes.centres(b), box_convert(b, "xyxy", "cxcywh"))
    torch.testing.assert_close(boxes.corners(a), box_convert(a, "cxcywh", "xyxy"))


def test_iou_closed_forms():
    unit = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    others = torch.tensor(
        [[0.0, 0.0, 1.0, 2.0], [1.0, 1.0, 3.0, 3.0], [2.0, 0.0, 4.0, 2.0], [5.0, 5.0, 6.0, 6.0]]
    )
    torch.testing.assert_close(boxes.iou(unit, others), torch.tensor([[0.5, 1 / 7, 0.0, 0.0]]))


def test_boxes_without_an_area_overlap_with_nothing():
    flat = torch.tensor([[1.0, 1.0, 1.0, 5.0], [3.0, 3.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    whole = torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    assert (boxes.iou(flat, flat) == 0).all() and (boxes.iou(flat, whole) == 0).all()
    assert (boxes.areas(flat) == 0).all()


@quick
@given(seeds, counts)
def test_forms_are_inverse(seed, n):
    a = drawn(seed, n)
    torch.testing.assert_close(boxes.corners(boxes.centres(a)), a, rtol=1e-5, atol=1e-4)


@quick
@given(seeds, st.integers(1, 12))
def test_encode_and_decode_are_inverse(seed, n):
    priors, truth = boxes.centres(drawn(seed, n)), drawn(seed + 1, n)
    encoded = boxes.encode(truth, priors)
    torch.testing.assert_close(boxes.decode(encoded, priors), truth, rtol=1e-4, atol=1e-3)


def test_a_side_beyond_all_numbers_stays_one():
    priors = boxes.centres(drawn(0, 3))
    found = boxes.decode(torch.full((3, 4), 1e4), priors)
    assert torch.isfinite(found).all() and (found[:, 2:] > found[:, :2]).all()


def test_encoding_of_the_prior_itself_is_zero_and_scales_by_the_variances():
    prior = torch.tensor([[10.0, 10.0, 4.0, 8.0]])
    assert boxes.encode(boxes.corners(prior), prior).abs().max() == 0
    moved = boxes.corners(torch.tensor([[14.0, 10.0, 4.0, 8.0 * np.e]]))
    torch.testing.assert_close(boxes.encode(moved, prior), torch.tensor([[10.0, 0.0, 0.0, 5.0]]))


def test_anchors_lie_on_the_cells():
    found = boxes.anchors(64, 128, [[16, 32], [64], [256]], [8, 16, 32])
    assert found.shape == (8 * 16 * 2 + 4 * 8 + 2 * 4, 4)
    torch.testing.assert_close(found[0], torch.tensor([4 / 128, 4 / 64, 16 / 128, 16 / 64]))
    torch.testing.assert_close(found[1], torch.tensor([4 / 128, 4 / 64, 32 / 128, 32 / 64]))
    torch.testing.assert_close(found[2], torch.tensor([12 / 128, 4 / 64, 16 / 128, 16 / 64]))
    torch.testing.assert_close(found[256], torch.tensor([8 / 128, 8 / 64, 64 / 128, 64 / 64]))
    assert len(boxes.anchors(33, 50, [[16], [64], [256]], [8, 16, 32])) == 5 * 7 + 3 * 4 + 2 * 2


def test_matching():
    priors = boxes.centres(
        torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 0, 50, 10], [60.0, 0, 70, 10]])
    )
    truth = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 25, 5], [60.0, 0, 61, 1]])
    # 1: whole overlap; 2: IoU 0.25, below the threshold, but the best there is; 3: IoU 0.01, hopeless.
    assert boxes.match(truth, priors).tolist() == [0, 1, -1, -1]
    assert boxes.match(torch.zeros(0, 4), priors).tolist() == [-1] * 4


def test_two_faces_that_want_one_anchor():
    priors = boxes.centres(torch.tensor([[0.0, 0, 10, 10]]))
    truth = torch.tensor([[0.0, 0, 10, 9], [0.0, 0, 10, 8]])
    assert boxes.match(truth, priors).tolist() == [0]
    assert boxes.match(truth.flip(0), priors).tolist() == [1]


def reference_nms(dets, scores, threshold):
    """The textbook loop, in NumPy's float32, so that it rounds as the operator does."""
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    area = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    kept = []
    for row in order:
        low = np.maximum(dets[row, :2], dets[kept, :2])
        high = np.minimum(dets[row, 2:], dets[kept, 2:])
        side = np.maximum(high - low, np.float32(0))
        shared = side[:, 0] * side[:, 1]
        with np.errstate(invalid="ignore"):
            overlap = shared / (area[kept] + area[row] - shared)
        if not (overlap.astype(np.float64) > threshold).any():
            kept.append(row)
    return kept


@quick
@given(seeds, st.integers(0, 40), st.sampled_from([0.0, 0.3, 0.4, 0.7, 1.0]), st.booleans(), st.booleans())
def test_nms_equals_the_textbook(seed, n, threshold, ties, flat):
    dets = with_flat(seed, n) if flat else drawn(seed, n, side=60.0)
    scores = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    if ties:
        scores = (scores * 4).round() / 4
    expected = reference_nms(dets.numpy(), scores.numpy(), threshold)
    assert boxes.torch_nms(dets, scores, threshold).tolist() == expected
    assert boxes.nms(dets, scores, threshold).tolist() == expected


@quick
@given(seeds, st.integers(1, 40))
def test_nms_and_matching_do_not_depend_on_the_order(seed, n):
    random = torch.Generator().manual_seed(seed)
    dets, truth, order = with_flat(seed, n), drawn(seed + 3, 4), torch.randperm(n, generator=random)
    scores = torch.randperm(n, generator=random).float()  # no two alike: ties keep the order given
    assert order[boxes.nms(dets[order], scores[order], 0.4)].tolist() == boxes.nms(dets, scores, 0.4).tolist()
    priors = boxes.centres(drawn(seed + 4, n))
    assert torch.equal(boxes.match(truth, priors[order]), boxes.match(truth, priors)[order])
    swapped = boxes.match(truth.flip(0), priors)
    assert torch.equal(torch.where(swapped >= 0, 3 - swapped, swapped), boxes.match(truth, priors))


@pytest.mark.skipif(not compat.has_torchvision_nms(), reason="torchvision's operators do not load here")
@quick
@given(seeds, st.integers(0, 60), st.sampled_from([0.3, 0.4, 0.7]))
def test_own_nms_equals_torchvisions(seed, n, threshold):
    from torchvision.ops import nms as operator

    dets, scores = drawn(seed, n, side=60.0), torch.rand(n, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(boxes.torch_nms(dets, scores, threshold), operator(dets, scores, threshold))


def test_nms_at_the_threshold_and_with_empty_boxes():
    halves = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 2.0]])
    scores = torch.tensor([0.9, 0.8])
    assert boxes.nms(halves, scores, 0.5).tolist() == [0, 1]
    assert boxes.nms(halves, scores, 0.49).tolist() == [0]
    points = torch.zeros(3, 4)
    assert boxes.nms(points, torch.tensor([0.1, 0.3, 0.2]), 0.4).tolist() == [1, 2, 0]


def test_nms_refuses_what_does_not_go_together():
    with pytest.raises(HoldfastError, match="do not go together"):
        boxes.nms(torch.zeros(3, 4), torch.zeros(2), 0.4)


@quick
@given(seeds, st.integers(1, 12))
def test_decode_and_encode_are_inverse(seed, n):
    random = torch.Generator().manual_seed(seed)
    priors, encoded = boxes.centres(drawn(seed, n)), torch.randn(n, 4, generator=random)
    found = boxes.encode(boxes.decode(encoded, priors), priors)
    torch.testing.assert_close(found, encoded, rtol=1e-2, atol=1e-2)


@quick
@given(seeds, st.integers(0, 30), st.sampled_from([0.3, 0.5]))
def test_suppression_keeps_boxes_apart_and_loses_only_neighbours(seed, n, threshold):
    dets, scores = drawn(seed, n, side=60.0), torch.rand(n, generator=torch.Generator().manual_seed(seed))
    kept = boxes.nms(dets, scores, threshold)
    overlap = boxes.iou(dets, dets[kept])
    assert (scores[kept].diff() <= 0).all()
    assert ((overlap[kept] - torch.eye(len(kept))) <= threshold + 1e-6).all()
    lost = torch.ones(n, dtype=torch.bool).index_fill(0, kept, False)
    if lost.any():
        assert (overlap[lost].max(dim=1).values > threshold - 1e-6).all()


def test_anchors_follow_the_maps_that_are_given():
    found = boxes.anchors(64, 128, [[16], [64]], [8, 16], [(7, 15), (3, 8)])
    assert len(found) == 7 * 15 + 3 * 8
    torch.testing.assert_close(found[105], torch.tensor([8 / 128, 8 / 64, 64 / 128, 64 / 64]))
