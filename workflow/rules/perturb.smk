rule first_stage:
    """What several defences begin with: TSDF's interruption, which all variants of its poisoning share."""
    input:
        index=faces(TRAINING_SET),
        deepfakes=ALL_DEEPFAKES,
        healthy=HEALTHY,
        library=lambda w: library(*sources.of_defence(FIRST_STAGES[w.stage][0])),
    output:
        R / "first_stages/{stage}/{seed}/perturbation.safetensors",
    log:
        R / "logs/first_stage/{stage}.{seed}.log",
    retries: 1
    conda:
        "../../envs/holdfast.yaml"
    threads: training_threads()
    resources:
        gpu=1,
    params:
        settings=lambda w: FIRST_STAGES[w.stage][1],
        faces=config["datasets"][TRAINING_SET]["perturbation_images"],
        models=MODELS,
        common=COMMON,
    script:
        "../scripts/first_stage.py"


rule perturb:
    """A defence's perturbation, learnt on faces that neither training nor test sees."""
    input:
        index=faces(TRAINING_SET),
        deepfakes=ALL_DEEPFAKES,
        healthy=HEALTHY,
        detectors=ALL_DETECTORS,
        first=given_first_stage,
        library=lambda w: library(*sources.of_defence(settings.defence_of(config, w.defence)[0])),
    output:
        perturbation=R / "perturbations/{defence}/{seed}/perturbation.safetensors",
        about=R / "perturbations/{defence}/{seed}/perturbation.json",
    log:
        R / "logs/perturb/{defence}.{seed}.log",
    retries: 1
    conda:
        "../../envs/holdfast.yaml"
    threads: training_threads()
    resources:
        gpu=1,
    params:
        settings=lambda w: settings_of_defence(w.defence),
        faces=config["datasets"][TRAINING_SET]["perturbation_images"],
        models=MODELS,
        common=COMMON,
    script:
        "../scripts/perturb.py"
