"""Stage retrain: the adaptive attacker collects the protected files, crops the faces and retrains."""

from holdfast.attacker.harvest import crop_faces, union
from holdfast.config import attackers_detectors
from holdfast.data.faceset import write_faceset
from holdfast.deepfakes import model as deepfake_model
from holdfast.deepfakes.training import train_deepfake
from holdfast.metrics import METRICS
from holdfast.metrics.detection import harvest_yield
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


def harvest(config, defence, seed, protected_index, index_csv, detector, weights, folder, records):
    """Run the attacker's detector over the protected files and pack its crops as a face set.

    `detector` is a name of the config or "union" (:func:`holdfast.attacker.harvest.union`); `weights` are
    the paths of its weights, of all detectors in the config's order for the union.

    The attacker knows the attributes of what he collects (as in the paper's setting: the protected set
    is CelebA). Records `harvest_yield`, and in its extra how many images gave a crop.
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

    def rows():
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
                for at, (face, _) in zip(range(part.start, part.stop), crops, strict=True):
                    bar.advance()
                    if face is not None:
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
    metric = METRICS["harvest_yield"]
    answer = harvest_yield(detections, truth, score=settings["threshold"])
    answer.setdefault("extra", {})["n_harvested"] = len(taken)
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
    """Fine-tune generator and discriminator from their weights on the harvest, with their own losses."""
    work = Work(config)
    harvested = open_faces(harvest_index)
    attacker = config["attacker"]
    keys = ("iterations", "generator_rate", "discriminator_rate")
    settings = {**config["deepfakes"][name], **{key: attacker[key] for key in keys}}
    names = ("retrain", name, defence, config["seed"], seed)
    model = work.deepfake(name, pretrained)
    state = state_file(
        config,
        f"retrain_{name}_{defence}",
        own_settings(settings),
        names,
        fingerprint(harvested.folder),
        work.sha256(pretrained),
    )
    log = train_deepfake(model, harvested, settings, names, state_path=state, device=work.device)
    deepfake_model.save(model, weights, deepfake_model.fresh_networks(pretrained))
    write_log(log, log_csv, curves)
    sheet_of(deepfake_model.freeze(model, work.device), open_faces(index_csv), samples, work.device)


def measure_retrained(config, name, defence, seed, weights, index_csv, classifier, records):
    """Records of the retrained model on clean faces (Table V).

    `extra.fresh` of a record names the networks that no checkpoint had brought.
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
        {"perturbation_seed": seed},
    )
    fresh = deepfake_model.fresh_networks(weights)
    for record in measured if fresh else ():
        record["extra"] = {**record.get("extra", {}), "fresh": fresh}
    write_records(records, measured)
