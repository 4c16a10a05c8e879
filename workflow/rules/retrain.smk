rule find_faces:
    """Where a detector sees faces in the protected training split."""
    input:
        protected=R / f"protected/{TRAINING_SET}" / "{defence}/{seed}/train",
        weights=R / "detectors/{detector}/weights.safetensors",
        library=lambda w: library_of("detectors", w.detector, "stages/harvest.py"),
    output:
        boxes=R / "found/{defence}/{seed}/{detector}.csv",
    log:
        R / "logs/find_faces/{defence}.{seed}.{detector}.log",
    conda:
        "../../envs/holdfast.yaml"
    resources:
        gpu=1,
    params:
        threshold=config["attacker"]["threshold"],
    script:
        "../scripts/find_faces.py"


rule measure_harvest:
    """What an attacker would harvest with each detector, and with all of them."""
    input:
        protected=R / f"protected/{TRAINING_SET}" / "{defence}/{seed}/train",
        faces=faces(TRAINING_SET),
        weights=ALL_DETECTORS,
        boxes=[boxes_found(detector) for detector in DETECTORS],
        library=library("attacker/harvest.py", "metrics/detection.py", "stages/harvest.py"),
    output:
        records=R / "records/harvest/{defence}.{seed}.jsonl",
    log:
        R / "logs/measure_harvest/{defence}.{seed}.log",
    conda:
        "../../envs/holdfast.yaml"
    params:
        attacker=CROPS,
    script:
        "../scripts/measure_harvest.py"


rule harvest:
    """What the attacker's data preparation makes of the protected training split."""
    input:
        protected=R / f"protected/{TRAINING_SET}" / "{defence}/{seed}/train",
        faces=faces(TRAINING_SET),
        boxes=[boxes_found(name) for name in settings.attackers_detectors(config, ATTACKER)],
        library=library("attacker/harvest.py", "stages/harvest.py"),
    output:
        images=R / f"harvest/{{defence}}/{{seed}}/{ATTACKER}/images.npy",
        index=R / f"harvest/{{defence}}/{{seed}}/{ATTACKER}/index.csv",
        report=R / f"harvest/{{defence}}/{{seed}}/{ATTACKER}/report.json",
    log:
        R / "logs/harvest/{defence}.{seed}.log",
    conda:
        "../../envs/holdfast.yaml"
    params:
        attacker=CROPS,
    script:
        "../scripts/harvest.py"


rule retrain:
    """The attacker fine-tunes a deepfake model on his harvest; resumes from its state file."""
    input:
        pretrained=R / "models/{model}/weights.safetensors",
        healthy=R / "models/{model}/healthy.txt",
        harvest=R / f"harvest/{{defence}}/{{seed}}/{ATTACKER}/report.json",
        faces=faces(TRAINING_SET),
        library=lambda w: library(*sources.of_deepfake(w.model)),
    output:
        weights=R / "retrained/{model}/{defence}/{seed}/weights.safetensors",
        log=R / "retrained/{model}/{defence}/{seed}/log.csv",
        curves=R / "retrained/{model}/{defence}/{seed}/curves.png",
        samples=R / "retrained/{model}/{defence}/{seed}/samples.png",
    log:
        R / "logs/retrain/{model}.{defence}.{seed}.log",
    retries: 2
    conda:
        "../../envs/holdfast.yaml"
    threads: training_threads()
    resources:
        gpu=1,
    params:
        settings=lambda w: settings_of_model(w.model),
        attacker={k: config["attacker"][k] for k in ("iterations", "generator_rate", "discriminator_rate")},
        common=COMMON,
    script:
        "../scripts/retrain.py"


rule measure_retrained:
    """The retrained model on clean faces (Table V)."""
    input:
        weights=R / "retrained/{model}/{defence}/{seed}/weights.safetensors",
        classifier=CLASSIFIER,
        index=faces(TRAINING_SET),
        library=library(*HEALTH_LIBRARY),
    output:
        records=R / "records/retrained/{model}.{defence}.{seed}.jsonl",
    log:
        R / "logs/measure_retrained/{model}.{defence}.{seed}.log",
    conda:
        "../../envs/holdfast.yaml"
    resources:
        gpu=1,
    params:
        measuring=config["measuring"],
        fid=config["fid_features"],
    script:
        "../scripts/measure_retrained.py"
