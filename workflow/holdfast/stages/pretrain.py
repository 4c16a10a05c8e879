"""Stage pretrain: the attribute classifier, the deepfake models, the detectors, and their health."""

import sys
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import torch

from holdfast import sources
from holdfast.config import all_attributes, scenes_source, sources_of
from holdfast.data.download import fetch
from holdfast.data.pixels import to_bytes, to_float
from holdfast.deepfakes import DEEPFAKES
from holdfast.deepfakes import model as deepfake_model
from holdfast.deepfakes.classifier import train_classifier as fit_classifier
from holdfast.deepfakes.importing import import_weights
from holdfast.deepfakes.training import precision_of, train_deepfake
from holdfast.detectors import DETECTORS
from holdfast.detectors.training import train_detector
from holdfast.errors import HoldfastError
from holdfast.files import sha256_of, write_text
from holdfast.jobs import device_of
from holdfast.metrics import METRICS
from holdfast.metrics.detection import ap, f1_truth
from holdfast.metrics.metric import Metric
from holdfast.papers.figures import loss_curves, sample_sheet
from holdfast.records import read_records, record_of, write_records
from holdfast.stages.common import (
    Work,
    batches,
    detections_of,
    fingerprint,
    open_faces,
    own_settings,
    state_file,
)
from holdfast.stages.data import Scenes
from holdfast.stages.health import health_bar, health_records

ACCURACY = Metric(
    "attribute_accuracy",
    "Fraction of unseen faces whose attribute the classifier tells as annotated.",
    "fraction",
    None,
    compute=None,
    inputs="model",
)


def write_log(log, csv_path, figure_path):
    """A training's log as CSV and as curves."""
    table = pd.DataFrame(log)
    write_text(csv_path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    loss_curves(figure_path, table)


def train_classifier(config, index_csv, weights, log_csv, curves, records):
    """Train the attribute classifier on the training set's clean faces."""
    work, faces, settings = Work(config, [index_csv]), open_faces(index_csv), config["classifier"]
    attributes = all_attributes(config)
    names = ("classifier", config["seed"])
    identity, code = (settings, attributes, names, fingerprint(faces.folder)), sources.of_classifier()
    state = state_file(config, "classifier", *identity, code=code)
    classifier, log, accuracy = fit_classifier(
        faces, attributes, settings, names, state_path=state, device=work.device
    )
    classifier.cpu().save(weights)
    write_log(log, log_csv, curves)
    unseen = len(faces.positions("test")) or len(faces.positions("val"))
    write_records(
        records,
        [
            record_of(
                ACCURACY,
                {"value": value, "n": unseen},
                subject={
                    "kind": "classifier",
                    "dataset": config["training_set"],
                    "model": "classifier",
                    "attribute": name,
                },
                provenance=work.provenance(),
            )
            for name, value in accuracy.items()
        ],
    )


def sheet_of(model, faces, path, device, count=8):
    """Sample sheet: unseen faces, one a row, with all edits."""
    positions = faces.positions("val", count)
    if not len(positions):
        positions = faces.positions("train", count)
    x = faces.pixels(positions).to(device)
    # As the model is used: batch normalisation neither takes nor leaves anything here.
    training = {name: network.training for name, network in model.networks.items()}
    for network in model.networks.values():
        network.eval()
    with torch.no_grad():
        edits = model.edits(x, faces.labels(positions, model.attributes).to(device))
    for name, network in model.networks.items():
        network.train(training[name])
    cells = torch.cat([x[:, None], edits], dim=1)
    grid = to_bytes(cells.flatten(0, 1)).reshape(*cells.shape[:2], x.shape[2], x.shape[3], 3)
    sample_sheet(path, grid, ["input", *model.target_names])


def pretrain_deepfake(config, name, index_csv, weights, log_csv, curves, samples):
    """Train a deepfake model on the training set; sample sheets appear in `samples`' folder on the way."""
    faces, settings, device = open_faces(index_csv), config["deepfakes"][name], device_of(config)
    trained = own_settings(settings)
    names = ("pretrain", name, config["seed"])
    model = deepfake_model.build(DEEPFAKES, name, settings, config["image_size"], names)
    model.prepare(faces)
    state = state_file(
        config,
        f"pretrain_{name}",
        trained,
        precision_of(settings, device),
        config["image_size"],
        names,
        fingerprint(faces.folder),
        code=sources.of_deepfake(name),
    )
    sheets = Path(samples).parent / "samples"

    def on_sample(done):
        sheet_of(model, faces, sheets / f"{round(100 * done):03d}_percent.png", device)

    log = train_deepfake(model, faces, settings, names, state_path=state, device=device, on_sample=on_sample)
    deepfake_model.save(model, weights)
    write_log(log, log_csv, curves)
    sheet_of(deepfake_model.freeze(model, device), faces, samples, device)


def import_deepfake(config, name, index_csv, weights, samples):
    """Take over the public checkpoint that the config names, in the place of pretraining.

    A discriminator that no file brings is initialised here, and trained when the attacker retrains.
    """
    faces, settings = open_faces(index_csv), config["deepfakes"][name]
    model = deepfake_model.build(
        DEEPFAKES, name, settings, config["image_size"], ("pretrain", name, config["seed"])
    )
    files = []
    for source in sources_of(settings["weights"]):
        path, url = source.get("path"), source.get("url")
        file = Path(path or urlsplit(url).path).name[-100:] or "weights"
        if path is None:
            # Hosts give many files one name; the checksum tells them apart.
            path = Path(weights).parent / "download" / f"{source['sha256'][:16].lower()}_{file}"
            fetch(url, path, sha256=source["sha256"])
        files.append({**source, "file": file, "path": Path(path).expanduser()})
    fresh = import_weights(name, model, files)
    model.prepare(faces)
    if fresh:
        told = f"{model.title}: no checkpoint brings the {', '.join(fresh)}; retraining starts it anew"
        print(told, file=sys.stderr)
    # Without their folders, which say nothing about the weights.
    imported = [{"file": file["file"], "sha256": sha256_of(file["path"])} for file in files]
    deepfake_model.save(model, weights, fresh=fresh, imported=imported)
    device = device_of(config)
    sheet_of(deepfake_model.freeze(model, device), faces, samples, device)


def measure_health(config, name, weights, index_csv, classifier, records):
    """Records of a pretrained model's health on unseen clean faces."""
    work = Work(config, [weights, index_csv, classifier])
    write_records(
        records,
        health_records(
            work,
            work.deepfake(name, weights),
            open_faces(index_csv),
            work.classifier(classifier),
            {"dataset": config["training_set"], "model": name, "state": "healthy"},
            deepfake_model.history_of(weights),
        ),
    )


def check_health(config, name, records, flag):
    """Stop where a model is below the preset's health.

    Raises:
        HoldfastError: with the figures, all of them.
    """
    entry = config["deepfakes"][name]
    wanted = entry["health"]
    values = {}
    for record in read_records(records):
        key = record["subject"].get("attribute", "")
        values[f"{record['metric']} {key}".strip()] = record["value"]

    def reaches(key, bar):
        return values.get(key) is not None and values[key] >= bar

    attributes, least = wanted["attributes"], wanted["least"]
    least = len(attributes) if least is None else least
    edited = sum(reaches(f"edit_accuracy {edit}", wanted["edit_accuracy"]) for edit in attributes)
    figures = ", ".join(
        f"{key} {'none' if value is None else format(value, '.3f')}" for key, value in values.items()
    )
    if edited < least or not reaches("ssim", wanted["ssim"]):
        if entry["weights"] == "train":
            repair = f"train it better (deepfakes.{name}: iterations, rates, widths)"
        else:
            repair = (
                f"check that the checkpoint was trained as this run uses it: the order of its attributes, "
                f"{config['image_size']} px, RGB in [-1, 1]; or lower deepfakes.{name}.health knowingly"
            )
        raise HoldfastError(
            f"the deepfake model {name} is not healthy; attacking it would prove nothing",
            found=figures,
            expected=health_bar(wanted),
            repair=f"{repair}; see {records}",
        )
    write_text(flag, figures + "\n")


def get_detector(config, name, scenes_folder, weights, records):
    """Import the detector's checkpoint, or train it on the scenes; then measure it on unseen ones."""
    entry, scenes = config["detectors"][name], Scenes(scenes_folder)
    detector = DETECTORS[name](own_settings(entry))
    training = entry["training"]
    given, initial = (
        Path(path).expanduser() if path else None for path in (entry["weights"], training["initialisation"])
    )
    work = Work(config, filter(None, [scenes.folder / "boxes.json", given or initial]))
    detector.to(work.device)
    if given:
        detector.load(given)
    else:
        names = ("detector", name, config["seed"])
        # Where the initial weights lie decides nothing; what they are does.
        schedule = {key: value for key, value in training.items() if key != "initialisation"}
        begun = [work.sha256(initial)] if initial else []
        seen = (
            {**config["scenes"], "source": scenes_source(config)},
            work.sha256(scenes.folder / "boxes.json"),
        )
        identity = (own_settings(entry), schedule, *seen, names, *begun)
        state = state_file(config, f"detector_{name}", *identity, code=sources.of_detector(name))
        train_detector(detector, *scenes.train(), training, names, state)
    detector.save(weights)
    images, truth = scenes.test()
    parts = batches(len(images), config["measuring"]["batch"])
    found = detections_of(detector, (to_float(images[part]) for part in parts), work.device)
    subject = {
        "kind": "detector",
        "dataset": scenes.title,
        "detector": name,
        "state": "imported" if given else "trained",
    }
    measured = [
        (METRICS["ap"], ap(found, truth)),
        (METRICS["f1_truth"], f1_truth(found, truth)),
    ]
    write_records(
        records,
        [
            record_of(metric, answer, subject=subject, provenance=work.provenance())
            for metric, answer in measured
        ],
    )
