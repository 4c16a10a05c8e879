rule prepare_faces:
    """A data set as packed arrays with an index and a report."""
    input:
        library=lambda w: library(
            "data/faceset.py",
            f"data/{config['datasets'][w.dataset]['kind']}.py",
            *(["data/rendering.py"] if config["datasets"][w.dataset]["kind"] == "synthetic" else ["data/preparing.py"]),
        ),
    output:
        images=R / "data/{dataset}/images.npy",
        index=R / "data/{dataset}/index.csv",
        report=R / "data/{dataset}/report.json",
    log:
        R / "logs/prepare_faces/{dataset}.log",
    params:
        entry=lambda w: config["datasets"][w.dataset],
        common=COMMON,
    conda:
        "../../envs/holdfast.yaml"
    retries: 1
    script:
        "../scripts/prepare_faces.py"


rule render_scenes:
    """Synthetic scenes with several faces each, for the detectors."""
    input:
        library=library("data/synthetic.py", "data/rendering.py"),
    output:
        images=R / "data/scenes/images.npy",
        boxes=R / "data/scenes/boxes.json",
    log:
        R / "logs/render_scenes.log",
    params:
        scenes=config["scenes"],
        seed=config["seed"],
    conda:
        "../../envs/holdfast.yaml"
    script:
        "../scripts/render_scenes.py"
