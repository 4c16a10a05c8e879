"""The attacker's retraining, also on a harvest that leaves him nothing to train on."""

import csv
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from holdfast import config as configs
from holdfast.data.faceset import write_faceset
from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes.classifier import AttributeClassifier
from holdfast.deepfakes.model import build, history_of, save
from holdfast.records import read_records
from holdfast.seeds import numpy_generator
from holdfast.stages.retrain import measure_retrained, retrain

NAMES = ["Bangs", "Eyeglasses", "Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"]
STARGAN = {
    "precision": "auto",
    "generator_channels": 4,
    "discriminator_channels": 4,
    "discriminator_layers": 3,
    "batch": 2,
}
HISD = {
    "guidance": "latent",
    "channels": 4,
    "translator_channels": 4,
    "discriminator_channels": 4,
    "discriminator_layers": 3,
    "style": 4,
    "mapper_channels": 4,
    "batch": 2,
}


@pytest.fixture
def attack(tmp_path):
    """attack(model, faces, defence, history): retrained on so many faces of 5, all with glasses.

    Gives the steps in the log, whether the weights are the pretrained ones, the remark, and the weights.
    """
    config = configs.complete(
        {
            "training_set": "synthetic",
            "image_size": 32,
            "device": "cpu",
            "results": str(tmp_path / "results"),
            "datasets": {"synthetic": {}},
            "deepfakes": {"stargan": STARGAN, "hisd": HISD},
            "detectors": {"retinaface": {"width": 1 / 8}},
            "defences": {"random": {}, "none": {}},
            "attacker": {"iterations": 2, "threshold": 0.4},
            "fid_features": "attributes",
        }
    )

    def faces(folder, splits, names):
        random = numpy_generator("retraining", len(splits))
        rows = (
            (random.integers(0, 256, (32, 32, 3), "uint8"), f"{i}.png", split, None, labels)
            for i, (split, labels) in enumerate(zip(splits, names, strict=True))
        )
        write_faceset(tmp_path / folder, 32, rows, NAMES, {"dataset": "synthetic", "found": 5})
        return tmp_path / folder / "index.csv"

    clean = faces("clean", ["val", "test"] * 2, [[1] * 7, [0] * 7] * 2)
    torch.manual_seed(0)
    AttributeClassifier(NAMES, 4).save(tmp_path / "classifier.safetensors")

    def act(name, count, defence="random", **known):
        harvested = faces(f"{name}.{defence}.{count}", ["train"] * count, [[0, 1, 0, 0, 0, 0, 1]] * count)
        pretrained = tmp_path / f"{name}.safetensors"
        with torch.random.fork_rng():
            model = build(DEEPFAKES, name, config["deepfakes"][name], 32, ("retraining", name))
        save(model, pretrained, **known)
        out = tmp_path / f"{name}.{defence}.{count}.out"
        out.mkdir()
        weights = out / "weights.safetensors"
        files = (weights, out / "log.csv", out / "curves.png", out / "samples.png")
        retrain(config, name, defence, 0, pretrained, harvested, clean, *files)
        Image.open(out / "curves.png").verify()
        Image.open(out / "samples.png").verify()
        records = out / "records.jsonl"
        given = (weights, clean, tmp_path / "classifier.safetensors", records)
        measure_retrained(config, name, defence, 0, *given)
        with open(out / "log.csv") as file:
            steps = len(list(csv.DictReader(file)))
        same = all(
            torch.equal(value, load_file(weights)[key]) for key, value in load_file(pretrained).items()
        )
        history = history_of(weights)
        for record in read_records([records]):
            assert history.items() <= record["extra"].items()
        remark = history.pop("remark")
        assert history == history_of(pretrained) == known
        return steps, same, remark, load_file(weights)

    return act


def test_what_the_model_was_retrained_on_is_told(attack):
    steps, same, told, _ = attack("stargan", 3)
    assert (steps, same) == (2, False)
    assert told == (
        "retrained for 2 steps on 3 crops of 5 collected faces (boxes above 0.4, margin 0.3, images without "
        "one dropped)"
    )


def test_a_state_of_another_precision_is_not_taken_up(attack, tmp_path, monkeypatch):
    for able in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able})
        attack("stargan", 3)
        shutil.rmtree(tmp_path / "stargan.random.3.out")
    assert len(list(tmp_path.rglob("state.pt"))) == 2


def test_a_discriminator_that_starts_anew_is_told(attack):
    imported = [{"file": "200000-G.ckpt", "sha256": "0" * 64}]
    _, _, told, _ = attack("stargan", 3, fresh=["discriminator"], imported=imported)
    assert told.startswith("retrained for 2 steps on 3 crops of 5")
    assert told.endswith(", the discriminator started anew, since no checkpoint brings it")
    _, _, told, _ = attack("stargan", 0, fresh=["discriminator"], imported=imported)
    assert told.startswith("not retrained") and "anew" not in told


@pytest.mark.parametrize(
    "name, count, missing",
    [
        ("stargan", 0, "0 training faces"),
        ("stargan", 1, "1 training faces"),
        ("hisd", 3, "training faces of which no two differ in one of Bangs, Eyeglasses, HairColor"),
    ],
)
def test_without_enough_faces_the_weights_stay_as_they_were(attack, name, count, missing):
    steps, same, told, _ = attack(name, count)
    assert (steps, same) == (0, True)
    assert told.startswith(f"not retrained, the weights are the pretrained ones: {count} crops of 5")
    assert told.endswith(missing)


def test_equal_harvests_give_equal_models_whatever_the_defence(attack):
    """So that the control differs from the others in its faces alone."""
    one, other = attack("stargan", 3, "random")[-1], attack("stargan", 3, "none")[-1]
    assert all(torch.equal(value, other[key]) for key, value in one.items())
