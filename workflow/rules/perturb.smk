rule perturb:
    """A defence's perturbation, learnt on faces that neither training nor test sees."""
    input:
        index=faces(TRAINING_SET),
        deepfakes=ALL_DEEPFAKES,
        healthy=HEALTHY,
        detectors=ALL_DETECTORS,
        library=lambda w: library_of("defences", settings.defence_of(config, w.defence)[0]),
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
        settings=lambda w: settings.defence_of(config, w.defence)[1],
        faces=config["datasets"][TRAINING_SET]["perturbation_images"],
        common=COMMON,
    script:
        "../scripts/perturb.py"
