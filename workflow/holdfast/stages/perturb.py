"""Stage perturb: each defence learns its perturbation on the training set's validation faces."""

import time

from holdfast import sources
from holdfast.config import defence_of, first_stages
from holdfast.data.pixels import stored
from holdfast.defences import DEFENCES
from holdfast.defences.base import Surroundings, read_perturbation
from holdfast.defences.stages import run_stages
from holdfast.errors import HoldfastError
from holdfast.files import write_json
from holdfast.stages.common import Work, fingerprint, open_faces, own_settings, state_file
from holdfast.tensors import write_tensors


def surroundings_of(work, label, method, settings, seed, index_csv, models, detectors, first=None):
    """What a defence may look at: frozen models and detectors, and the perturbation's faces.

    A variant (holdfast.studies) draws the random numbers of the defence that it varies: the same start and
    the same order of faces, so that only its settings make the difference.

    Args:
        work: the job's :class:`Work`.
        label: what its state file is called.
        method, settings: the registered name of the defence, and its own settings.
        index_csv: index of the training set; the faces are the first of its validation split, which
            neither the models' training nor any test sees.
        models, detectors: {name: path of weights}.
        first: path of the perturbation that the defence's first stage has found, or None.

    Raises:
        HoldfastError: there are no faces to learn on, or `first` cannot be read.
    """
    config = work.config
    faces = open_faces(index_csv)
    positions = faces.positions("val", config["datasets"][config["training_set"]]["perturbation_images"])
    if not len(positions):
        raise HoldfastError(
            f"there are no faces to learn a perturbation on in {faces.folder}",
            found="an empty split val",
            expected="the faces of the validation split",
            repair=f"set datasets.{config['training_set']} so that its split val has images",
        )
    opened = {key: work.deepfake(key, path) for key, path in models.items()}
    # Their weights do not say how they edit.
    edited = {key: own_settings(config["deepfakes"][key]) for key in models}
    identity = (method, settings, config["epsilon"], seed, config["seed"], config["image_size"], edited)
    files = [*models.values(), *detectors.values(), *filter(None, [first])]
    seen = (fingerprint(faces.folder), len(positions), [work.sha256(path) for path in files])
    code = sources.of_defence(method) + sources.of_attacked(models, detectors)
    return Surroundings(
        models=opened,
        detectors={key: work.detector(key, path) for key, path in detectors.items()},
        images=faces.pixels(positions).to(work.device),
        labels={
            key: faces.labels(positions, model.attributes).to(work.device) for key, model in opened.items()
        },
        epsilon=config["epsilon"],
        seed_names=("defence", method, config["seed"], seed),
        device=work.device,
        state_path=state_file(config, label, *identity, *seen, code=code),
        first=None if first is None else read_perturbation(first),
    )


def first_stage(config, name, seed, index_csv, models, perturbation):
    """Learn what the defences begin with that share the first stage `name` (config.first_stages).

    The stage gets the settings that its module names in FIRST_STAGE, and no others: one that looked at
    another setting would not be the same for all that share it.

    Raises:
        HoldfastError: its settings leave it nothing to do.
    """
    work = Work(config)
    method, settings = first_stages(config)[name]
    given = (method, settings, seed, index_csv, models, {})
    surroundings = surroundings_of(work, f"first_stage_{name}", *given)
    title, stage = DEFENCES[method].title, DEFENCES[method].first_stage(surroundings, settings)
    if not stage.steps:
        raise HoldfastError(
            f"the first stage of {title} has nothing to do",
            found=", ".join(f"{key}: {value}" for key, value in settings.items() if value == 0),
            expected="at least one step",
            repair=f"see defences.{method} in the config, or the studies that vary it",
        )
    run_stages({"first": stage}, surroundings.state_path, f"{title}, first stage")
    write_tensors(perturbation, {"perturbation": stage.perturbation}, {"first stage": name})


def perturb(config, name, seed, index_csv, models, detectors, perturbation, about, first=None):
    """Learn the perturbation of the defence `name` and write it with its record.

    `first` is what :func:`first_stage` has written for it; None: the defence runs that stage as well.

    The record (`about`, JSON) has the budget, settings, seed and duration (without that of a given first
    stage), what the defence has searched for, and of a universal perturbation the largest and the mean
    absolute entry, in units of [-1, 1].
    """
    work = Work(config, [index_csv, *models.values(), *detectors.values(), *filter(None, [first])])
    defence = _opened(work, name, seed, index_csv, models, detectors, first).fit()
    learnt_in = time.monotonic() - work.started
    defence.save(perturbation)
    record = {
        "defence": name,
        "title": defence.title,
        "universal": defence.universal,
        "epsilon": config["epsilon"],
        "seed": seed,
        "settings": own_settings(defence_of(config, name)[1]),
        "images": len(defence.surroundings.images),
        "seconds": round(learnt_in, 3),
        "provenance": work.provenance(perturbation_seed=seed),
    }
    if defence.found is not None:
        record["found"] = defence.found
    if defence.universal:
        size, images = defence.perturbation.abs(), defence.surroundings.images
        record["largest"] = size.max().item()
        record["mean_absolute"] = size.mean().item()
        record["at_budget"] = (size >= config["epsilon"] * (1 - 1e-6)).float().mean().item()
        protected = stored(images + defence.perturbation.to(work.device))
        record["largest_stored"] = (protected - images).abs().max().item()
    write_json(about, record)


def opened_defence(work, name, seed, perturbation, index_csv, models, detectors):
    """A fitted defence, as :func:`perturb` left it."""
    return _opened(work, name, seed, index_csv, models, detectors).load(perturbation)


def _opened(work, name, seed, *given):
    method, entry = defence_of(work.config, name)
    settings = own_settings(entry)
    return DEFENCES[method](
        settings, surroundings_of(work, f"perturb_{name}", method, settings, seed, *given)
    )
