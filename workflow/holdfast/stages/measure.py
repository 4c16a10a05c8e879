"""Stage measure: what protection does to edits, to detectors and to the photograph, from stored files."""

import torch

from holdfast.deepfakes.model import history_of
from holdfast.metrics import METRICS
from holdfast.metrics.fid import FeatureStatistics, in_features_of
from holdfast.metrics.metric import Stream
from holdfast.progress import Progress
from holdfast.records import record_of, write_records
from holdfast.stages.common import Work, batches, detections_of, labels_of, open_faces
from holdfast.stages.health import feature_network
from holdfast.stages.protect import ProtectedSet


def wanted(config, inputs):
    """The metrics of the config that take `inputs`, in the config's order; FID is measured apart."""
    chosen = [METRICS[name] for name in config["metrics"]]
    return [
        metric for metric in chosen if metric.inputs == inputs and metric.name not in ("fid", "fid_clean")
    ]


@torch.no_grad()
def measure_outputs(
    config, dataset, defence, seed, state, protected_index, index_csv, classifier, models, records
):
    """Tables I, III, IV: edits of clean against edits of protected faces, for every model and every target.

    Args:
        state: "original" or "retrained": which weights `models` ({name: path}) are.
    """
    work = Work(config, [protected_index, index_csv, classifier, *models.values()])
    protected, faces = ProtectedSet(protected_index), open_faces(index_csv)
    positions = protected.source_positions
    judge = work.classifier(classifier)
    network = feature_network(config, judge, work.device)
    # l2_mask and the like take (x, G(x), G(x')); measures of likeness take the pair (G(x), G(x')).
    of_edits = [metric for metric in wanted(config, "outputs")]
    of_pairs = [metric for metric in wanted(config, "images")]
    written = []
    for name, path in models.items():
        model = work.deepfake(name, path)
        labels, origin = labels_of(faces, positions, model, judge)
        streams = {metric.name: Stream(metric) for metric in [*of_edits, *of_pairs]}
        clean_features, protected_features = FeatureStatistics(), FeatureStatistics()
        with Progress(len(protected), f"{model.title} on {dataset} protected by {defence}") as bar:
            for part in batches(len(protected), config["measuring"]["batch"]):
                x = faces.pixels(positions[part]).to(work.device)
                x_protected = protected.pixels(part).to(work.device)
                for target in model.targets(labels[part].to(work.device)):
                    y = model.edit(x, target).clamp(-1, 1)
                    y_protected = model.edit(x_protected, target).clamp(-1, 1)
                    for metric in of_edits:
                        streams[metric.name].update(x, y, y_protected)
                    for metric in of_pairs:
                        streams[metric.name].update(y, y_protected)
                    clean_features.update(network.features(y))
                    protected_features.update(network.features(y_protected))
                bar.advance(by=part.stop - part.start)
        subject = {
            "kind": "outputs",
            "dataset": dataset,
            "model": name,
            "defence": defence,
            "seed": seed,
            "state": state,
        }
        if state == "retrained":
            subject["detector"] = config["attacker"]["detector"]
        answers = [(stream.metric, stream.result()) for stream in streams.values()]
        if "fid" in config["metrics"]:
            fid = in_features_of(METRICS["fid"], network)
            answers.append((fid, fid.compute(clean_features, protected_features)))
        provenance = work.provenance(perturbation_seed=seed)
        # Table I's outputs: every target of every image; n counts the edits, not the faces.
        told = {"targets": "all", "labels": origin, "faces": len(protected), **history_of(path)}
        for metric, answer in answers:
            answer["extra"] = {**answer.get("extra", {}), **told}
            written.append(record_of(metric, answer, subject=subject, provenance=provenance, pair="outputs"))
    write_records(records, written)


def measure_images(config, dataset, defence, seed, protected_index, index_csv, records):
    """Table VI: the protected photograph against the clean one."""
    work = Work(config, [protected_index, index_csv], device="cpu")
    protected, faces = ProtectedSet(protected_index), open_faces(index_csv)
    streams = [Stream(metric) for metric in wanted(config, "images")]
    for part in batches(len(protected), config["measuring"]["batch"]):
        x, x_protected = faces.pixels(protected.source_positions[part]), protected.pixels(part)
        for stream in streams:
            stream.update(x, x_protected)
    subject = {"kind": "images", "dataset": dataset, "defence": defence, "seed": seed}
    provenance = work.provenance(perturbation_seed=seed)
    write_records(
        records,
        [
            record_of(s.metric, s.result(), subject=subject, provenance=provenance, pair="protected")
            for s in streams
        ],
    )


def measure_detection(config, dataset, defence, seed, protected_index, index_csv, detectors, records):
    """Table II: every detector on clean and on protected faces, against itself and against the truth."""
    work = Work(config, [protected_index, index_csv, *detectors.values()])
    protected, faces = ProtectedSet(protected_index), open_faces(index_csv)
    positions = protected.source_positions
    truth = faces.boxes(positions)
    parts = batches(len(protected), config["measuring"]["batch"])
    written = []
    for name, path in detectors.items():
        detector = work.detector(name, path)
        clean = detections_of(detector, (faces.pixels(positions[part]) for part in parts), work.device)
        after = detections_of(detector, (protected.pixels(part) for part in parts), work.device)
        subject = {
            "kind": "detection",
            "dataset": dataset,
            "detector": name,
            "defence": defence,
            "seed": seed,
        }
        provenance = work.provenance(perturbation_seed=seed)
        written += [
            record_of(metric, metric.compute(clean, after, truth), subject=subject, provenance=provenance)
            for metric in wanted(config, "detections")
        ]
    write_records(records, written)
