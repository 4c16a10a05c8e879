rule protect:
    """A split of a data set with the perturbation on it, as 8-bit PNG files with an index."""
    input:
        faces=faces("{dataset}"),
        training=faces(TRAINING_SET),
        perturbation=R / "perturbations/{defence}/{seed}/perturbation.safetensors",
        about=R / "perturbations/{defence}/{seed}/perturbation.json",
        deepfakes=ALL_DEEPFAKES,
        detectors=ALL_DETECTORS,
        library=lambda w: library(*sources.of_protection(settings.defence_of(config, w.defence)[0])),
    output:
        folder=directory(R / "protected/{dataset}/{defence}/{seed}/{split}"),
    log:
        R / "logs/protect/{dataset}.{defence}.{seed}.{split}.log",
    retries: 2
    conda:
        "../../envs/holdfast.yaml"
    resources:
        gpu=1,
    params:
        images=lambda w: config["protection" if w.split == "test" else "attacker"]["images"],
        models=MODELS,
        common=COMMON,
    script:
        "../scripts/protect.py"
