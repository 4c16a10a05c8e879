"""The backbone's start from torchvision's VGG16: which weights go where, and that the input still fits."""

import pytest
import torch
from torch.nn import functional
from vgg_layout import VGG

from holdfast.detectors import DETECTORS
from holdfast.errors import HoldfastError

CLASSIFIER = {
    "classifier.0.weight": (4096, 25088), "classifier.0.bias": (4096,),
    "classifier.3.weight": (4096, 4096), "classifier.3.bias": (4096,),
    "classifier.6.weight": (1000, 4096), "classifier.6.bias": (1000,),
}  # fmt: skip


def drawn(name, *shape):
    """Numbers along one axis, repeated over the first: a file of some kilobytes holds them all."""
    random = torch.Generator().manual_seed(sum(map(ord, name)))
    if len(shape) == 1:
        return torch.randn(shape, generator=random)
    return torch.randn(1, *shape[1:], generator=random).expand(shape)


@pytest.fixture(scope="module")
def torchvisions(tmp_path_factory):
    """(path, state dict) of a file in the layout of torchvision's VGG16."""
    state = {}
    for number, outputs, inputs, kernel in VGG[:13]:
        state[f"features.{number}.weight"] = drawn(f"w{number}", outputs, inputs, kernel, kernel)
        state[f"features.{number}.bias"] = drawn(f"b{number}", outputs)
    # The first layer is small: let its channels differ.
    state["features.0.weight"] = torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    state |= {name: drawn(name, *shape) for name, shape in CLASSIFIER.items()}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path, state


@pytest.mark.parametrize("name", ["s3fd", "dsfd"])
def test_weights_go_where_they_belong(name, torchvisions, images):
    path, state = torchvisions
    detector = DETECTORS[name]()
    others = {key: value.clone() for key, value in detector.network.state_dict().items() if "vgg" not in key}
    detector.start_from_imagenet(path)
    own = detector.network.state_dict()
    for number, *_ in VGG[1:13]:
        assert torch.equal(own[f"vgg.{number}.weight"], state[f"features.{number}.weight"])
        assert torch.equal(own[f"vgg.{number}.bias"], state[f"features.{number}.bias"])
    # fc6: channel 4 k of the outputs, taps 0, 3 and 6 of the 7 x 7; fc7: every fourth both ways.
    fc6 = state["classifier.0.weight"]
    for k, channel, row, column in ((0, 0, 0, 0), (5, 17, 1, 2), (1023, 511, 2, 2)):
        tap = channel * 49 + 3 * row * 7 + 3 * column
        assert own["vgg.31.weight"][k, channel, row, column] == fc6[4 * k, tap]
    assert torch.equal(own["vgg.31.bias"], state["classifier.0.bias"][::4])
    assert own["vgg.33.weight"][3, 9, 0, 0] == state["classifier.3.weight"][12, 36]
    assert torch.equal(own["vgg.33.bias"], state["classifier.3.bias"][::4])
    assert all(torch.equal(own[key], value) for key, value in others.items())
    # The first layer sees our pixels as torchvision's sees its own; but for the border, which is padded.
    x = images(1, 32)
    mean, deviation = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    theirs = functional.conv2d(
        ((x + 1) / 2 - mean) / deviation, state["features.0.weight"], state["features.0.bias"], padding=1
    )
    ours = detector.network.vgg[0](detector._input(x))
    torch.testing.assert_close(ours[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1], rtol=1e-3, atol=1e-3)


def test_files_that_are_not_vgg16(torchvisions, tmp_path):
    path, state = torchvisions
    detector = DETECTORS["s3fd"]()
    with pytest.raises(HoldfastError, match="is missing"):
        detector.start_from_imagenet(tmp_path / "none.pth")
    named = tmp_path / "vgg16-397923af.pth"
    named.write_bytes(path.read_bytes())
    with pytest.raises(HoldfastError, match="not the file that its name says") as caught:
        detector.start_from_imagenet(named)
    assert "397923af" in caught.value.expected
    other = tmp_path / "other.pth"
    torch.save({key: value for key, value in state.items() if key != "features.10.bias"}, other)
    with pytest.raises(HoldfastError, match="does not hold the weights of VGG16") as caught:
        detector.start_from_imagenet(other)
    assert "features.10.bias" in caught.value.found
    torch.save({**state, "classifier.0.weight": torch.zeros(4096, 512)}, other)
    with pytest.raises(HoldfastError, match="does not hold the weights of VGG16"):
        detector.start_from_imagenet(other)


def test_detectors_that_it_does_not_fit(torchvisions):
    path, _ = torchvisions
    with pytest.raises(HoldfastError, match="not as wide as VGG16") as caught:
        DETECTORS["dsfd"]({"width": 1 / 16}).start_from_imagenet(path)
    assert caught.value.found == "width 0.0625"
    with pytest.raises(HoldfastError, match="RetinaFace cannot start"):
        DETECTORS["retinaface"]().start_from_imagenet(path)
