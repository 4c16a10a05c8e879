"""DSFD: the public layout, its parts by hand, its two shots."""

import pytest
import torch
from torch.nn import functional
from vgg_layout import MAPS, backbone, convolution, head

from holdfast.detectors import DETECTORS, boxes
from holdfast.detectors.dsfd import DSFD, DSFDNetwork, FeatureEnhance
from holdfast.detectors.training import multibox_loss, targets, train_detector

# Inside a feature enhance module: channels, those of branches 1 and 2, those of branch 3.
SPLITS = {256: (85, 86), 512: (170, 172), 1024: (341, 342)}


def enhance(name, channels):
    third, rest = SPLITS[channels]
    return {
        **convolution(f"{name}.branch1", third, channels, 3),
        **convolution(f"{name}.branch2.0", third, channels, 3),
        **convolution(f"{name}.branch2.2", third, third, 3),
        **convolution(f"{name}.branch3.0", rest, channels, 3),
        **convolution(f"{name}.branch3.2", rest, rest, 3),
        **convolution(f"{name}.branch3.4", rest, rest, 3),
    }


TOP_DOWN = [(256, 256), (512, 256), (1024, 512), (512, 1024), (512, 512), (256, 512)]
LAYOUT = {
    **backbone(),
    **{f"L2Norm{kind}{i + 1}.weight": (MAPS[i],) for kind in ("of", "ef") for i in range(3)},
    **head("loc_pal1", 4),
    **head("conf_pal1", 2),
    **head("loc_pal2", 4),
    **head("conf_pal2", 2),
}
for number, shape in enumerate(TOP_DOWN):
    LAYOUT |= convolution(f"fpn_topdown.{number}", *shape, 1)
for number, width in enumerate([512, 1024, 512, 512, 256]):
    LAYOUT |= convolution(f"fpn_latlayer.{number}", width, width, 1)
for number, width in enumerate(MAPS):
    LAYOUT |= enhance(f"fpn_fem.{number}", width)


@pytest.fixture
def narrow():
    torch.manual_seed(0)
    return DSFD({"width": 1 / 16})


def test_published_size_and_layout():
    with torch.device("meta"):
        network = DSFD().network
    assert sum(parameter.numel() for parameter in network.parameters()) == 49_793_432
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == LAYOUT
    assert DETECTORS["dsfd"] is DSFD and DSFD.public_file == "dsfd_vgg_0.880.pth"


def test_dilations():
    network = DSFDNetwork(1 / 64)
    assert network.vgg[31].dilation == network.vgg[31].padding == (3, 3)
    dilated = [layer for layer in network.fpn_fem.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(dilated) == 36 and {layer.dilation for layer in dilated} == {(3, 3)}


def test_a_feature_enhance_module_puts_its_branches_side_by_side():
    torch.manual_seed(1)
    module, x = FeatureEnhance(8), torch.randn(1, 8, 9, 9)
    found = module(x)
    assert found.shape == x.shape and found.min() == 0
    torch.testing.assert_close(found[:, :2], module.branch1(x).relu())
    torch.testing.assert_close(found[:, 2:4], module.branch2(x).relu())
    torch.testing.assert_close(found[:, 4:], module.branch3(x).relu())
    # One, two, three layers dilated by 3: fields of 7, 13 and 19 pixels.
    for branch, reach in ((module.branch1, 3), (module.branch2, 6), (module.branch3, 9)):
        seen = torch.zeros(1, 8, 31, 31, requires_grad=True)
        branch(seen + 1)[0, :, 15, 15].sum().backward()
        rows = torch.nonzero(seen.grad[0].abs().sum(dim=(0, 2)))[:, 0]
        assert rows.min() >= 15 - reach and rows.max() <= 15 + reach


def test_the_pyramid_multiplies(narrow, images):
    """The second coarsest enhanced map, worked out from the layers."""
    network, x = narrow.network, narrow._input(images(1, 128))
    seen = {}
    for name, layer in (("of5", network.extras[1]), ("of6", network.extras[3]), ("ef5", network.fpn_fem[4])):
        layer.register_forward_hook(lambda _, given, made, name=name: seen.update({name: (given, made)}))
    network.levels_and_raw(x)
    of5, of6 = seen["of5"][1].relu(), seen["of6"][1].relu()
    above = network.fpn_topdown[1](network.fpn_topdown[0](of6).relu()).relu()
    above = functional.interpolate(above, size=of5.shape[2:], mode="bilinear", align_corners=True)
    torch.testing.assert_close(seen["ef5"][0][0], (above * network.fpn_latlayer[0](of5)).relu())


def test_detection_reads_the_second_shot(narrow, images):
    x = images(2, 64)
    (first, _, halves), (second, encoded, priors) = narrow.shots(x)
    logits, boxes_ = narrow.raw(x)
    assert torch.equal(second, logits) and torch.equal(encoded, boxes_) and not torch.equal(first, logits)
    assert torch.equal(priors, narrow.priors(64, 64))
    torch.testing.assert_close(halves[:, :2], priors[:, :2])
    torch.testing.assert_close(halves[:, 2:], priors[:, 2:] / 2)


def test_every_face_has_an_anchor():
    """The improved matching: 0.35, and the best anchor whatever it overlaps."""
    detector = DSFD({"width": 1 / 64})
    priors = detector.priors(64, 64)
    tiny = torch.tensor([[0.30, 0.30, 0.33, 0.33]])  # 2 pixels: IoU 4 / 256 with an anchor of 16
    assert (boxes.match(tiny, priors) >= 0).sum() == 0
    found = detector.match(tiny, priors, 0.35)
    assert (found >= 0).sum() == 1
    exact = boxes.corners(priors[37:38])
    assert detector.match(exact, priors, 0.35)[37] == 0


def test_the_progressive_anchor_loss_is_the_sum_of_both_shots(narrow):
    """Weighed alike: one step's loss against the two shots' losses, worked out apart."""
    scene = torch.randint(0, 256, (1, 64, 64, 3), generator=torch.Generator().manual_seed(3)).byte().numpy()
    truth = [torch.tensor([[10.0, 12.0, 30.0, 36.0]]).numpy()]
    settings = {"start": "given", "steps": 1, "batch": 1, "contrast": 0.0, "brightness": 0.0}
    mirrored = [box.copy() for box in truth]
    mirrored[0][:, [0, 2]] = 64 - mirrored[0][:, [2, 0]]
    expected = []
    for picture, box in ((scene, truth[0]), (scene[:, :, ::-1].copy(), mirrored[0])):
        x = torch.from_numpy(picture).permute(0, 3, 1, 2) / 127.5 - 1
        total = 0.0
        for logits, encoded, priors in narrow.shots(x):
            faces, wanted = targets([torch.from_numpy(box) / 64], priors, match=narrow.match)
            total += sum(part.item() for part in multibox_loss(logits, encoded, faces, wanted, 3))
        expected.append(total)
    (row,) = train_detector(narrow, scene, truth, settings, ["pal"], None)
    assert min(abs(row["loss"] - total) for total in expected) < 1e-3
    assert row["loss"] == pytest.approx(row["face"] + row["box"], rel=1e-5)
