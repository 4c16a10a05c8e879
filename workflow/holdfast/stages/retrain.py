"""Stage retrain: the adaptive attacker retrains his deepfake models on what he harvested."""

import sys

from holdfast import sources
from holdfast.data.faceset import read_report
from holdfast.deepfakes import model as deepfake_model
from holdfast.deepfakes.training import obstacle, precision_of, train_deepfake
from holdfast.files import write_text
from holdfast.papers.figures import picture_of_text
from holdfast.records import write_records
from holdfast.stages.common import Work, fingerprint, open_faces, own_settings, state_file
from holdfast.stages.health import health_records
from holdfast.stages.pretrain import sheet_of, write_log

NOT_RETRAINED = "not retrained"  # what the remark of a model begins with that had nothing to train on


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
        precision_of(settings, work.device),
        names,
        fingerprint(harvested.folder),
        work.sha256(pretrained),
        code=sources.of_deepfake(name),
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
