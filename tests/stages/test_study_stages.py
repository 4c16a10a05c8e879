"""A study through the stages: its variants learnt, protected and measured, and its table."""

import csv

import pytest
import torch
from safetensors.torch import load_file
from test_per_image import NAMES, Chain

from holdfast import config as configs
from holdfast.deepfakes.classifier import AttributeClassifier
from holdfast.errors import HoldfastError
from holdfast.files import read_json, sha256_of
from holdfast.papers.reported import REPORTED
from holdfast.records import read_records
from holdfast.stages.measure import measure_detection, measure_images, measure_outputs
from holdfast.stages.perturb import first_stage, perturb
from holdfast.stages.publish import tables
from holdfast.yaml_files import merge

TSDF = {
    "iterations": 2,
    "poison_iterations": 2,
    "batch": 2,
    "fused_size": 8,
    "adaptor_channels": 4,
    "feature_size": 8,
    "poison_step_size": 0.01,
    "lambda_enh": 1.0,  # at the paper's 0.001, and so few steps, a distance may not move a single bit
}
STUDIES = {
    "tau": {
        "defence": "tsdf",
        "table": "VII",
        "vary": {"tau": [0, 0.04]},
        "labels": {"tau=0": "TSDF tau=0.00"},
    },
    "distances": {
        "defence": "tsdf",
        "settings": {"tau": 0},
        "vary": {"feature_distance": ["none", "kl_divergence", "wasserstein", "enhancement"]},
    },
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    with torch.random.fork_rng():
        chain = Chain(tmp_path_factory.mktemp("studies"))
        AttributeClassifier(NAMES, 2).save(chain.folder / "classifier.safetensors")
    chain.config = configs.complete(
        merge(
            {key: value for key, value in chain.config.items() if key != "defences"},
            {
                "defences": {"none": {}, "tsdf": TSDF},
                "fid_features": "attributes",
                "metrics": ["l2_mask", "psnr", "f1_released", "harvest_yield", "false_positives"],
                "studies": STUDIES,
            },
        )
    )
    for name in configs.studied(chain.config, "tau"):
        chain.perturb(name)
    return chain


def measured(chain, name):
    """Paths of the three records files of a defence, as the rules write them."""
    paths = [chain.folder / f"{kind}.{name}.jsonl" for kind in ("outputs", "images", "detection")]
    chain.protect(name, "test", chain.folder / f"protected-{name}")
    given = (name, 0, chain.folder / f"protected-{name}" / "index.csv", chain.faces)
    about = ("synthetic", *given)
    measure_outputs(
        chain.config,
        *about[:3],
        "original",
        *about[3:],
        chain.folder / "classifier.safetensors",
        chain.models,
        paths[0],
    )
    measure_images(chain.config, *about, paths[1])
    measure_detection(chain.config, *about, chain.detectors, paths[2])
    return paths


def test_the_records_give_the_table_of_the_study(chain):
    names = list(configs.studied(chain.config, "tau"))
    paths = [path for name in names for path in measured(chain, name)]
    tables(chain.config, paths, REPORTED, chain.folder / "tables", ["table_VII"])
    assert [path.name for path in (chain.folder / "tables").iterdir()] == ["table_VII.csv"]
    with open(chain.folder / "tables/table_VII.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(cell.strip() for row in rows for cell in row.values())
    found = {
        (row["method"], row["subject"], row["metric"]): row for row in rows if row["dataset"] == "synthetic"
    }
    titles = {"tsdf-tau=0": "TSDF tau=0.00", "tsdf": "tau=0.04"}
    for record in read_records(paths):
        subject = record["subject"]
        assert subject["defence"] in titles
        who = {"outputs": "StarGAN", "detection": "RetinaFace", "images": "protected image"}[subject["kind"]]
        metric = record["metric"].replace("fid[attributes]", "fid")
        metric += "[protected]" if subject["kind"] == "images" else ""
        row = found[titles[subject["defence"]], who, metric]
        assert record["value"] is None or float(row["measured"]) == pytest.approx(record["value"], rel=1e-5)
    assert found["tau=0.04", "RetinaFace", "false_positives"]["measured"] != "not measured"


def test_a_variant_differs_from_its_base_by_its_settings_only(chain):
    """The same random start and order of faces: without poisoning, what is left is the base's own stage 1."""
    base, alone = (chain.folder / f"{name}.safetensors" for name in ("tsdf", "tsdf-tau=0"))
    whole, interruption = (load_file(path)["perturbation"] for path in (base, alone))
    faint = interruption.abs() < 0.04
    assert torch.equal(whole[~faint], interruption[~faint]) and (whole[faint] != interruption[faint]).any()
    told = [read_json(chain.folder / f"{name}.json") for name in ("tsdf", "tsdf-tau=0")]
    assert [about["settings"]["tau"] for about in told] == [0.04, 0]
    assert [about["defence"] for about in told] == ["tsdf", "tsdf-tau=0"]
    first, second = (about["settings"] for about in told)
    assert {key for key in first if first[key] != second[key]} == {"tau"}


def test_variants_share_their_first_stage_and_end_as_if_each_had_run_it(chain):
    assert list(configs.first_stages(chain.config)) == [
        "tsdf",
        "tsdf-feature_distance=none",
        "tsdf-feature_distance=kl_divergence",
        "tsdf-feature_distance=wasserstein",
    ]
    first = chain.folder / "first.safetensors"
    first_stage(chain.config, "tsdf", 0, chain.faces, chain.models, first)
    for name in ("tsdf", "tsdf-tau=0"):
        assert configs.first_stage_of(chain.config, name) == "tsdf"
        again = [chain.folder / f"again.{ending}" for ending in ("safetensors", "json")]
        perturb(chain.config, name, 0, chain.faces, chain.models, chain.detectors, *again, first)
        assert again[0].read_bytes() == (chain.folder / f"{name}.safetensors").read_bytes()
        assert sha256_of(first) in read_json(again[1])["provenance"]["inputs"].values()


def test_a_perturbation_learnt_on_other_faces_is_another_state(chain):
    """Else a run with fewer faces would take up what was learnt on more, and say otherwise."""
    (chain.folder / "first.safetensors").unlink(missing_ok=True)
    given = ("tsdf", 0, chain.faces, chain.models, chain.folder / "first.safetensors")
    first_stage(chain.config, *given)
    whole = (chain.folder / "first.safetensors").read_bytes()
    fewer = merge(chain.config, {"datasets": {"synthetic": {"perturbation_images": 2}}})
    first_stage(fewer, *given)
    assert (chain.folder / "first.safetensors").read_bytes() != whole


def test_a_damaged_first_stage_is_refused(chain):
    first = chain.folder / "damaged.safetensors"
    first.write_bytes(b"no tensors")
    again = [chain.folder / f"damaged.{ending}" for ending in ("out", "json")]
    with pytest.raises(HoldfastError, match="cannot load the perturbation .*damaged"):
        perturb(chain.config, "tsdf", 0, chain.faces, chain.models, chain.detectors, *again, first)


def test_a_study_does_not_change_the_defence_that_it_varies(chain):
    """Bit for bit what a config without studies learns."""
    with_studies, before = chain.config, (chain.folder / "tsdf.safetensors").read_bytes()
    chain.config = configs.complete({**with_studies, "studies": {}})
    try:
        chain.perturb("tsdf")
        assert (chain.folder / "tsdf.safetensors").read_bytes() == before
    finally:
        chain.config = with_studies


def test_every_distance_gives_another_perturbation_within_the_budget(chain):
    names = list(configs.studied(chain.config, "distances"))
    found = []
    for name in names:
        perturbation, about = chain.perturb(name)
        found.append(load_file(perturbation)["perturbation"])
        assert 0 < found[-1].abs().max() <= torch.tensor(0.05)
    assert names[-1] == "tsdf-tau=0" and len(names) == 4
    assert len({perturbation.numpy().tobytes() for perturbation in found}) == 4
