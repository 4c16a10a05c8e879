rule prepare_faces:
    """A data set as packed arrays with an index and a report."""
    input:
        library=lambda w: library_of("datasets", config["datasets"][w.dataset]["kind"], "data/faceset.py"),
    output:
        images=R / "data/{dataset}/images.npy",
        index=R / "data/{dataset}/index.csv",
        report=R / "data/{dataset}/report.json",
    log:
        R / "logs/prepare_faces/{dataset}.log",
    priority: 1  # pretraining waits for them
    conda:
        "../../envs/holdfast.yaml"
    params:
        entry=lambda w: config["datasets"][w.dataset],
        common=COMMON,
    script:
        "../scripts/prepare_faces.py"


rule prepare_scenes:
    """Scenes with several faces each, for the detectors."""
    input:
        faces=SCENES_FACES,
        library=library(
            "data/synthetic.py",
            "data/rendering.py",
            "data/pasting.py",
            "data/wider_face.py",
            "stages/data.py",
        ),
    output:
        images=R / "data/scenes/images.npy",
        boxes=R / "data/scenes/boxes.json",
    log:
        R / "logs/prepare_scenes.log",
    conda:
        "../../envs/holdfast.yaml"
    params:
        scenes=config["scenes"],
        collected=config["attacker"]["images"] if SCENES_FACES else None,
        seed=config["seed"],
    script:
        "../scripts/prepare_scenes.py"
