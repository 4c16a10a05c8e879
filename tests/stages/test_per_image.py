"""Defences per image through the stages: learnt, protected, killed on the way, and harvested."""

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from holdfast import config as configs
from holdfast import sources
from holdfast.data.faceset import write_faceset
from holdfast.data.pixels import stored
from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes.model import build, save
from holdfast.defences import DEFENCES
from holdfast.detectors import DETECTORS
from holdfast.files import read_json
from holdfast.records import read_records
from holdfast.seeds import numpy_generator
from holdfast.stages.common import open_faces
from holdfast.stages.harvest import find_faces, harvest, measure_harvest
from holdfast.stages.perturb import perturb
from holdfast.stages.protect import ProtectedSet, protect
from holdfast.yaml_files import merge

NAMES = ["Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"]
PER_IMAGE = [name for name, kind in DEFENCES.items() if not kind.universal]
STARGAN = {"generator_channels": 4, "discriminator_channels": 4, "discriminator_layers": 3}
TRAIN, VAL, TEST = 17, 4, 5
CHUNKS = [8, 8, 8]  # of the training faces: Surroundings.batch images each, the last filled up


class Chain:
    """A run's files in a folder of its own; `act` calls a stage with them."""

    def __init__(self, folder):
        self.folder = folder
        self.config = configs.complete(
            {
                "training_set": "synthetic",
                "image_size": 32,
                "device": "cpu",
                "results": str(folder / "results"),
                "datasets": {"synthetic": {}},
                "deepfakes": {"stargan": STARGAN},
                "detectors": {"retinaface": {"width": 1 / 8}},
                "defences": {
                    "facepoison": {"iterations": 2},
                    "ssod": {"iterations": 2, "target_above": 0.0},
                    "tsdf_hidden": {"iterations": 1, "poison_iterations": 2, "more_poison_iterations": 1},
                },
                "attacker": {"threshold": 0.0, "no_detection": "drop"},
                "measuring": {"batch": 3},
            }
        )
        random = numpy_generator("per image")
        splits = ["train"] * TRAIN + ["val"] * VAL + ["test"] * TEST
        rows = (
            (random.integers(0, 256, (32, 32, 3), "uint8"), f"{i}.png", split, (8, 8, 24, 24), [i % 2] * 5)
            for i, split in enumerate(splits)
        )
        write_faceset(folder / "faces", 32, rows, NAMES, {"dataset": "synthetic"})
        self.faces = folder / "faces/index.csv"
        stargan = build(
            DEEPFAKES, "stargan", self.config["deepfakes"]["stargan"], 32, ("per image", "stargan")
        )
        save(stargan, folder / "stargan.safetensors")
        torch.manual_seed(0)
        detector = DETECTORS["retinaface"]({"width": 1 / 8})
        with torch.no_grad():
            for head in detector.network.ClassHead:
                head.conv1x1.weight.mul_(100)
                head.conv1x1.bias.copy_(torch.tensor([0.0, 1.0]).repeat(len(head.conv1x1.bias) // 2))
        detector.save(folder / "retinaface.safetensors")
        self.models = {"stargan": folder / "stargan.safetensors"}
        self.detectors = {"retinaface": folder / "retinaface.safetensors"}

    def perturb(self, name, seed=0):
        files = [self.folder / f"{name}.{ending}" for ending in ("safetensors", "json")]
        perturb(self.config, name, seed, self.faces, self.models, self.detectors, *files)
        return files

    def protect(self, name, split, folder, seed=0):
        files = [self.folder / f"{name}.{ending}" for ending in ("safetensors", "json")]
        given = (self.faces, self.faces, *files, self.models, self.detectors)
        protect(self.config, name, seed, split, *given, folder)
        return ProtectedSet(folder / "index.csv")


@pytest.fixture
def chain(tmp_path):
    with torch.random.fork_rng():
        return Chain(tmp_path)


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("module", ["defences/tsdf_hidden", "deepfakes/stargan", "detectors/retinaface"])
def test_a_perturbation_begins_anew_where_what_it_attacks_has_other_code(chain, monkeypatch, module):
    """The weights are the same, what is done with them is not."""
    states = []
    for version in (1, 1, 2):
        code = {f"{module}.py": version}
        monkeypatch.setattr(
            sources, "hash_of", lambda modules, code=code: [code.get(name) for name in modules]
        )
        chain.perturb("tsdf_hidden")
        states.append(sorted(chain.folder.rglob("state.pt")))
    assert states[0] and states[0] == states[1] and len(states[2]) == 2 * len(states[0])


@pytest.mark.parametrize("name", PER_IMAGE)
def test_from_the_perturbation_to_the_harvest(chain, name):
    perturbation, about = chain.perturb(name)
    assert set(load_file(perturbation)) == ({"perturbation"} if DEFENCES[name].from_universal else set())
    told = read_json(about)
    assert told["universal"] is False and told["title"] == DEFENCES[name].title and "largest" not in told
    for split, count in (("train", TRAIN), ("test", TEST)):
        protected = chain.protect(name, split, chain.folder / split)
        faces = open_faces(chain.faces)
        clean = faces.pixels(faces.positions(split))
        x = protected.pixels(slice(0, len(protected)))
        moved = (x - clean).abs().amax(dim=(1, 2, 3))
        assert len(protected) == count and torch.equal(stored(x), x)
        assert moved.max() <= 0.05 + 1 / 255 + 1e-6 and moved.min() > 0
        differences = (x - clean).unique(dim=0)
        assert len(differences) == count  # each image has its own
        assert read_json(chain.folder / split / "perturbation.json") == told
    assert not list((chain.folder / "results").rglob("*.png"))  # nothing is left of what was kept
    boxes, weights = chain.folder / "boxes.csv", chain.detectors["retinaface"]
    records, index = chain.folder / "harvest.jsonl", chain.folder / "train/index.csv"
    find_faces(chain.config, index, "retinaface", weights, boxes)
    of_each = ({"retinaface": weights}, {"retinaface": boxes})
    measure_harvest(chain.config, name, 0, index, chain.faces, *of_each, records)
    (record,) = read_records([records])
    assert record["subject"]["defence"] == name and record["extra"]["n_harvested"] == TRAIN
    harvest(chain.config, name, index, chain.faces, [boxes], chain.folder / "harvest")
    assert len(pd.read_csv(chain.folder / "harvest/index.csv")) == TRAIN


class Killed(BaseException):
    """Nothing that code under test might catch."""


@pytest.mark.parametrize("name", PER_IMAGE)
def test_a_killed_protection_goes_on_and_ends_the_same(chain, name, monkeypatch):
    chain.perturb(name)
    chain.protect(name, "train", chain.folder / "whole")
    original, calls = DEFENCES[name].perturb, []

    def dying(stop):
        def perturb(defence, images):
            if len(calls) == stop:
                raise Killed
            calls.append(len(images))
            return original(defence, images)

        return perturb

    for stop in (1, 2):
        monkeypatch.setattr(DEFENCES[name], "perturb", dying(stop))
        with pytest.raises(Killed):
            chain.protect(name, "train", chain.folder / "killed")
        assert not (chain.folder / "killed").exists()
    monkeypatch.setattr(DEFENCES[name], "perturb", dying(None))
    chain.config["measuring"]["batch"] = 2  # what is made of an image has nothing to do with it
    chain.protect(name, "train", chain.folder / "killed")
    assert calls == CHUNKS  # none twice
    assert files_of(chain.folder / "killed") == files_of(chain.folder / "whole")


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.02},
        {"seed": 5},
        {"defences": {"facepoison": {"step_size": 0.001}}},
        {"deepfakes": {"stargan": {"lambda_rec": 5}}},  # for all that a file of weights tells
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_another_config_left_is_not_taken_up(chain, change, monkeypatch):
    chain.perturb("facepoison")
    original, calls = DEFENCES["facepoison"].perturb, []

    def dying(defence, images):
        if len(calls) == 2:
            raise Killed
        calls.append(len(images))
        return original(defence, images)

    monkeypatch.setattr(DEFENCES["facepoison"], "perturb", dying)
    with pytest.raises(Killed):
        chain.protect("facepoison", "train", chain.folder / "first")
    monkeypatch.setattr(DEFENCES["facepoison"], "perturb", original)
    kept = set((chain.folder / "results").rglob("*.png"))
    assert len(kept) == sum(CHUNKS[:2])
    chain.config = merge(chain.config, change)
    chain.perturb("facepoison")
    seen = []
    monkeypatch.setattr(
        DEFENCES["facepoison"], "perturb", lambda d, images: seen.append(len(images)) or original(d, images)
    )
    chain.protect("facepoison", "train", chain.folder / "second")
    assert seen == CHUNKS
    assert set((chain.folder / "results").rglob("*.png")) == kept


def test_a_universal_defence_keeps_nothing(chain, monkeypatch):
    chain.config["defences"] = {"facepoison_universal": {"iterations": 1, "batch": 4}}
    _, about = chain.perturb("facepoison_universal")
    assert 0 < read_json(about)["largest"] <= torch.tensor(0.05).item()
    protected = chain.protect("facepoison_universal", "test", chain.folder / "test")
    assert len(protected) == TEST and not list((chain.folder / "results").rglob("*.png"))
