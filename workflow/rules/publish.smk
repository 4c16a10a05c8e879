RECORDS = [
    R / "records/classifier.jsonl",
    *expand(R / "records/health/{model}.jsonl", model=DEEPFAKES),
    *expand(R / "records/detectors/{detector}.jsonl", detector=DETECTORS),
    *expand(
        R / "records/outputs/{dataset}.{measured}.original.jsonl",
        dataset=DATASETS,
        measured=MEASURED,
    ),
    *expand(
        R / "records/outputs/{dataset}.{defence}.{seed}.retrained.jsonl",
        dataset=TRAINING_SET,
        defence=COLLECTED,
        seed=ATTACKERS_SEEDS,
    ),
    *expand(
        R / "records/{kind}/{dataset}.{measured}.jsonl",
        kind=["images", "detection"],
        dataset=DATASETS,
        measured=MEASURED,
    ),
    *expand(
        R / "records/harvest/{defence}.{seed}.jsonl",
        defence=COLLECTED,
        seed=ATTACKERS_SEEDS,
    ),
    *expand(
        R / "records/retrained/{model}.{defence}.{seed}.jsonl",
        model=RETRAINED,
        defence=COLLECTED,
        seed=ATTACKERS_SEEDS,
    ),
]


TABLES_LIBRARY = library(
    *(f"papers/{name}.py" for name in ("tables", "layouts", "names", "cells", "rows", "reported")),
    "stages/publish.py",
)


rule tables:
    """The papers' tables, reported beside measured."""
    input:
        records=RECORDS,
        reported=HERE / "workflow/papers/reported.csv",
        library=TABLES_LIBRARY,
    output:
        expand(R / "tables/table_{table}.csv", table=TABLES),
    log:
        R / "logs/tables.log",
    conda:
        "../../envs/holdfast.yaml"
    params:
        plan=lambda w: {section: config[section] for section in SECTIONS},
    script:
        "../scripts/tables.py"


rule study:
    """The table of a study of a defence's settings, reported beside measured: Tables VII, VIII and others."""
    input:
        records=lambda w: records_of_study(w.study),
        reported=HERE / "workflow/papers/reported.csv",
        library=[*TABLES_LIBRARY, *library("studies.py")],
    output:
        R / "tables/table_{study}.csv",
    log:
        R / "logs/study/{study}.log",
    conda:
        "../../envs/holdfast.yaml"
    params:
        plan=lambda w: {key: config[key] for key in [*SECTIONS, "studies", "perturbation_seeds"]},
    script:
        "../scripts/study.py"


rule figures:
    """Fig. 5: edits; Fig. 6: protected photographs; Fig. 7: boxes before and after."""
    input:
        protected=expand(R / f"protected/{TRAINING_SET}" / "{shown}/test", shown=SHOWN),
        faces=faces(TRAINING_SET),
        classifier=CLASSIFIER,
        deepfakes=ALL_DEEPFAKES,
        healthy=HEALTHY,
        detectors=ALL_DETECTORS,
        library=library("papers/figures.py", "stages/publish.py"),
    output:
        expand(R / "figures/figure_{figure}.png", figure=FIGURES),
    log:
        R / "logs/figures.log",
    conda:
        "../../envs/holdfast.yaml"
    resources:
        gpu=1,
    params:
        faces=config["measuring"]["figure_faces"],
    script:
        "../scripts/figures.py"


rule report:
    """One self-contained page with tables, figures and the health of every model."""
    input:
        records=list(
            dict.fromkeys([*RECORDS, *(path for study in STUDIES for path in records_of_study(study))])
        ),
        tables=expand(R / "tables/table_{table}.csv", table=[*TABLES, *STUDIES]),
        figures=expand(R / "figures/figure_{figure}.png", figure=FIGURES),
        samples=expand(R / "models/{model}/samples.png", model=DEEPFAKES),
        library=[*TABLES_LIBRARY, *library("papers/report.py", "papers/wide.py")],
    output:
        report=R / "report.html",
        config=R / "config.yaml",
    log:
        R / "logs/report.log",
    conda:
        "../../envs/holdfast.yaml"
    params:
        config=settings.digest(config),
    script:
        "../scripts/report.py"
