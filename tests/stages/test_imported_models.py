"""A public checkpoint through the stages: what it was and what it lacked is in every record that it gives."""

import hashlib

import pytest
import torch
from test_per_image import NAMES, Chain

from holdfast import config as configs
from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes.classifier import AttributeClassifier
from holdfast.deepfakes.model import build, history_of
from holdfast.errors import HoldfastError
from holdfast.records import read_records
from holdfast.stages.harvest import find_faces, harvest
from holdfast.stages.measure import measure_outputs
from holdfast.stages.pretrain import import_deepfake, measure_health
from holdfast.stages.retrain import measure_retrained, retrain
from holdfast.yaml_files import merge

ANEW = "the discriminator started anew"


@pytest.fixture
def chain(tmp_path):
    """A run with StarGAN's generator as its public code leaves it, without the discriminator."""
    with torch.random.fork_rng():
        chain = Chain(tmp_path)
        AttributeClassifier(NAMES, 2).save(chain.folder / "classifier.safetensors")
    chain.given = chain.folder / "secret folder" / "200000-G.ckpt"
    chain.given.parent.mkdir()
    entry = chain.config["deepfakes"]["stargan"]
    torch.save(build(DEEPFAKES, "stargan", entry, 32, ("public",)).generator.state_dict(), chain.given)
    chain.sha256 = hashlib.sha256(chain.given.read_bytes()).hexdigest()
    chain.weights = chain.folder / "models/stargan/weights.safetensors"

    def bring(weights):
        change = {
            "deepfakes": {"stargan": {"weights": weights, "batch": 2}},
            "attacker": {"iterations": 2},
            "fid_features": "attributes",
            "metrics": ["l2_mask", "psnr"],
        }
        chain.config = configs.complete(merge(chain.config, change))
        samples = chain.weights.with_name("samples.png")
        import_deepfake(chain.config, "stargan", chain.faces, chain.weights, samples)
        assert samples.exists()
        return history_of(chain.weights)

    chain.bring = bring
    return chain


def told(chain, records):
    """The one history in the extra of all records."""
    assert "secret" not in records.read_text()
    (found,) = {
        (str(extra.get("imported")), str(extra.get("fresh")), extra.get("remark"))
        for extra in (record["extra"] for record in read_records(records))
    }
    assert found[:2] == (str([{"file": "200000-G.ckpt", "sha256": chain.sha256}]), "['discriminator']")
    return found[2]


def test_from_the_checkpoint_to_the_records_of_the_retrained_model(chain):
    imported = [{"file": "200000-G.ckpt", "sha256": chain.sha256}]
    assert chain.bring(str(chain.given)) == {"fresh": ["discriminator"], "imported": imported}
    assert b"secret" not in chain.weights.read_bytes()
    records, judge = chain.folder / "records.jsonl", chain.folder / "classifier.safetensors"
    measure_health(chain.config, "stargan", chain.weights, chain.faces, judge, records)
    assert told(chain, records) is None

    chain.perturb("facepoison")
    for split in ("train", "test"):
        chain.protect("facepoison", split, chain.folder / split)
    index, boxes = chain.folder / "train/index.csv", chain.folder / "boxes.csv"
    find_faces(chain.config, index, "retinaface", chain.detectors["retinaface"], boxes)
    harvest(chain.config, "facepoison", index, chain.faces, [boxes], chain.folder / "harvest")
    out = chain.folder / "retrained"
    files = [out / name for name in ("weights.safetensors", "log.csv", "curves.png", "samples.png")]
    given = (chain.weights, chain.folder / "harvest/index.csv", chain.faces)
    retrain(chain.config, "stargan", "facepoison", 0, *given, *files)
    measure_retrained(chain.config, "stargan", "facepoison", 0, files[0], chain.faces, judge, records)
    assert ANEW in told(chain, records)
    for state, weights in (("original", chain.weights), ("retrained", files[0])):
        about = ("synthetic", "facepoison", 0, state, chain.folder / "test/index.csv", chain.faces)
        measure_outputs(chain.config, *about, judge, {"stargan": weights}, records)
        assert (ANEW in (told(chain, records) or "")) == (state == "retrained")


def test_a_checkpoint_from_the_web(chain):
    url = chain.given.as_uri()
    with pytest.raises(HoldfastError, match="200000-G.ckpt"):
        chain.bring({"url": url, "sha256": "0" * 64})
    assert not chain.weights.exists()
    history = chain.bring({"url": url, "sha256": chain.sha256.upper()})
    assert history["imported"] == [{"file": "200000-G.ckpt", "sha256": chain.sha256}]
    (fetched,) = (chain.weights.parent / "download").iterdir()
    assert fetched.name == f"{chain.sha256[:16]}_200000-G.ckpt"
    assert fetched.read_bytes() == chain.given.read_bytes()
