"""How a deepfake model does on clean, unseen faces: before it is attacked and after retraining."""

import torch

from holdfast.deepfakes.classifier import unseen_positions
from holdfast.metrics import METRICS
from holdfast.metrics.fid import FeatureNetwork, FeatureStatistics, in_features_of, inception
from holdfast.metrics.metric import Stream, result
from holdfast.records import record_of
from holdfast.stages.common import batches


def health_bar(wanted):
    """What a model's entry `health` asks for, in words."""
    attributes, least = wanted["attributes"], wanted["least"]
    bar = f"ssim >= {wanted['ssim']}"
    if attributes and least != 0:
        some = "all" if least in (None, len(attributes)) else least
        bar += f"; edit_accuracy >= {wanted['edit_accuracy']} of {some} of {', '.join(attributes)}"
    return bar


def feature_network(config, classifier, device):
    """The feature network of FID that the config names."""
    if config["fid_features"] == "inception":
        return inception(config["inception_weights"], device)
    return FeatureNetwork("attributes", lambda images: classifier.features(images.to(device)))


@torch.no_grad()
def health_records(work, model, faces, classifier, subject, history, seeds=None):
    """Records of `model` on clean unseen faces: edit_accuracy, ssim, ssim_released, psnr, fid_clean.

    Args:
        work: the job's :class:`holdfast.stages.common.Work`.
        model: frozen.
        faces: a FaceSet with annotated attributes.
        classifier: the judge.
        subject: subject of the records; attribute is added.
        history: of the model's weights (deepfakes/model.py), for the extra of the records.
        seeds: further seeds for the provenance.
    """
    config = work.config
    positions = unseen_positions(faces)[: config["measuring"]["health_images"]]
    network = feature_network(config, classifier, work.device)
    streams = {name: Stream(METRICS[name]) for name in ("ssim", "ssim_released", "psnr")}
    of_inputs, of_edits = FeatureStatistics(), FeatureStatistics()
    answered = {name: [] for name in model.target_names}
    judged = classifier.columns_of(model.attributes)
    for part in batches(len(positions), config["measuring"]["batch"]):
        x = faces.pixels(positions[part]).to(work.device)
        labels = faces.labels(positions[part], model.attributes).to(work.device)
        of_inputs.update(network.features(x))
        for name, target in zip(model.target_names, model.targets(labels), strict=True):
            y = model.edit(x, target).clamp(-1, 1)
            of_edits.update(network.features(y))
            for stream in streams.values():
                stream.update(x, y)
            column = model.attributes.index(name)
            told = classifier.predict(y)[:, judged][:, column]
            answered[name].append(torch.stack([labels[:, column] > 0.5, target[:, column] > 0.5, told]).cpu())
    provenance = work.provenance(**(seeds or {}))
    subject = {"kind": "model", **subject}
    answers = [(METRICS[name], stream.result()) for name, stream in streams.items()]
    fid = in_features_of(METRICS["fid_clean"], network)
    answers.append((fid, fid.compute(of_inputs, of_edits)))
    records = [
        record_of(metric, answer, subject=subject, provenance=provenance, pair="model")
        for metric, answer in answers
    ]
    metric = METRICS["edit_accuracy"]
    accuracies = {name: metric.compute(*torch.cat(parts, dim=1)) for name, parts in answered.items()}
    known = [answer["value"] for answer in accuracies.values() if answer["value"] is not None]
    accuracies["mean"] = result(
        sum(known) / len(known) if known else None,
        sum(answer["n"] for answer in accuracies.values()),
        why="no edit changes any label",
    )
    for name, answer in accuracies.items():
        records.append(
            record_of(metric, answer, subject={**subject, "attribute": name}, provenance=provenance)
        )
    for record in records:
        record["extra"] |= history
    return records
