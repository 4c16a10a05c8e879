rule perturb:
    """A defence's perturbation, learnt on faces that neither training nor test sees."""
    input:
        index=faces(TRAINING_SET),
        deepfakes=ALL_DEEPFAKES,
        healthy=HEALTHY,
        detectors=ALL_DETECTORS,
        library=lambda w: library_of("defences", w.defence),
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
        settings=lambda w: config["defences"][w.defence],
        faces=config["datasets"][TRAINING_SET]["perturbation_images"],
        common=COMMON,
    script:
        "../scripts/perturb.py"
