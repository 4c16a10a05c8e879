"""A public checkpoint in the place of pretraining, as a user has it: a line of config."""

import pytest
import torch

from holdfast.config import read
from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes.model import build, history_of, load
from holdfast.files import sha256_of

WEIGHTS = "results/smoke/models/attgan/weights.safetensors"


@pytest.fixture
def imported(pipeline_copy):
    """(pipeline, public model, run): the file is AttGAN's generator alone, under G, as it is published."""
    pipeline = pipeline_copy("imported")
    config = read(pipeline.folder / "config.yaml", pipeline.folder / "workflow/presets/smoke.yaml")
    model = build(DEEPFAKES, "attgan", config["deepfakes"]["attgan"], config["image_size"], ("public",))
    path = pipeline.folder / "weights.199.pth"
    torch.save({"G": model.generator.state_dict()}, path)

    def run(sha256, attributes=model.attributes):
        given = {"path": path.name, "sha256": sha256, "attributes": list(attributes)}
        return pipeline.run("--config", f"deepfakes={{attgan: {{weights: {given}}}}}", "--", WEIGHTS)

    return pipeline, model, path, run


def test_a_public_checkpoint_takes_the_place_of_pretraining(imported):
    pipeline, model, path, run = imported
    finished = run(sha256_of(path))
    assert finished.returncode == 0, finished.stderr[-3000:]
    written = pipeline.folder / WEIGHTS
    own = load(build(DEEPFAKES, "attgan", model.settings, model.image_size), written)
    for key, value in model.generator.state_dict().items():
        assert torch.equal(own.generator.state_dict()[key], value)
    assert history_of(written) == {
        "fresh": ["discriminator"],
        "imported": [{"file": path.name, "sha256": sha256_of(path)}],
    }
    assert (written.parent / "samples.png").exists()
    assert not (pipeline.results / "logs/pretrain_deepfake").exists()


def test_another_file_than_the_config_means(imported):
    pipeline, _, _, run = imported
    finished = run("0" * 64)
    told = finished.stdout + finished.stderr
    assert finished.returncode != 0 and "is not the one that the config means" in told, told[-3000:]
    assert "Traceback" not in told and not (pipeline.folder / WEIGHTS).exists()
