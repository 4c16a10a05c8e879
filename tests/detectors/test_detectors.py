"""What every detector keeps: one interface for images of any size, weights that load strictly, training."""

import functools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from holdfast.detectors import DETECTORS, training
from holdfast.detectors.training import initialise, train_detector
from holdfast.errors import HoldfastError
from holdfast.metrics import detection
from holdfast.modules import registered
from holdfast.seeds import numpy_generator

TINY = {"retinaface": {"width": 1 / 8}, "s3fd": {"width": 1 / 16}, "dsfd": {"width": 1 / 16}}
VGG = ["s3fd", "dsfd"]
SIZES = [(32, 32), (33, 47), (63, 64), (64, 65), (100, 35), (127, 40)]


@pytest.fixture(params=TINY)
def detector(request):
    torch.manual_seed(0)
    made = DETECTORS[request.param](TINY[request.param])
    if request.param in VGG:
        # As a trained one: features of about 1, and heads that do not say the same everywhere.
        initialise(made.network, "tests", request.param)
        for layer in made.network.outputs():
            torch.nn.init.normal_(layer.weight, std=0.05, generator=torch.Generator().manual_seed(1))
    return made


def test_all_are_tested_here():
    assert set(TINY) == set(DETECTORS)


@pytest.mark.parametrize("size", SIZES)
def test_any_size_from_32_pixels_on(detector, images, size):
    x = images(2, *size)
    levels, (logits, encoded) = detector.levels_and_raw(x)
    priors = detector.priors(*size)
    assert logits.shape == (2, len(priors), 2) and encoded.shape == (2, len(priors), 4)
    assert len(levels) == 3 and all(level.ndim == 4 and min(level.shape) > 0 for level in levels)
    for level, alone in zip(levels, detector.levels(x), strict=True):
        assert torch.equal(level, alone)
    for raw, alone in zip((logits, encoded), detector.raw(x), strict=True):
        assert torch.equal(raw, alone)
    for logits, encoded, priors in detector.shots(x):
        assert logits.shape[:2] == encoded.shape[:2] == (2, len(priors))
    for boxes, scores in detector.detect(x, 0.0):
        assert len(boxes) == len(scores) > 0 and torch.isfinite(boxes).all()


@pytest.mark.parametrize("name", VGG)
def test_maps_have_the_sizes_that_the_priors_count_on(name, images):
    detector = DETECTORS[name]({"width": 1 / 64 if name == "s3fd" else 1 / 16})
    sizes = []
    for layer in detector.network.loc if name == "s3fd" else detector.network.loc_pal2:
        layer.register_forward_hook(lambda _, given, __: sizes.append(tuple(given[0].shape[2:])))
    for side in range(32, 72):
        sizes.clear()
        detector.raw(images(1, side, 105 - side))
        assert sizes == detector.map_sizes(side, 105 - side)
    for side in (256, 300, 640, 641):
        assert detector.map_sizes(side, side)[0] == (side // 4, side // 4)


@pytest.mark.parametrize("input_size", [None, 48])
@pytest.mark.parametrize("output", ["levels", "raw", "levels_and_raw"])
@pytest.mark.parametrize("name", TINY)
def test_a_gradient_reaches_the_image(name, output, input_size, images):
    torch.manual_seed(0)
    detector = DETECTORS[name]({**TINY[name], "input_size": input_size})
    x = images(1, 64).requires_grad_()
    found = getattr(detector, output)(x)
    parts = [*found[0], *found[1]] if output == "levels_and_raw" else found
    for part in parts:
        (slope,) = torch.autograd.grad(part.square().sum(), x, retain_graph=True)
        assert torch.isfinite(slope).all() and slope.abs().max() > 0
    assert all(parameter.grad is None for parameter in detector.network.parameters())


@pytest.mark.parametrize("input_size", [None, 80])
@pytest.mark.parametrize("name", TINY)
def test_maps_without_a_needed_prior_are_left_out_and_nothing_else_changes(name, input_size, images):
    detector = DETECTORS[name]({**TINY[name], "input_size": input_size})
    initialise(detector.network, "tests", name)
    # On odd sides, where maps are rounded.
    x = images(2, 66, 71).requires_grad_()
    levels, raw = detector.levels_and_raw(x)
    sides = np.array([np.size(side) for side in detector.settings["anchors"]])
    sizes = detector.map_sizes(*((input_size, input_size) if input_size else x.shape[2:]))
    of_map = torch.repeat_interleave(torch.arange(len(sides)), torch.tensor(np.prod(sizes, axis=1) * sides))
    for number in range(len(sides)):
        needed = torch.zeros(len(of_map), dtype=torch.bool)
        needed[(of_map == number).nonzero()[-1]] = True
        some_levels, some_raw = detector.levels_and_raw(x, needed)
        assert all(torch.equal(a, b) for a, b in zip(levels, some_levels, strict=True))
        for all_of_it, found in zip(raw, some_raw, strict=True):
            assert torch.equal(all_of_it[:, of_map == number], found[:, of_map == number])
            assert detector.selective == (not found[:, of_map != number].any())
        slopes = [
            torch.autograd.grad(
                sum(level.square().sum() for level in maps) + sum(part[:, needed].sum() for part in parts),
                x,
                retain_graph=True,
            )[0]
            for maps, parts in ((levels, raw), (some_levels, some_raw))
        ]
        assert slopes[0].abs().max() > 0 and torch.equal(*slopes)


@pytest.mark.parametrize("fill", [-1.0, 0.0, 1.0])
def test_images_of_one_colour_are_detected_on_and_attacked_without_nan(detector, fill):
    """All black, grey and white: channels may be dead, where a norm of nothing has an infinite slope."""
    x = torch.full((2, 3, 48, 48), fill, requires_grad=True)
    levels, (logits, encoded) = detector.levels_and_raw(x)
    sum(part.square().sum() for part in (*levels, logits, encoded)).backward()
    assert all(torch.isfinite(part).all() for part in (x.grad, *levels, logits, encoded))
    found = detector.detect(x.detach(), 0.0)
    assert len(found) == 2 and all(len(scores) and torch.isfinite(boxes).all() for boxes, scores in found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_other_floating_types_are_taken_as_float32(detector, images, dtype):
    x = images(1, 48).to(dtype)
    logits, encoded = detector.raw(x)
    same_logits, same_encoded = detector.raw(x.float())
    assert torch.equal(logits, same_logits) and torch.equal(encoded, same_encoded)


def test_a_batch_is_its_images_one_by_one(detector, images):
    x = images(5, 64)
    detector.settings["batch"] = 2
    together = detector.detect(x, 0.3)
    assert len(together) == 5
    for image, (boxes, scores) in zip(x, together, strict=True):
        ((alone, alone_scores),) = detector.detect(image[None], 0.3)
        torch.testing.assert_close(alone_scores, scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone, boxes, rtol=1e-3, atol=1e-2)


def test_detections_are_above_the_threshold_best_first_and_apart(detector, images):
    x = images(1, 96, 64)
    threshold = float(torch.softmax(detector.raw(x)[0], -1)[..., 1].quantile(0.7))
    boxes, scores = detector.detect(x, threshold)[0]
    assert len(scores) > 1 and (scores > threshold).all() and (scores.diff() <= 0).all()
    overlap = detection.overlaps(boxes.numpy(), boxes.numpy()) - np.eye(len(boxes))
    assert overlap.max() <= detector.settings["nms_threshold"] + 1e-6
    assert detector.detect(x, 1.0)[0][0].shape == (0, 4)
    assert detector.detect(x[:0]) == []


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 3, 31, 64),
        torch.zeros(2, 3, 64, 1),
        torch.zeros(2, 1, 64, 64),
        torch.zeros(2, 4, 64, 64),
        torch.zeros(3, 64, 64),
        torch.zeros(2, 64, 64, 3),
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
    ],
    ids=lambda x: f"{tuple(x.shape)}",
)
def test_images_that_no_detector_takes_are_refused_before_the_first(detector, x):
    with pytest.raises(HoldfastError, match=f"{detector.title} cannot take") as caught:
        detector.detect(x)
    assert str(tuple(x.shape)) in caught.value.found and caught.value.expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_before_the_first_image(detector, value, images):
    x = images(5, 32)
    x[3, 1, 5, 7] = value
    detector.settings["batch"] = 1
    detector.raw = lambda images: pytest.fail("an image was looked at")
    with pytest.raises(HoldfastError, match="cannot take") as caught:
        detector.detect(x)
    assert "image 3 of 5" in caught.value.found and caught.value.repair


@pytest.mark.parametrize("name", VGG)
@pytest.mark.parametrize(
    "settings",
    [{"widht": 0.25}, {"width": 0.3}, {"width": 0}, {"anchors": [16, 32]}, {"input_size": 16},
     {"anchors": [16, 32, 64, 0, 256, 512]}],
)  # fmt: skip
def test_settings_they_cannot_take(name, settings):
    with pytest.raises(HoldfastError, match=next(iter(settings))):
        DETECTORS[name](settings)


def test_the_config_knows_the_settings_of_each():
    for name, kind in DETECTORS.items():
        known = {key: setting["default"] for key, setting in registered("detectors")[name].items()}
        assert known == kind.defaults


# ---- weights ----


def weights(detector):
    return {name: tensor.clone() for name, tensor in detector.network.state_dict().items()}


def test_saved_weights_come_back(detector, tmp_path, images):
    path = tmp_path / "detector.safetensors"
    detector.save(path)
    torch.manual_seed(9)
    other, x = type(detector)(detector.settings), images(1, 64)
    assert not torch.equal(other.raw(x)[0], detector.raw(x)[0])
    assert torch.equal(other.load(path).raw(x)[0], detector.raw(x)[0])


@pytest.mark.parametrize("name", VGG)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_public_checkpoint_loads_strictly(name, prefix, tmp_path):
    torch.manual_seed(4)
    first, path = DETECTORS[name](TINY[name]), tmp_path / DETECTORS[name].public_file
    state = {f"{prefix}{key}": value for key, value in weights(first).items()}
    torch.save(state, path)
    second = DETECTORS[name](TINY[name]).load(path)
    assert all(torch.equal(weights(second)[key], value) for key, value in weights(first).items())
    lost = next(iter(state))
    torch.save({key: value for key, value in state.items() if key != lost}, path)
    with pytest.raises(HoldfastError, match="missing vgg.0.weight"):
        second.load(path)
    torch.save({**state, "vgg.35.weight": torch.zeros(1)}, path)
    with pytest.raises(HoldfastError, match="unknown vgg.35.weight") as caught:
        second.load(path)
    assert DETECTORS[name].public_file in caught.value.repair
    torch.save({**state, lost: torch.zeros(4, 3, 5, 5)}, path)
    with pytest.raises(HoldfastError, match=r"vgg.0.weight is \(4, 3, 5, 5\), not \(4, 3, 3, 3\)"):
        second.load(path)


@pytest.mark.parametrize("name", VGG)
def test_files_of_other_detectors_and_other_widths(name, tmp_path):
    torch.manual_seed(0)
    detector = DETECTORS[name](TINY[name])
    path = tmp_path / "weights.safetensors"
    detector.save(path)
    with pytest.raises(HoldfastError, match="another `width`"):
        DETECTORS[name]({"width": 1 / 32}).load(path)
    with pytest.raises(HoldfastError, match="another `anchors`"):
        DETECTORS[name]({**TINY[name], "anchors": [8, 16, 32, 64, 128, 256]}).load(path)
    (other,) = set(VGG) - {name}
    with pytest.raises(HoldfastError, match="another architecture"):
        DETECTORS[other](TINY[other]).load(path)
    with pytest.raises(HoldfastError, match="is missing"):
        detector.load(tmp_path / "none.pth")


class _Harmful:
    def __reduce__(self):
        return (os.mkdir, (str(Path.cwd() / "the_checkpoint_ran"),))


def test_files_that_cannot_be_read(detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for suffix in ("pth", "safetensors"):
        whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
        if suffix == "pth":
            torch.save(detector.network.state_dict(), whole)
        else:
            detector.save(whole)
        cut.write_bytes(whole.read_bytes()[:20_000])
        with pytest.raises(HoldfastError, match="cannot read"):
            detector.load(cut)
    code = tmp_path / "code.pth"
    code.write_bytes(pickle.dumps(_Harmful(), protocol=2))
    with pytest.raises(HoldfastError, match="cannot read"):
        detector.load(code)
    assert not (tmp_path / "the_checkpoint_ran").exists()


def test_damaged_bytes_and_values_are_refused_before_the_first_is_taken_over(detector, tmp_path):
    path, whole = tmp_path / "weights.pth", weights(detector)
    name = next(iter(whole))
    torch.save({**whole, name: whole[name] * torch.nan}, path)
    torch.manual_seed(9)
    other = type(detector)(detector.settings)
    before = weights(other)
    with pytest.raises(HoldfastError, match=f"{name}: NaN"):
        other.load(path)
    torch.save(whole, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3", 1))
    with pytest.raises(HoldfastError, match="(?s)cannot read.*TypeError"):
        other.load(path)
    assert all(torch.equal(value, before[key]) for key, value in weights(other).items())


# ---- training ----


def scenes(count, size=48, name="train"):
    """Bright squares with a dark middle on dim noise."""
    random = numpy_generator("squares", name)
    pictures = random.integers(0, 90, (count, size, size, 3), dtype=np.uint8)
    boxes = []
    for picture in pictures:
        side = int(random.integers(12, 30))
        x, y = random.integers(0, size - side, 2)
        picture[y : y + side, x : x + side] = random.integers(170, 256, 3)
        picture[y + side // 3 : y + 2 * side // 3, x + side // 3 : x + 2 * side // 3] = 20
        boxes.append(np.array([[x, y, x + side, y + side]], dtype=np.float32))
    return pictures, boxes


@pytest.mark.parametrize("name", VGG)
def test_it_learns(name):
    pictures, boxes = scenes(48)
    detector = DETECTORS[name](TINY[name])
    settings = {"steps": 120, "batch": 8, "learning_rate": 3e-3}
    history = train_detector(detector, pictures, boxes, settings, ["learns"], None)
    assert not detector.network.training
    assert not any(parameter.requires_grad for parameter in detector.network.parameters())
    assert np.mean([row["loss"] for row in history[-10:]]) < 0.6 * np.mean(
        [row["loss"] for row in history[:10]]
    )
    new, truth = scenes(24, name="test")
    x = torch.from_numpy(new).permute(0, 3, 1, 2) / 127.5 - 1
    found = [[part.numpy() for part in pair] for pair in detector.detect(x, 0.05)]
    assert detection.ap(found, truth)["value"] > 0.5


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", VGG)
def test_an_interrupted_training_ends_with_the_same_weights(name, tmp_path, monkeypatch):
    pictures, boxes = scenes(6)
    settings, names = {"steps": 4, "batch": 2}, ["resume", name]
    whole = DETECTORS[name](TINY[name])
    expected = train_detector(whole, pictures, boxes, settings, names, tmp_path / "whole.pt")
    again = DETECTORS[name](TINY[name])
    assert train_detector(again, pictures, boxes, settings, names, None) == expected

    class Dying(DETECTORS[name]):
        passes = 0

        def shots(self, images):
            self.passes += 1
            if self.passes > 2:
                raise Killed
            return super().shots(images)

    state = tmp_path / "state.pt"
    with monkeypatch.context() as patch:
        patch.setattr(training, "run_steps", functools.partial(training.run_steps, save_seconds=0.0))
        with pytest.raises(Killed):
            train_detector(Dying(TINY[name]), pictures, boxes, settings, names, state)
    torch.manual_seed(5)
    continued = DETECTORS[name](TINY[name])
    assert train_detector(continued, pictures, boxes, settings, names, state) == expected
    for key, value in weights(whole).items():
        assert torch.equal(weights(continued)[key], value) and torch.equal(weights(again)[key], value), key


@pytest.mark.parametrize("name", VGG)
def test_from_scratch_activations_start_at_about_one(name, images):
    """Without batch normalisation, He's weights and pixels of 0..255 would make features of 0..255."""
    detector = DETECTORS[name]({"width": 1 / 4})
    initialise(detector.network, "scale")
    x = detector._input(images(2, 64))
    for layer in detector.network.vgg[:30]:
        x = layer(x)
        if isinstance(layer, torch.nn.ReLU):
            assert 0.2 < x.square().mean().sqrt() < 5
    assert max(layer.weight.std() for layer in detector.network.outputs()) < 0.02
