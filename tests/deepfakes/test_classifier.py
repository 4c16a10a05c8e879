"""The attribute classifier: it learns what is plain to see, and its files hold what it learnt."""

import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast.deepfakes import classifier as module
from holdfast.deepfakes.classifier import (
    AttributeClassifier,
    _augment,
    accuracy,
    train_classifier,
    unseen_positions,
)
from holdfast.errors import HoldfastError
from holdfast.seeds import generator

SETTINGS = {"channels": 4, "steps": 30, "batch": 16, "learning_rate": 0.01}
NAMES = ("classifier", 0)


@pytest.fixture(scope="module")
def plain(faces_of):
    return faces_of(train=64, unseen=40, size=16)


@pytest.fixture(scope="module")
def trained(plain):
    return train_classifier(plain, ["Young"], SETTINGS, NAMES)


def test_it_learns_what_is_plain_to_see(plain, trained):
    model, log, found = trained
    assert list(found) == ["Young"] and found["Young"] >= 0.95
    assert log[-1]["loss"] < 0.5 * log[0]["loss"] and len(log) == SETTINGS["steps"]
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    positions = plain.positions("test")
    truth = plain.labels(positions, ["Young"]).bool()
    right = (model.predict(plain.pixels(positions)) == truth).double().mean().item()
    assert found["Young"] == pytest.approx(right)


def test_accuracy_counts_every_face_once(plain, trained):
    positions = plain.positions("train").repeat(4)  # 256 faces: two batches of 128
    once = accuracy(trained[0], plain, plain.positions("train"))
    assert accuracy(trained[0], plain, positions) == pytest.approx(once)


def test_interrupted_training_ends_like_uninterrupted(plain, tmp_path, interrupted):
    settings = SETTINGS | {"steps": 6}
    whole, log, found = train_classifier(plain, ["Young", "Male"], settings, NAMES)

    def train():
        return train_classifier(plain, ["Young", "Male"], settings, NAMES, state_path=tmp_path / "state.pt")

    model, resumed_log, again = interrupted(module, train, stops=(2, 4))
    assert resumed_log == log and again == found
    first, second = model.state_dict(), whole.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_round_trip(trained, plain, tmp_path):
    path = tmp_path / "weights.safetensors"
    trained[0].save(path)
    loaded = AttributeClassifier.load(path)
    assert loaded.attributes == ("Young",) and loaded.channels == 4
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    x = plain.pixels(range(5))
    assert torch.equal(loaded(x), trained[0](x))
    assert loaded.features(x).shape == (5, 32) and loaded(x).shape == (5, 1)
    assert torch.equal(loaded.predict(x), loaded(x) > 0)


def test_features_are_those_of_the_last_layer(trained, plain):
    model, x = trained[0], plain.pixels(range(3))
    assert torch.allclose(model.features(x) @ model.head.weight.T + model.head.bias, model(x), atol=1e-6)


def test_columns_follow_the_order_asked_for():
    model = AttributeClassifier(["Young", "Male", "Bald"], channels=4)
    assert model.columns_of(["Bald", "Young"]) == [2, 0]
    with pytest.raises(HoldfastError, match="cannot judge every edit") as caught:
        model.columns_of(["Male", "Bangs"])
    assert caught.value.found == "nothing learnt of Bangs" and "models/classifier" in caught.value.repair


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "empty", "no metadata", "odd metadata", "other channels", "pickle"]
)
def test_a_damaged_file_is_refused_and_no_code_is_run(trained, tmp_path, damage):
    path = tmp_path / "weights.safetensors"
    trained[0].save(path)
    tensors = load_file(path)
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no metadata":
        save_file(tensors, path)
    elif damage == "odd metadata":
        save_file(tensors, path, {"attributes": "Young", "channels": "four"})
    elif damage == "other channels":
        save_file(tensors, path, {"attributes": "Young", "channels": "8"})
    elif damage == "pickle":
        path.write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
    with pytest.raises(HoldfastError, match="cannot load the attribute classifier") as caught:
        AttributeClassifier.load(path)
    assert str(path) in str(caught.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("train, unseen", [(0, 4), (4, 0)])
def test_a_set_without_faces_to_train_or_to_test_on(faces_of, train, unseen):
    with pytest.raises(HoldfastError, match="classifier cannot be trained") as caught:
        train_classifier(faces_of(train, unseen), ["Young"], SETTINGS, NAMES)
    assert caught.value.found == f"{train} training faces, {unseen} unseen ones"


def test_unseen_faces_are_the_test_split_or_else_the_validation_split(plain):
    assert (unseen_positions(plain) == plain.positions("test")).all()
    index = plain.index.assign(split=plain.index["split"].replace("test", "val"))
    without_test = type(plain)(plain.folder, plain.images, index)
    assert (unseen_positions(without_test) == without_test.positions("val")).all()


def test_augmentation_moves_and_mirrors_but_does_not_paint():
    # Columns and rows are numbered, so that a shift can be told.
    x = torch.arange(32.0).expand(64, 3, 32, 32).clone()
    moved = _augment(x, generator("augment"))
    assert moved.shape == x.shape and torch.equal(moved, _augment(x, generator("augment")))
    middle = moved[:, 0, 16, 16]
    mirrored = moved[:, 0, 16, 17] < middle
    assert 16 < mirrored.sum() < 48
    shift = torch.where(mirrored, 15 - middle, middle - 16)
    assert shift.abs().max() == 2 and len(shift.unique()) == 5
    assert set(moved.unique().tolist()) <= set(x.unique().tolist())


def test_images_too_small_to_shift_are_only_mirrored():
    x = torch.rand(8, 3, 8, 8)
    moved = _augment(x, generator("augment"))
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in zip(moved, x, strict=True))


def test_on_a_gpu_it_learns_what_it_does_on_the_cpu(plain, gpu):
    settings = SETTINGS | {"steps": 4}
    here, log, found = train_classifier(plain, ["Young"], settings, NAMES)
    there, log_there, found_there = train_classifier(plain, ["Young"], settings, NAMES, device="cuda")
    assert log == log_there and found == found_there
    kept = there.state_dict()
    assert all(torch.equal(value, kept[key].cpu()) for key, value in here.state_dict().items())
