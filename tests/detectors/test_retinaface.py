import os
import pickle
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from holdfast.data.pixels import to_float
from holdfast.detectors import DETECTORS
from holdfast.detectors.retinaface import RetinaFace, RetinaFaceNetwork
from holdfast.errors import HoldfastError
from holdfast.metrics import detection

LAB = os.environ.get("HOLDFAST_LAB")
needs_lab = pytest.mark.skipif(not LAB, reason="HOLDFAST_LAB is not set")


def images(count, height, width=None, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width or height, generator=random) * 2 - 1


@pytest.fixture
def narrow():
    torch.manual_seed(0)
    return RetinaFace({"width": 1 / 8})


@pytest.fixture(scope="module")
def published():
    return RetinaFace().load(Path(LAB) / "weights" / "retinaface_mobilenet0.25.pth")


def test_it_is_registered():
    assert DETECTORS["retinaface"] is RetinaFace and RetinaFace.title == "RetinaFace"


def test_published_size():
    network = RetinaFaceNetwork()
    assert sum(parameter.numel() for parameter in network.parameters()) == 426_608
    assert len(network.state_dict()) == 300
    assert network.state_dict()["ssh2.conv7x7_3.1.running_var"].shape == (16,)
    assert network.state_dict()["LandmarkHead.2.conv1x1.weight"].shape == (20, 64, 1, 1)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 64), (109, 89), (96, 250)])
def test_shapes_for_any_image(narrow, size):
    x = images(2, *size)
    logits, encoded = narrow.raw(x)
    priors = narrow.priors(*size)
    assert logits.shape == (2, len(priors), 2) and encoded.shape == (2, len(priors), 4)
    for level, stride in zip(narrow.levels(x), (8, 16, 32), strict=True):
        assert level.shape == (2, 32, -(-size[0] // stride), -(-size[1] // stride))
    assert narrow.decode(encoded, priors).shape == encoded.shape
    assert narrow.network(x)[2].shape == (2, len(priors), 10)


@pytest.mark.parametrize("input_size", [None, 96, 40])
@pytest.mark.parametrize("output", ["raw", "levels"])
def test_a_gradient_reaches_the_image(output, input_size):
    detector = RetinaFace({"width": 1 / 8, "input_size": input_size})
    x = images(1, 64).requires_grad_()
    sum(part.square().sum() for part in getattr(detector, output)(x)).backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in detector.network.parameters())


def test_it_is_frozen_and_independent_of_the_batch(narrow):
    assert not narrow.network.training
    assert not any(parameter.requires_grad for parameter in narrow.network.parameters())
    x = images(3, 64)
    together, alone = narrow.raw(x)[0][1], narrow.raw(x[1:2])[0][0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_detections_are_ordered_above_the_threshold_and_spread(narrow):
    x = images(2, 64, 96)
    logits = narrow.raw(x)[0]
    threshold = float(torch.softmax(logits, -1)[..., 1].quantile(0.6))
    for found, scores in narrow.detect(x, threshold):
        assert found.shape == (len(scores), 4) and len(scores) > 0
        assert (scores > threshold).all() and (scores.diff() <= 0).all()
        overlap = detection.overlaps(found.numpy(), found.numpy())
        assert (overlap - np.eye(len(found)) <= 0.4 + 1e-6).all()
    empty_boxes, empty_scores = narrow.detect(x, 1.0)[0]
    assert empty_boxes.shape == (0, 4) and empty_scores.shape == (0,)
    assert narrow.detect(x[:0]) == []


def test_boxes_come_back_in_the_pixels_given():
    """Through an input size, the same picture at twice the size gives the same boxes, twice as large."""
    torch.manual_seed(1)
    detector = RetinaFace({"width": 1 / 8, "input_size": 64})
    x = images(1, 64)
    large = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.manual_seed(1)
    plain = RetinaFace({"width": 1 / 8})
    expected = plain.detect(x, 0.4)[0][0]
    assert len(expected) and torch.equal(detector.detect(x, 0.4)[0][0], expected)
    assert detector.priors(128, 128).equal(plain.priors(64, 64))
    # Area averaging undoes the doubling only nearly, so the boxes may move a little.
    found = detector.detect(large, 0.0)[0][0]
    best = detection.overlaps(found.numpy(), 2 * expected[:5].numpy()).max(axis=0)
    assert (best > 0.6).all()


@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 1, 64, 64), (3, 64, 64)])
def test_images_it_cannot_take(narrow, shape):
    with pytest.raises(HoldfastError, match="cannot take"):
        narrow.raw(torch.zeros(shape))


@pytest.mark.parametrize(
    "settings",
    [{"widht": 0.25}, {"width": 0.3}, {"width": 0}, {"anchors": [[16], [32]]}, {"anchors": [[16], [], [64]]},
     {"anchors": [[16], [0], [64]]}, {"input_size": 16}],
)  # fmt: skip
def test_settings_it_cannot_take(settings):
    with pytest.raises(HoldfastError, match=next(iter(settings))):
        RetinaFace(settings)


def test_saved_weights_come_back(narrow, tmp_path):
    path = tmp_path / "detector.safetensors"
    narrow.save(path)
    torch.manual_seed(9)
    other = RetinaFace({"width": 1 / 8})
    x = images(1, 64)
    assert not torch.equal(other.raw(x)[0], narrow.raw(x)[0])
    assert torch.equal(other.load(path).raw(x)[0], narrow.raw(x)[0])
    assert [file.name for file in tmp_path.iterdir()] == ["detector.safetensors"]


def test_weights_of_another_architecture(narrow, tmp_path):
    path = tmp_path / "detector.safetensors"
    narrow.save(path)
    with pytest.raises(HoldfastError, match="another `width`"):
        RetinaFace().load(path)
    with pytest.raises(HoldfastError, match="another `anchors`"):
        RetinaFace({"width": 1 / 8, "anchors": [[8, 12], [16, 24], [32, 64]]}).load(path)
    public = tmp_path / "other.pth"
    torch.save({"module.conv.weight": torch.zeros(3)}, public)
    with pytest.raises(HoldfastError, match="another architecture"):
        narrow.load(public)
    torch.save({f"module.{k}": v for k, v in RetinaFaceNetwork().state_dict().items()}, public)
    with pytest.raises(HoldfastError, match=r"body.stage1.0.0.weight is \(8, 3, 3, 3\), not \(4, 3, 3, 3\)"):
        narrow.load(public)


def test_public_layout_loads_strictly(tmp_path):
    network = RetinaFaceNetwork()
    path = tmp_path / "public.pth"
    torch.save({f"module.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    loaded = RetinaFace().load(path).network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())


class _Harmful:
    def __reduce__(self):
        return (os.mkdir, (str(Path.cwd() / "the_checkpoint_ran"),))


def test_files_that_cannot_be_read(narrow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HoldfastError, match="is missing"):
        narrow.load(tmp_path / "absent.pth")
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save(narrow.network.state_dict(), whole)
    cut.write_bytes(whole.read_bytes()[:20_000])
    code = tmp_path / "code.pth"
    code.write_bytes(pickle.dumps(_Harmful()))
    (tmp_path / "empty.pth").touch()
    for path in (cut, code, tmp_path / "empty.pth"):
        with pytest.raises(HoldfastError, match="cannot read"):
            narrow.load(path)
    torch.save([torch.zeros(1)], whole)
    with pytest.raises(HoldfastError, match="no state dict"):
        narrow.load(whole)
    ours, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    narrow.save(ours)
    cut.write_bytes(ours.read_bytes()[:20_000])
    with pytest.raises(HoldfastError, match="cannot read"):
        narrow.load(cut)
    assert not (tmp_path / "the_checkpoint_ran").exists()


@needs_lab
def test_published_weights_find_the_faces_of_photographs(published):
    """18 faces in 4 photographs; the annotated boxes are square and tighter than RetinaFace's."""
    found, truth = [], []
    for image in ElementTree.parse(Path(LAB) / "photos" / "boxes.xml").iter("image"):
        with Image.open(Path(LAB) / "photos" / image.get("file")) as file:
            pixels = np.array(file.convert("RGB"))
        pair = published.detect(to_float(pixels[None]), 0.05)[0]
        found.append([part.numpy() for part in pair])
        sides = [
            [int(box.get(key)) for key in ("left", "top", "width", "height")] for box in image.iter("box")
        ]
        truth.append(np.array([[x, y, x + w, y + h] for x, y, w, h in sides]))
    measured = detection.f1_truth(found, truth)
    assert measured["extra"]["n_truth"] == 18 and measured["extra"]["recall"] == 1.0
    assert measured["value"] > 0.95 and detection.ap(found, truth)["value"] > 0.95


@needs_lab
@pytest.mark.parametrize("folder", ["celeba/img_align_celeba/00000?.jpg", "lfw/A*/*_0001.jpg"])
def test_published_weights_find_aligned_faces(published, folder):
    paths = sorted(Path(LAB).glob(folder))[:9]
    for path in paths:
        with Image.open(path) as file:
            x = to_float(np.array(file.convert("RGB"))[None])
        found, scores = published.detect(x)[0]
        assert len(scores) and scores[0] > 0.5
        centre = np.array([x.shape[3], x.shape[2]]) / 2
        assert (found[0, :2].numpy() < centre).all() and (found[0, 2:].numpy() > centre).all()
    assert len(paths) == 9
