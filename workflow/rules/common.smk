"""Names and paths that several stages share."""

import re

R = Path(config["results"])
LIBRARY = HERE / "workflow/holdfast"
DATASETS = settings.active(config, "datasets")
DEEPFAKES = settings.active(config, "deepfakes")
DETECTORS = settings.active(config, "detectors")
DEFENCES = settings.active(config, "defences")
# What some of them begin with, shared by all variants that agree in it: {name: (defence, settings)}.
FIRST_STAGES = settings.first_stages(config)
# What the studies derive from them. Learnt, protected and measured by the same rules, but only for the studies'
# tables: never harvested, and in no other table.
VARIANTS = settings.variants(config)
# {what the name of a study's table ends with: (its defences, its seeds)}
STUDIES = {
    settings.table_of(config, study): (
        list(settings.studied(config, study)),
        settings.studys_seeds(config, study),
    )
    for study in config["studies"]
}
SEEDS = config["perturbation_seeds"]
# The defences with their seeds, as files are called: "cmua.0". Figures show the first seed of each.
MEASURED = [f"{d}.{seed}" for d in DEFENCES for seed in settings.defences_seeds(config, d)]
SHOWN = [f"{d}/{settings.defences_seeds(config, d)[0]}" for d in DEFENCES]
TRAINING_SET = config["training_set"]
ATTACKER = config["attacker"]["detector"]
RETRAINED = settings.attackers_models(config)  # the models that he retrains
COLLECTED = settings.attackers_defences(config)  # the defences whose protected faces he collects
ATTACKERS_SEEDS = settings.attackers_seeds(config)
TABLES = ["I", "II", "III", "IV", "V", "VI"]
FIGURES = ["5", "6", "7"]


TRAINED = [name for name, entry in DEEPFAKES.items() if entry["weights"] == "train"]
IMPORTED = [name for name in DEEPFAKES if name not in TRAINED]


def one_of(names):
    """A wildcard's constraint; without a name it matches nothing."""
    return "|".join(re.escape(str(name)) for name in names) or "(?!)"


wildcard_constraints:
    dataset=one_of(DATASETS),
    model=one_of(DEEPFAKES),
    detector=one_of(DETECTORS),
    defence=one_of([*DEFENCES, *VARIANTS]),
    stage=one_of(FIRST_STAGES),
    seed=one_of(SEEDS),
    split="train|test",
    study=one_of(STUDIES),


def library(*names):
    """Modules whose change makes a job run again. Not the whole library, or any comment would."""
    return [LIBRARY / name for name in names]


def library_of(section, name, *more):
    """The module that registers `name`, what it takes from its folder, and `more`."""
    return library(*modules_of(section, name), *more)


HEALTH_LIBRARY = ["stages/health.py", *(f"metrics/{name}.py" for name in ("edits", "fid", "image", "metric"))]


def library_of_all(section, names, *more):
    """:func:`library_of` of several."""
    return list(dict.fromkeys(path for name in names for path in library_of(section, name, *more)))


def given_to_detector(wildcards):
    """Local files that a detector's weights come from or start with: its checkpoint, or VGG16's."""
    entry = config["detectors"][wildcards.detector]
    given = entry["weights"] or entry["training"]["initialisation"]
    return [Path(given).expanduser()] if given else []


def given_checkpoints(wildcards):
    """Local files among the checkpoints of a model; the others are downloaded by the job."""
    sources = settings.sources_of(config["deepfakes"][wildcards.model]["weights"])
    return [Path(source["path"]).expanduser() for source in sources if "path" in source]


def faces(dataset):
    """A face set as an input: its report, which has the hashes of its pixels and of its index.

    The index alone may stay as it was when the pixels change, and Snakemake takes a small file of the same
    content for unchanged.
    """
    return R / f"data/{dataset}/report.json"


# What the detectors' scenes are made of, where it is the training set's faces.
SCENES_FACES = [faces(TRAINING_SET)] if settings.scenes_source(config) == "training_set" else []


def deepfake_weights(model):
    return R / f"models/{model}/weights.safetensors"


def detector_weights(detector):
    return R / f"detectors/{detector}/weights.safetensors"


def boxes_found(detector):
    return R / "found/{defence}/{seed}" / f"{detector}.csv"


def settings_of_defence(name):
    """Its entry, but for the seeds that it is measured with, which change no perturbation."""
    _, entry = settings.defence_of(config, name)
    return {key: value for key, value in entry.items() if key != "seeds"}


def settings_of_model(name):
    """Its entry, but for the bar of its health, which changes neither weights nor edits."""
    return {key: value for key, value in config["deepfakes"][name].items() if key != "health"}


def given_first_stage(wildcards):
    """What a defence begins with, where that is a job of its own."""
    stage = settings.first_stage_of(config, wildcards.defence)
    return [R / f"first_stages/{stage}/{wildcards.seed}/perturbation.safetensors"] if stage else []


def records_of_study(name):
    """What a study's table is made from: its defences measured on the training set's test split."""
    defences, seeds = STUDIES[name]
    patterns = (
        "outputs/{set}.{defence}.{seed}.original",
        "images/{set}.{defence}.{seed}",
        "detection/{set}.{defence}.{seed}",
    )
    return expand(
        [R / f"records/{pattern}.jsonl" for pattern in patterns],
        set=TRAINING_SET,
        defence=defences,
        seed=seeds,
    )


CLASSIFIER = R / "models/classifier/weights.safetensors"
# What a defence may attack, and what measuring looks at; healthy.txt is written only for healthy models.
HEALTHY = [R / f"models/{model}/healthy.txt" for model in DEEPFAKES]
ALL_DEEPFAKES = [deepfake_weights(model) for model in DEEPFAKES]
ALL_DETECTORS = [detector_weights(detector) for detector in DETECTORS]


def training_threads():
    return config["threads"]


# Entries of the config that decide a stage's result: as params, so that a change reruns what it must.
CROPS = {key: config["attacker"][key] for key in ("threshold", "margin", "no_detection")}
MODELS = {name: settings_of_model(name) for name in DEEPFAKES}  # their weights do not say how they edit
COMMON = {key: config[key] for key in ("seed", "image_size", "device", "epsilon")}
