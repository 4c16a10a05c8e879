import functools

import numpy as np
import pytest
import torch

from holdfast.data.pixels import to_float
from holdfast.detectors import DETECTORS, training
from holdfast.detectors import boxes as box_math
from holdfast.detectors.retinaface import RetinaFace
from holdfast.detectors.training import augment, initialise, multibox_loss, targets, train_detector
from holdfast.errors import HoldfastError
from holdfast.metrics import detection
from holdfast.seeds import generator, numpy_generator

ANCHORS = [[10, 14], [20, 26], [36, 44]]
NAMES = ["test", "detector"]


def scenes(count, size=64, name="train"):
    """Bright squares with a dark middle on dim noise: nothing of a face but what a box needs."""
    random = numpy_generator("squares", name)
    images = random.integers(0, 90, (count, size, size, 3), dtype=np.uint8)
    boxes = []
    for image in images:
        side = int(random.integers(12, 32))
        x, y = random.integers(0, size - side, 2)
        image[y : y + side, x : x + side] = random.integers(170, 256, 3)
        image[y + side // 3 : y + 2 * side // 3, x + side // 3 : x + 2 * side // 3] = 20
        boxes.append(np.array([[x, y, x + side, y + side]], dtype=np.float32))
    return images, boxes


def small():
    return RetinaFace({"width": 1 / 8, "anchors": ANCHORS})


def weights(detector):
    return {name: tensor.clone() for name, tensor in detector.network.state_dict().items()}


def test_targets_decode_to_the_truth():
    priors = box_math.anchors(64, 64, ANCHORS, (8, 16, 32))
    truth = [torch.tensor([[0.1, 0.2, 0.4, 0.5], [0.5, 0.5, 0.9, 1.0]]), torch.zeros(0, 4)]
    faces, encoded = targets(truth, priors)
    assert faces.shape == encoded.shape[:2] == (2, len(priors))
    assert faces[0].any() and not faces[1].any() and encoded[1].abs().max() == 0
    decoded = box_math.decode(encoded[0], priors)[faces[0]]
    assert all((box - truth[0]).abs().amax(dim=1).min() < 1e-5 for box in decoded)
    assert box_math.iou(truth[0], decoded).amax(dim=1).min() > 0.999


def test_multibox_loss_closed_form():
    # One positive, four negatives, two of which count. With logits (0, z), face costs log(1 + e^-z).
    z = torch.tensor([1.0, 3.0, -1.0, 2.0, 0.0])
    logits = torch.stack([torch.zeros(5), z], dim=1)[None]
    faces = torch.tensor([[True, False, False, False, False]])
    predicted, encoded = torch.zeros(1, 5, 4), torch.zeros(1, 5, 4)
    encoded[0, 0] = torch.tensor([0.5, 2.0, 0.0, 0.0])
    encoded[0, 1] = 100.0  # background: no box to find
    face, box = multibox_loss(logits, predicted, faces, encoded, negatives=2)
    expected = np.log1p(np.exp(-1)) + np.log1p(np.exp(3)) + np.log1p(np.exp(2))
    assert face.item() == pytest.approx(expected, rel=1e-5)
    assert box.item() == pytest.approx(0.5 * 0.25 + 1.5, rel=1e-5)


def test_multibox_loss_without_any_face():
    logits = torch.zeros(2, 20, 2, requires_grad=True)
    nothing = torch.zeros(2, 20, dtype=torch.bool)
    face, box = multibox_loss(logits, torch.zeros(2, 20, 4), nothing, torch.zeros(2, 20, 4))
    assert face.item() == pytest.approx(2 * 7 * np.log(2), rel=1e-5) and box.item() == 0
    (face + box).backward()
    assert (logits.grad.abs().sum(dim=(1, 2)) > 0).all()


def test_augmentation_moves_the_boxes_with_the_faces():
    images, boxes = scenes(12)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    truth = [torch.from_numpy(box) for box in boxes]
    plain = {"contrast": 0.0, "brightness": 0.0}
    moved, moved_truth = augment(x, truth, plain, generator("mirror"))
    mirrored = 0
    for image, before, box, old in zip(moved, x, moved_truth, truth, strict=True):
        x1, y1, x2, y2 = box[0].int().tolist()
        assert image[:, y1 : y1 + 3, x1:x2].mean() > 0.2  # the bright rim
        if torch.allclose(image, before.flip(2), atol=1e-5):
            mirrored += 1
            assert (x1, x2) == (64 - int(old[0, 2]), 64 - int(old[0, 0]))
        else:
            torch.testing.assert_close(image, before)
            assert torch.equal(box, old)
    assert 0 < mirrored < 12
    changed, _ = augment(x, truth, {"contrast": 0.3, "brightness": 0.2}, generator("mirror"))
    assert changed.abs().max() <= 1 and not torch.allclose(changed, moved)


def test_weights_are_drawn_by_name():
    first, second, third = small(), small(), small()
    initialise(first.network, "a")
    initialise(second.network, "a")
    initialise(third.network, "b")
    same, other = weights(second), weights(third)
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights(first).items())
    assert not torch.equal(other["body.stage1.0.0.weight"], same["body.stage1.0.0.weight"])


def test_it_learns_and_is_frozen_afterwards():
    images, boxes = scenes(64)
    detector, told = small(), []
    history = train_detector(
        detector, images, boxes, {"steps": 240, "batch": 8, "learning_rate": 5e-3}, NAMES, None, told.append
    )
    assert [row["step"] for row in history] == list(range(240))
    assert "landmark loss is left out" in told[0]
    assert not detector.network.training
    assert not any(parameter.requires_grad for parameter in detector.network.parameters())
    new, truth = scenes(40, name="test")
    x = torch.from_numpy(new).permute(0, 3, 1, 2) / 127.5 - 1
    found = [[part.numpy() for part in pair] for pair in detector.detect(x, 0.05)]
    assert detection.ap(found, truth)["value"] > 0.5  # drawn anew: below 0.05
    drawn = small()
    initialise(drawn.network, *NAMES)
    key = "LandmarkHead.1.conv1x1.weight"
    assert torch.equal(weights(detector)[key], weights(drawn)[key])


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    images, boxes = scenes(10)
    settings = {"steps": 6, "batch": 4}
    whole = small()
    expected = train_detector(whole, images, boxes, settings, NAMES, tmp_path / "whole.pt")

    class Killed(Exception):
        pass

    class Dying(RetinaFace):
        passes = 0

        def raw(self, images):
            self.passes += 1
            if self.passes > 4:
                raise Killed
            return super().raw(images)

    interrupted = Dying({"width": 1 / 8, "anchors": ANCHORS})
    state = tmp_path / "state.pt"
    with monkeypatch.context() as patch:
        patch.setattr(training, "run_steps", functools.partial(training.run_steps, save_seconds=0.0))
        with pytest.raises(Killed):
            train_detector(interrupted, images, boxes, settings, NAMES, state)
    assert state.exists()
    torch.manual_seed(5)
    continued = small()
    history = train_detector(continued, images, boxes, settings, NAMES, state)
    assert history == expected
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(continued)[name], tensor), name


@pytest.mark.parametrize("settings", [{"stpes": 3}, {"steps": 0}, {"batch": 0}, {"start": "warm"}])
def test_settings_it_cannot_take(settings):
    images, boxes = scenes(2)
    with pytest.raises(HoldfastError, match=next(iter(settings))):
        train_detector(small(), images, boxes, settings, NAMES, None)


def test_scenes_and_boxes_that_do_not_go_together():
    images, boxes = scenes(3)
    with pytest.raises(HoldfastError, match="do not go together"):
        train_detector(small(), images, boxes[:2], {"steps": 1}, NAMES, None)


@pytest.mark.parametrize("name", DETECTORS)
def test_training_and_detection_on_a_gpu_are_those_of_the_cpu(name, gpu):
    images, boxes = scenes(6)
    faces, found = to_float(images), []
    for device in ("cpu", "cuda"):
        detector = DETECTORS[name]({"width": 1 / 8 if name == "retinaface" else 1 / 16, "candidates": 50}).to(
            device
        )
        log = train_detector(detector, images, boxes, {"steps": 2, "batch": 4}, NAMES, None)
        assert detector.device.type == device
        found.append((log, detector.detect(faces, threshold=0.0)))
    assert found[0][0] == found[1][0]
    for (boxes_here, scores_here), (boxes_there, scores_there) in zip(found[0][1], found[1][1], strict=True):
        assert boxes_there.is_cuda and len(boxes_here)
        assert torch.equal(boxes_here, boxes_there.cpu()) and torch.equal(scores_here, scores_there.cpu())
