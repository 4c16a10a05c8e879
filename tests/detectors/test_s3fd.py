"""S3FD: the public layout, its parts against closed forms, its rule of matching by hand."""

import numpy as np
import pytest
import torch
from vgg_layout import backbone, head

from holdfast.detectors import DETECTORS, boxes, vgg
from holdfast.detectors.s3fd import S3FD, S3FDNetwork, max_out

LAYOUT = {
    **backbone(),
    **{"L2Norm3_3.weight": (256,), "L2Norm4_3.weight": (512,), "L2Norm5_3.weight": (512,)},
    **head("loc", 4),
    **head("conf", 4, 2, 2, 2, 2, 2),
}


def test_published_size_and_layout():
    with torch.device("meta"):
        network = S3FD().network
    assert sum(parameter.numel() for parameter in network.parameters()) == 22_459_110
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == LAYOUT
    assert DETECTORS["s3fd"] is S3FD and S3FD.public_file == "sfd_face.pth"


def test_layers_that_hold_no_weights():
    layers = S3FDNetwork(1 / 64).vgg
    assert len(layers) == 35 and layers[31].dilation == layers[31].padding == (6, 6)
    pools = [i for i, layer in enumerate(layers) if isinstance(layer, torch.nn.MaxPool2d)]
    assert (
        pools == [4, 9, 16, 23, 30]
        and [layers[i].ceil_mode for i in pools] == [False] * 2 + [True] + [False] * 2
    )


def test_l2_norm_closed_form():
    norm = vgg.L2Norm(2, 10.0)
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([6.0, 8.0]))
    torch.testing.assert_close(norm(1000 * x), norm(x))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 5.0]))
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([0.6, 4.0]))


def test_l2_norm_of_nothing_is_nothing_and_so_is_its_gradient():
    x = torch.zeros(1, 3, 2, 2, requires_grad=True)
    y = vgg.L2Norm(3, 10.0)(torch.relu(x))
    y.square().sum().backward()
    assert y.abs().max() == 0 and x.grad.abs().max() == 0


def test_max_out_takes_the_largest_of_three_backgrounds():
    scores = torch.tensor([[1.0, 5.0, -2.0, 3.0], [-7.0, -8.0, -6.0, 0.5]]).view(2, 4, 1, 1)
    assert max_out(scores).flatten(1).tolist() == [[5.0, 3.0], [-6.0, 0.5]]


def test_the_finest_map_gives_its_logits_after_max_out(images):
    detector, x = S3FD({"width": 1 / 16}), images(1, 64)
    logits, _ = detector.raw(x)
    fine = detector.network.conf[0](detector.levels(x)[0])
    assert fine.shape == (1, 4, 16, 16)
    expected = torch.stack([fine[0, :3].amax(dim=0), fine[0, 3]], dim=-1).reshape(-1, 2)
    torch.testing.assert_close(logits[0, :256], expected)


def test_priors_by_hand():
    detector = S3FD({"width": 1 / 64})
    # 64 x 128: maps of 16 x 32, 8 x 16, 4 x 8, 2 x 4, 1 x 2 and 1 x 1 cells.
    found = detector.priors(64, 128)
    assert len(found) == 512 + 128 + 32 + 8 + 2 + 1
    torch.testing.assert_close(found[0], torch.tensor([2 / 128, 2 / 64, 16 / 128, 16 / 64]))
    torch.testing.assert_close(found[1], torch.tensor([6 / 128, 2 / 64, 16 / 128, 16 / 64]))
    torch.testing.assert_close(found[32], torch.tensor([2 / 128, 6 / 64, 16 / 128, 16 / 64]))
    torch.testing.assert_close(found[512], torch.tensor([4 / 128, 4 / 64, 32 / 128, 32 / 64]))
    torch.testing.assert_close(found[-1], torch.tensor([64 / 128, 64 / 64, 512 / 128, 512 / 64]))


def test_the_anchors_of_640_pixels_are_those_of_the_paper():
    with torch.device("meta"):
        detector = S3FD()
    sizes = detector.map_sizes(640, 640)
    assert sizes == [(side, side) for side in (160, 80, 40, 20, 10, 5)]
    assert sum(rows * columns for rows, columns in sizes) == 34_125  # section 3.3: 75 % of them on the finest


# Anchors of 10 x 10 in a row, 5 apart: neighbours overlap at IoU 1/3, those 2.5 off a face at 0.6.
ROW = boxes.centres(torch.tensor([[5.0 * i, 0.0, 5.0 * i + 10, 10.0] for i in range(12)]))


def test_stage_one_matches_at_the_threshold():
    truth = torch.tensor([[0.0, 0, 10, 10], [30.0, 0, 40, 10]])
    # Each has one anchor at 1, and neighbours at 1/3: below 0.35. One each on average: no stage two.
    assert boxes.match_compensated(truth, ROW).tolist() == [0] + [-1] * 5 + [1] + [-1] * 5


def test_stage_two_compensates_a_face_with_few_anchors():
    wide = [0.0, 0, 22.5, 10]  # with anchors 0 to 2 at IoU 0.444, with 3 (7.5 of 25) at 0.3
    small = [40.0, 0, 46, 10]  # with 8 at 0.6; with 7 (5 of 6 wide: 5 / 11) at 0.4545; with 9 at 1 / 15
    truth = torch.tensor([wide, small])
    plain = boxes.match(truth, ROW, 0.35, forced=0.1).tolist()
    assert plain == [0, 0, 0, -1, -1, -1, -1, 1, 1, -1, -1, -1]
    # Average 2.5, rounded to 2 (to even): both have enough.
    assert boxes.match_compensated(truth, ROW).tolist() == plain
    tiny = torch.tensor([wide, [52.5, 0, 55.5, 10]])  # 3 wide, in 10 at 0.3, and in 9 by 3: 0.3
    plain = boxes.match(tiny, ROW, 0.35, forced=0.1)
    assert plain.tolist()[:3] == [0, 0, 0] and (plain == 1).sum() == 1
    # Average 2: the tiny face takes one more, above 0.1.
    found = boxes.match_compensated(tiny, ROW).tolist()
    assert found[:9] == [0, 0, 0] + [-1] * 6 and found[9:] == [1, 1, -1]


def test_stage_two_takes_nothing_weak_and_nothing_from_others():
    truth = torch.tensor([[0.0, 0, 22.5, 10], [100.0, 0, 110, 10]])  # the second: no anchor anywhere near
    assert boxes.match_compensated(truth, ROW).tolist() == [0, 0, 0] + [-1] * 9
    same = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 9]])
    found = boxes.match_compensated(same, ROW[:1]).tolist()
    assert found == [0]
    assert boxes.match_compensated(torch.zeros(0, 4), ROW).tolist() == [-1] * 12


@pytest.mark.parametrize("seed", range(8))
def test_compensation_only_adds(seed):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 0.7, (4, 2))
    truth = torch.tensor(np.hstack([corner, corner + random.uniform(0.03, 0.3, (4, 2))]), dtype=torch.float32)
    priors = S3FD({"width": 1 / 64}).priors(128, 128)
    before, after = boxes.match(truth, priors, 0.35, forced=0.1), boxes.match_compensated(truth, priors)
    assert (after[before >= 0] == before[before >= 0]).all()
    added = (before < 0) & (after >= 0)
    overlap = boxes.iou(truth, boxes.corners(priors))
    rows = torch.nonzero(added)[:, 0]
    assert (overlap[after[rows], rows] > 0.1).all()
    counts = torch.bincount(before[before >= 0], minlength=4)
    most = torch.bincount(after[after >= 0], minlength=4)
    average = max(1, round(counts.float().mean().item()))
    assert (most <= counts.clamp(min=average)).all()
