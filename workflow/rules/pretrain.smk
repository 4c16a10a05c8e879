rule train_classifier:
    """The attribute classifier: judge of edit_accuracy."""
    input:
        index=faces(TRAINING_SET),
        library=library(*sources.of_classifier()),
    output:
        weights=CLASSIFIER,
        log=R / "models/classifier/log.csv",
        curves=R / "models/classifier/curves.png",
        records=R / "records/classifier.jsonl",
    log:
        R / "logs/train_classifier.log",
    retries: 1
    conda:
        "../../envs/holdfast.yaml"
    threads: training_threads()
    resources:
        gpu=1,
    params:
        settings=config["classifier"],
        attributes=settings.all_attributes(config),
        common=COMMON,
    script:
        "../scripts/train_classifier.py"


rule pretrain_deepfake:
    """A deepfake model, trained on the training set; resumes from its state file."""
    input:
        index=faces(TRAINING_SET),
        library=lambda w: library(*sources.of_deepfake(w.model)),
    output:
        weights=R / "models/{model}/weights.safetensors",
        log=R / "models/{model}/log.csv",
        curves=R / "models/{model}/curves.png",
        samples=R / "models/{model}/samples.png",
    log:
        R / "logs/pretrain_deepfake/{model}.log",
    wildcard_constraints:
        model=one_of(TRAINED),
    priority: 1  # the longest jobs, and nearly all others wait for them
    retries: 2
    conda:
        "../../envs/holdfast.yaml"
    threads: training_threads()
    resources:
        gpu=1,
    params:
        settings=lambda w: settings_of_model(w.model),
        common=COMMON,
    script:
        "../scripts/pretrain_deepfake.py"


rule import_deepfake:
    """A deepfake model's public checkpoint, in the place of pretraining."""
    input:
        index=faces(TRAINING_SET),
        given=given_checkpoints,
        library=lambda w: library_of("deepfakes", w.model, "deepfakes/importing.py"),
    output:
        weights=R / "models/{model}/weights.safetensors",
        samples=R / "models/{model}/samples.png",
    log:
        R / "logs/import_deepfake/{model}.log",
    wildcard_constraints:
        model=one_of(IMPORTED),
    retries: 1
    conda:
        "../../envs/holdfast.yaml"
    resources:
        gpu=1,
    params:
        settings=lambda w: settings_of_model(w.model),
        common=COMMON,
    script:
        "../scripts/import_deepfake.py"


rule measure_health:
    """edit_accuracy and fidelity of a pretrained model on unseen faces."""
    input:
        weights=R / "models/{model}/weights.safetensors",
        classifier=CLASSIFIER,
        index=faces(TRAINING_SET),
        library=library(*HEALTH_LIBRARY),
    output:
        records=R / "records/health/{model}.jsonl",
    log:
        R / "logs/measure_health/{model}.log",
    conda:
        "../../envs/holdfast.yaml"
    resources:
        gpu=1,
    params:
        measuring=config["measuring"],
        fid=config["fid_features"],
    script:
        "../scripts/measure_health.py"


rule check_health:
    """Stops the run where a model is below the preset's health; the figures stay in its records."""
    input:
        records=R / "records/health/{model}.jsonl",
    output:
        flag=R / "models/{model}/healthy.txt",
    log:
        R / "logs/check_health/{model}.log",
    conda:
        "../../envs/holdfast.yaml"
    params:
        health=lambda w: config["deepfakes"][w.model]["health"],
    script:
        "../scripts/check_health.py"


rule get_detector:
    """A face detector: its checkpoint imported, or trained on the scenes; then its ap measured."""
    input:
        images=R / "data/scenes/images.npy",
        boxes=R / "data/scenes/boxes.json",
        given=given_to_detector,
        library=lambda w: library(*sources.of_detector(w.detector), "metrics/detection.py"),
    output:
        weights=R / "detectors/{detector}/weights.safetensors",
        records=R / "records/detectors/{detector}.jsonl",
    log:
        R / "logs/get_detector/{detector}.log",
    retries: 2
    conda:
        "../../envs/holdfast.yaml"
    threads: training_threads()
    resources:
        gpu=1,
    params:
        settings=lambda w: config["detectors"][w.detector],
        seed=config["seed"],
    script:
        "../scripts/get_detector.py"
