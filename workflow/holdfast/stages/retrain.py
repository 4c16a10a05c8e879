"""Stage retrain: the adaptive attacker collects the protected files, crops the faces and retrains."""

import sys
from dataclasses import replace

from holdfast.attacker.harvest import crop_faces, square_window, union
from holdfast.config import attackers_detectors
from holdfast.data.faceset import read_report, write_faceset
from holdfast.deepfakes import model as deepfake_model
from holdfast.deepfakes.training import obstacle, train_deepfake
from holdfast.files import write_text
from holdfast.metrics import METRICS
from holdfast.metrics.detection import definition_of_yield, harvest_yield
from holdfast.papers.figures import picture_of_text
from holdfast.progress import Progress
from holdfast.records import record_of, write_records
from holdfast.stages.common import (
    Work,
    batches,
    detections_of,
    fingerprint,
    open_faces,
    own_settings,
    state_file,
)
from holdfast.stages.health import health_records
from holdfast.stages.pretrain import sheet_of, write_log
from holdfast.stages.protect import ProtectedSet

NOT_RETRAINED = "not retrained"  # what the remark of a model begins with that had nothing to train on


def harvest(config, defence, seed, protected_index, index_csv, detector, weights, folder, records):
    """Run the attacker's detector over the protected files and pack its crops as a face set.

    `detector` is a name of the config or "union" (:func:`holdfast.attacker.harvest.union`); `weights` are
    the paths of its weights, of all detectors in the config's order for the union.

    The attacker knows the attributes of what he collects (as in the paper's setting: the protected set
    is CelebA). Records `harvest_yield`, and in its extra how many images gave a crop (`n_harvested`) and how
    many of these crops are the whole image (`n_whole`): where the margin reaches beyond its edges.
    """
    work = Work(config, [protected_index, *weights])
    protected, faces = ProtectedSet(protected_index), open_faces(index_csv)
    names = attackers_detectors(config, detector)
    networks = [work.detector(name, path) for name, path in zip(names, weights, strict=True)]
    title = " and ".join(network.title for network in networks)
    settings = config["attacker"]
    truth = faces.boxes(protected.source_positions)
    labels = faces.labels(protected.source_positions, faces.attributes).numpy()
    detections = []
    n_whole = 0

    def rows():
        nonlocal n_whole
        with Progress(len(protected), f"harvesting with {title}") as bar:
            for part in batches(len(protected), config["measuring"]["batch"]):
                pixels = protected.bytes(part)
                x = protected.pixels(part)
                found = union(
                    [detections_of(network, [x], work.device, settings["threshold"]) for network in networks]
                )
                detections.extend(found)
                crops = crop_faces(
                    pixels,
                    found,
                    threshold=settings["threshold"],
                    margin=settings["margin"],
                    no_detection=settings["no_detection"],
                )
                for at, (face, box) in zip(range(part.start, part.stop), crops, strict=True):
                    bar.advance()
                    if face is not None:
                        size = len(face)
                        n_whole += box is None or square_window(box, settings["margin"], size)[2] == size
                        yield face, protected.index["file"].iloc[at], "train", None, labels[at]

    taken = write_faceset(
        folder,
        config["image_size"],
        rows(),
        faces.attributes,
        lambda: {
            "dataset": config["training_set"],
            "defence": defence,
            "detector": detector,
            "found": len(protected),
            "attacker": settings,
        },
    )
    metric = replace(METRICS["harvest_yield"], definition=definition_of_yield(settings["threshold"]))
    answer = harvest_yield(detections, truth, score=settings["threshold"])
    answer.setdefault("extra", {}).update(n_harvested=len(taken), n_whole=n_whole)
    subject = {
        "kind": "harvest",
        "dataset": config["training_set"],
        "detector": detector,
        "defence": defence,
        "seed": seed,
    }
    write_records(
        records,
        [record_of(metric, answer, subject=subject, provenance=work.provenance(perturbation_seed=seed))],
    )


def retrain(
    config, name, defence, seed, pretrained, harvest_index, index_csv, weights, log_csv, curves, samples
):
    """Fine-tune generator and discriminator from their weights on the harvest, with their own losses.

    Where the harvest is too little to train on, the weights stay as they were: a defence that leaves the
    attacker without faces has won, and its numbers are those of the model that he has. The weights carry a
    remark on what they were trained on, and which networks began without weights, which goes into every
    record and table cell that they give.

    The random numbers are the same for all defences: what differs between two retrained models, and between
    one and the control, is what was harvested.
    """
    work = Work(config)
    harvested = open_faces(harvest_index)
    attacker = config["attacker"]
    keys = ("iterations", "generator_rate", "discriminator_rate")
    settings = {**config["deepfakes"][name], **{key: attacker[key] for key in keys}}
    names = ("retrain", name, config["seed"], seed)
    model = work.deepfake(name, pretrained)
    state = state_file(
        config,
        f"retrain_{name}_{defence}",
        own_settings(settings),
        names,
        fingerprint(harvested.folder),
        work.sha256(pretrained),
    )
    history = deepfake_model.history_of(pretrained)
    collected = read_report(harvested.folder)["found"]
    left = f"{len(harvested)} crops of {collected} collected faces ({_conditions(attacker)})"
    missing = obstacle(model, harvested)
    if missing is None:
        log = train_deepfake(model, harvested, settings, names, state_path=state, device=work.device)
        write_log(log, log_csv, curves)
        remark = f"retrained for {attacker['iterations']} steps on {left}"
        if fresh := history.get("fresh"):
            remark += f", the {' and '.join(fresh)} started anew, since no checkpoint brings it"
    else:
        remark = f"{NOT_RETRAINED}, the weights are the pretrained ones: {left} leave {missing}"
        print(f"{model.title} is {remark}", file=sys.stderr)
        write_text(log_csv, "step\n")
        picture_of_text(curves, f"{model.title} is not retrained:\n{missing}")
    deepfake_model.save(model, weights, **(history | {"remark": remark}))
    sheet_of(deepfake_model.freeze(model, work.device), open_faces(index_csv), samples, work.device)


def _conditions(attacker):
    without = {"drop": "dropped", "whole": "kept whole"}[attacker["no_detection"]]
    return f"boxes above {attacker['threshold']}, margin {attacker['margin']}, images without one {without}"


def measure_retrained(config, name, defence, seed, weights, index_csv, classifier, records):
    """Records of the retrained model on clean faces (Table V).

    Their extra has the weights' history: `imported`, `fresh` (networks that no checkpoint had brought), and
    the `remark` on what the model was retrained on.
    """
    work = Work(config, [weights, index_csv, classifier])
    subject = {
        "dataset": config["training_set"],
        "model": name,
        "state": "retrained",
        "defence": defence,
        "seed": seed,
        "detector": config["attacker"]["detector"],
    }
    measured = health_records(
        work,
        work.deepfake(name, weights),
        open_faces(index_csv),
        work.classifier(classifier),
        subject,
        deepfake_model.history_of(weights),
        {"perturbation_seed": seed},
    )
    write_records(records, measured)
