"""The whole DAG with the smoke preset: every rule, twice, and once killed on the way."""

import csv
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from holdfast.config import read
from holdfast.errors import HoldfastError
from holdfast.records import read_records
from holdfast.stages.common import Work

ROOT = Path(__file__).resolve().parents[2]
RULES = "data pretrain perturb protect retrain measure publish"


def test_every_rule_ran(smoke):
    rules = set()
    for stage in RULES.split():
        text = (smoke.folder / f"workflow/rules/{stage}.smk").read_text()
        rules |= set(re.findall(r"^rule (\w+):", text, re.M))
    logged = {path.name.removesuffix(".log") for path in (smoke.results / "logs").iterdir()}
    # Importing is the one thing that needs a file from outside: tests/workflow/test_import.py.
    assert rules - logged == {"import_deepfake"} and logged <= rules


def test_tables_have_no_blank_cell_and_measured_cells_come_from_records(smoke):
    values = [record["value"] for record in read_records(sorted(smoke.results.glob("records/**/*.jsonl")))]
    known = {f"{value:.6g}" for value in values if value is not None}
    names = set()
    for path in sorted((smoke.results / "tables").glob("*.csv")):
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        names.add(path.stem)
        assert rows
        for row in rows:
            assert all(cell.strip() for cell in row.values()), (path.name, row)
            if row["measured"] == "not measured":
                assert row["why"] != "-", (path.name, row)
            elif row["subject"] not in ("Avg", "StarGAN+AttGAN"):
                assert f"{float(row['measured']):.6g}" in known, (path.name, row)
    studies = ("VII", "VIII", "ambiguities", "readings", "cmua_factor", "flooding", "hidden")
    assert names == {f"table_{number}" for number in ("I", "II", "III", "IV", "V", "VI", *studies)}


def test_a_model_that_the_preset_does_not_retrain_says_so(smoke):
    with open(smoke.results / "tables/table_III.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == "Synthetic"]
    rows = [row for row in rows if row["method"] == "TSDF"]
    after = [row for row in rows if row["subject"] == "AttGAN" and row["state"] == "retrained"]
    assert after and all("does not retrain AttGAN" in row["why"] for row in after)
    assert any(row["subject"] == "HiSD" and row["measured"] != "not measured" for row in rows)


def test_every_detector_and_their_union_harvest_the_protected_faces(smoke):
    with open(smoke.results / "tables/table_II.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "harvest_yield[collected]"]
    harvesters = {row["subject"] for row in rows if row["method"] == "TSDF"}
    assert harvesters == {"RetinaFace", "S3FD", "DSFD", "all detectors"}
    records = read_records([smoke.results / "records/harvest/tsdf.0.jsonl"])
    detected = {record["subject"]["detector"]: record["extra"]["n_detected"] for record in records}
    # Its surest box may be a wrong one, but it has a box wherever one of them has.
    assert detected["union"] >= max(detected.values())


def test_the_variants_of_studies_are_measured_but_neither_harvested_nor_retrained_on(smoke):
    variants = {"tsdf-tau=0", "tsdf-feature_distance=wasserstein-tau=0", "tsdf-mask_acts_on=update"}
    records = read_records(sorted(smoke.results.glob("records/**/*.jsonl")))
    kinds = {}
    for record in records:
        if record["subject"].get("defence") in variants:
            kinds.setdefault(record["subject"]["kind"], set()).add(record["subject"]["defence"])
    assert kinds == {kind: variants for kind in ("outputs", "images", "detection")}
    for name, methods in (
        ("VII", {"TSDF tau=0.00", "TSDF tau=0.04"}),
        ("VIII", {"Wasserstein Distance", "Feature Enhancement"}),
    ):
        rows = list(csv.DictReader((smoke.results / f"tables/table_{name}.csv").open()))
        assert {row["method"] for row in rows if row["measured"] != "not measured"} == methods


def test_what_was_measured_is_what_was_stored(smoke):
    folder = smoke.results / "protected/synthetic/tsdf/0/test"
    assert len(list((folder / "images").glob("*.png"))) == 12
    assert (folder / "perturbation.json").exists()


def test_report_is_self_contained(smoke):
    page = (smoke.results / "report.html").read_text()
    shown = ("Table I:", "Table II:", "Table IV:", "Table V:", "Table VI:", "Table VII:", "Table VIII:")
    for table in (*shown, "Study: readings", "Fig. 5", "Fig. 7"):
        assert table in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)


def test_a_second_run_does_nothing(smoke):
    began = time.monotonic()
    finished = smoke.run()
    assert finished.returncode == 0
    assert "Nothing to be done" in finished.stdout + finished.stderr
    # Some ten seconds; this machine may be busy with other tests.
    assert time.monotonic() - began < 60


def test_checkpoint_of_another_architecture(smoke):
    """The weights of a wider model where a narrower one is expected."""
    (smoke.folder / "wider.yaml").write_text(
        "results: results/wide\ndeepfakes: {stargan: {generator_channels: 12}}\n"
    )
    preset, weights = "workflow/presets/smoke.yaml", "results/wide/models/stargan/weights.safetensors"
    finished = smoke.run(weights, "--configfile", preset, "wider.yaml")
    assert finished.returncode == 0, finished.stderr[-3000:]
    config = read(smoke.folder / "config.yaml", smoke.folder / preset)
    with pytest.raises(HoldfastError, match="another architecture"):
        Work(config).deepfake("stargan", smoke.folder / weights)


def test_another_folder_killed_on_the_way_gives_the_same_tables(smoke, pipeline_copy):
    """Two folders, the second run killed with SIGKILL at random moments: identical CSV files."""
    other, moments = pipeline_copy("second"), random.Random(7)
    killed = 0
    for _ in range(4):
        run = other.start()
        try:
            run.wait(moments.uniform(5, 30))
            break
        except Exception:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            killed += 1
            assert other.run("--unlock").returncode == 0
    assert killed
    finished = other.run()
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-6000:]
    assert other.tables() == smoke.tables()
    left = [path for path in other.results.rglob(".*") if path.name.startswith(".") and path.is_file()]
    assert not [path for path in left if "snakemake" not in path.name], left


def of_readme(heading, language):
    """The first code block of a language under a heading of the README."""
    section = (ROOT / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(rf"```{language}\n(.*?)```", section, re.S)[1]


def test_a_new_defence_is_one_file_and_one_line(smoke):
    own = of_readme("Add a defence", "python")
    assert len(own.splitlines()) <= 25
    (smoke.folder / "workflow/holdfast/defences/stripes.py").write_text(own)
    config = smoke.folder / "config.yaml"
    section, line = of_readme("Add a defence", "yaml").splitlines()
    config.write_text(config.read_text().replace(f"\n{section}\n", f"\n{section}\n{line}\n"))
    # The line is enough unless `attacker.defences` names others, as this preset does.
    preset = smoke.folder / "workflow/presets/smoke.yaml"
    preset.write_text(preset.read_text().replace("defences: [none, cmua, tsdf]", "defences: [none, stripes]"))
    finished = smoke.run()
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-6000:]
    for name in ("I", "II", "III", "IV", "V", "VI"):
        rows = list(csv.DictReader((smoke.results / f"tables/table_{name}.csv").open()))
        of_stripes = [row for row in rows if row["method"] == "Stripes"]
        assert of_stripes and any(row["measured"] != "not measured" for row in of_stripes), name


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("epsilom=0.05", ["epsilom", "epsilon: 0.05"]),
        ("epsilon=0", ["epsilon", "above 0"]),
        ("epsilon=-0.1", ["epsilon", "above 0"]),
        ("defences={tsdff: {}}", ["defences.tsdff", "nobody registered", "tsdf"]),
        ("image_size=big", ["image_size", "integer"]),
    ],
)
def test_a_wrong_config_stops_before_anything_runs(pipeline_copy, argument, words):
    pipeline = pipeline_copy("wrong")
    finished = pipeline.run("--config", argument)
    told = finished.stdout + finished.stderr
    assert finished.returncode != 0
    for word in words:
        assert word in told, told[-2000:]
    assert "Traceback" not in told
    assert not (pipeline.folder / "results").exists()


def test_a_study_alone_asks_only_for_what_its_table_needs(pipeline_copy):
    pipeline = pipeline_copy("study")
    finished = pipeline.run("-n", "results/smoke/tables/table_ambiguities.csv")
    told = finished.stdout + finished.stderr
    assert finished.returncode == 0, told[-2000:]
    counts = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", told, re.M)}
    for rule in ("perturb", "protect", "measure_outputs", "measure_images", "measure_detection"):
        assert counts[rule] == 2, rule
    assert counts["study"] == counts["first_stage"] == 1
    assert not counts.keys() & {"harvest", "retrain", "tables", "report"}


def test_dry_run_at_the_papers_scale(pipeline_copy):
    pipeline = pipeline_copy("paper")

    def planned(change=""):
        """{rule: its number of jobs} of config.yaml with a change laid over it, and what was printed."""
        (pipeline.folder / "chosen.yaml").write_text(change)
        given = ["--configfile", "chosen.yaml"] if change else []
        finished = pipeline.run("--workflow-profile", "profiles/default", "-n", "--cores", "all", *given)
        assert finished.returncode == 0, finished.stderr[-2000:]
        told = finished.stdout + finished.stderr
        return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", told, re.M)}, told

    counts, told = planned()
    assert "results/paper/report.html" in told
    # 11 defences, and 39 variants of four of them, of which the attacker sees nothing.
    assert (counts["perturb"], counts["harvest"], counts["retrain"]) == (50, 11, 11 * 4)
    assert (counts["find_faces"], counts["measure_harvest"]) == (11 * 3, 11)
    assert (counts["measure_outputs"], counts["study"]) == (11 * 2 + 11 + 39, 7)
    # Of four defences, and of the variants that change it: three distances, a sign, and two of a heavier
    # enhancement.
    assert counts["first_stage"] == 4 + 3 + 1 + 2
    chosen = "perturbation_seeds: [0, 1]\nattacker: {models: [attgan], defences: [none, tsdf], seeds: [1]}\n"
    counts, _ = planned(chosen)
    assert (counts["perturb"], counts["harvest"], counts["retrain"]) == (50 * 2, 2, 2)
    assert counts["measure_outputs"] == (11 * 2 + 39) * 2 + 2
    # The readings of the paper on one seed: all of the 12 but tsdf itself are its alone.
    counts, _ = planned(chosen + "studies: {ambiguities: {seeds: [0]}}\n")
    assert counts["perturb"] == 50 * 2 - 11
    assert counts["measure_outputs"] == (11 * 2 + 39) * 2 + 2 - 11
    # A defence on one seed: the other is neither learnt nor measured on the two data sets.
    counts, _ = planned(chosen + "defences: {ssod: {seeds: [0]}}\n")
    assert counts["perturb"] == 50 * 2 - 1
    assert counts["measure_outputs"] == (11 * 2 + 39) * 2 + 2 - 2
