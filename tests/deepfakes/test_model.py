"""Checkpoints of deepfake models: what is saved is what is loaded, and nothing else is."""

import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes.model import build, freeze, load, save
from holdfast.errors import HoldfastError


@pytest.fixture
def checkpoint(tmp_path, tiny):
    path = tmp_path / "models" / "weights.safetensors"
    save(tiny(), path)
    return path


def test_round_trip(tiny, tiny_settings, checkpoint, state, same):
    model, other = tiny(), build(DEEPFAKES, "stargan", tiny_settings, 16, ("another",))
    assert not same(state(model), state(other))
    assert load(other, checkpoint) is other
    assert same(state(model), state(other))
    x, labels = torch.rand(2, 3, 16, 16), torch.zeros(2, 2)
    assert torch.equal(model.edits(x, labels), other.edits(x, labels))
    keys = load_file(checkpoint).keys()
    assert {key.partition(".")[0] for key in keys} == {"generator", "discriminator"}


def test_a_model_in_training_layout_is_saved_alike(tiny, checkpoint, tmp_path):
    model = tiny()
    for network in model.networks.values():
        network.to(memory_format=torch.channels_last)
    save(model, tmp_path / "other.safetensors")
    assert (tmp_path / "other.safetensors").read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize(
    "change", [{"generator_channels": 8}, {"discriminator_layers": 2}, {"discriminator_channels": 2}]
)
def test_another_architecture_is_refused_and_the_model_left_as_it_was(tiny, checkpoint, change, state, same):
    model = tiny(**change)
    before = state(model)
    with pytest.raises(HoldfastError, match="is of another architecture") as caught:
        load(model, checkpoint)
    assert ".weight" in caught.value.found and str(checkpoint) in str(caught.value)
    assert same(before, state(model))


def test_a_missing_and_a_surplus_entry_are_refused(tiny, checkpoint):
    tensors = load_file(checkpoint)
    about = {"attributes": "Male,Young"}
    whole = dict(tensors)
    del tensors["generator.main.0.weight"]
    save_file(tensors, checkpoint, about)
    with pytest.raises(HoldfastError, match=r"1 entries differ") as caught:
        load(tiny(), checkpoint)
    assert caught.value.found == "generator.main.0.weight: missing"
    save_file({**whole, "encoder.x": torch.zeros(1)}, checkpoint, about)
    with pytest.raises(HoldfastError, match="another architecture") as caught:
        load(tiny(), checkpoint)
    assert "encoder.x" in caught.value.found


@pytest.mark.parametrize("attributes", [["Young", "Male"], ["Male", "Bald"], ["Male"]])
def test_other_attributes_are_refused(tiny, checkpoint, attributes):
    with pytest.raises(HoldfastError, match="knows other attributes") as caught:
        load(tiny(attributes=attributes), checkpoint)
    assert caught.value.found == "Male,Young" and caught.value.expected == ",".join(attributes)


def test_a_file_without_metadata_is_refused(tiny, checkpoint):
    save_file(load_file(checkpoint), checkpoint)
    with pytest.raises(HoldfastError, match="other attributes") as caught:
        load(tiny(), checkpoint)
    assert caught.value.found == "none"


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "truncated", "header only", "folder", "pickle", "torch"]
)
def test_a_file_that_is_no_checkpoint_is_refused_and_no_code_is_run(
    tiny, checkpoint, tmp_path, damage, state, same
):
    content = checkpoint.read_bytes()
    checkpoint.unlink()
    if damage == "folder":
        checkpoint.mkdir()
    elif damage == "pickle":
        checkpoint.write_bytes(pickle.dumps(Harmful(tmp_path / "ran")))
    elif damage == "torch":
        torch.save({"generator": Harmful(tmp_path / "ran")}, checkpoint)
    elif damage != "missing":
        length = {"empty": 0, "header only": 100, "truncated": len(content) - 1}[damage]
        checkpoint.write_bytes(content[:length])
    model = tiny()
    before = state(model)
    with pytest.raises(HoldfastError, match="cannot read the checkpoint") as caught:
        load(model, checkpoint)
    assert str(checkpoint) in str(caught.value) and caught.value.repair
    assert not (tmp_path / "ran").exists() and same(before, state(model))


def test_initial_weights_are_seeded_by_names_and_leave_the_global_generator_alone(tiny_settings, state, same):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (
        state(build(DEEPFAKES, "stargan", tiny_settings, 16, names))
        for names in (("a", 0), ("a", 0), ("a", 1))
    )
    assert same(first, again) and not same(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_model_is_named(tiny_settings):
    with pytest.raises(HoldfastError, match="no deepfake model 'stargun'") as caught:
        build(DEEPFAKES, "stargun", tiny_settings, 16)
    assert "stargan" in caught.value.expected


def test_a_frozen_model_gives_gradients_to_the_image_only(tiny):
    model = freeze(tiny())
    assert not any(network.training for network in model.networks.values())
    x = torch.rand(1, 3, 16, 16).requires_grad_(True)
    model.edit(x, torch.zeros(1, 2)).sum().backward()
    assert x.grad is not None
    assert all(
        p.grad is None and not p.requires_grad for n in model.networks.values() for p in n.parameters()
    )
