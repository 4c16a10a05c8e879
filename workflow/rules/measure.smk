rule measure_outputs:
    """Tables I, III and IV: edits of protected faces, by the original and by the retrained models."""
    input:
        protected=R / "protected/{dataset}/{defence}/{seed}/test",
        faces=faces("{dataset}"),
        classifier=CLASSIFIER,
        models=lambda w: (
            ALL_DEEPFAKES
            if w.state == "original"
            else [R / f"retrained/{m}/{w.defence}/{w.seed}/weights.safetensors" for m in RETRAINED]
        ),
        healthy=HEALTHY,
        library=library("metrics/metric.py", "metrics/image.py", "metrics/fid.py", "stages/measure.py"),
    output:
        records=R / "records/outputs/{dataset}.{defence}.{seed}.{state}.jsonl",
    log:
        R / "logs/measure_outputs/{dataset}.{defence}.{seed}.{state}.log",
    wildcard_constraints:
        state="original|retrained",
    conda:
        "../../envs/holdfast.yaml"
    resources:
        gpu=1,
    params:
        metrics=config["metrics"],
        fid=config["fid_features"],
        models=MODELS,
    script:
        "../scripts/measure_outputs.py"


rule measure_images:
    """Table VI: the protected photograph beside the clean one."""
    input:
        protected=R / "protected/{dataset}/{defence}/{seed}/test",
        faces=faces("{dataset}"),
        library=library("metrics/metric.py", "metrics/image.py", "stages/measure.py"),
    output:
        records=R / "records/images/{dataset}.{defence}.{seed}.jsonl",
    log:
        R / "logs/measure_images/{dataset}.{defence}.{seed}.log",
    conda:
        "../../envs/holdfast.yaml"
    params:
        metrics=config["metrics"],
    script:
        "../scripts/measure_images.py"


rule measure_detection:
    """Table II: the detectors on clean and on protected faces."""
    input:
        protected=R / "protected/{dataset}/{defence}/{seed}/test",
        faces=faces("{dataset}"),
        detectors=ALL_DETECTORS,
        library=library_of_all(
            "detectors", DETECTORS, "metrics/metric.py", "metrics/detection.py", "stages/measure.py"
        ),
    output:
        records=R / "records/detection/{dataset}.{defence}.{seed}.jsonl",
    log:
        R / "logs/measure_detection/{dataset}.{defence}.{seed}.log",
    conda:
        "../../envs/holdfast.yaml"
    resources:
        gpu=1,
    params:
        metrics=config["metrics"],
    script:
        "../scripts/measure_detection.py"
