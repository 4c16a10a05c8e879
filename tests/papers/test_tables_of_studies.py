"""Tables VII and VIII and those of other studies, from the records of their variants."""

import pandas as pd
import pytest
from paper_records import a_run, cell, outputs, plan, record

from holdfast import config, modules
from holdfast.papers.layouts import NOT_MEASURED, NOT_REPORTED, NOTHING, TABLES, direction
from holdfast.papers.report import write_report
from holdfast.papers.reported import load_reported
from holdfast.papers.tables import build_tables, read_tables, titles_of_tables, write_tables
from holdfast.papers.wide import wide
from holdfast.stages.publish import plan_of

REPORTED = load_reported()
ROOT = modules.PACKAGE.parents[1]
TITLES = {"tsdf-tau=0": "TSDF tau=0.00", "tsdf": "TSDF tau=0.04", "tsdf-tau=0.05": "TSDF tau=0.05"}


def defences(titles=TITLES, skip=None):
    return {name: {"title": title, "skip": skip} for name, title in titles.items()}


def with_studies(**changes):
    known = {"table_VII": {"title": "Table VII: tau", "skip": None, "defences": defences()}}
    return plan(training_set="celeba", studies=known, **changes)


def of_variants(dataset="celeba"):
    found = []
    for number, defence in enumerate(["tsdf-tau=0", "tsdf-tau=0.05"]):
        for seed in (0, 1):
            value = 0.3 - 0.1 * number + 0.01 * seed
            about = {"dataset": dataset, "defence": defence, "seed": seed}
            found.append(outputs("l2_mask", value, **about))
            found.append(outputs("ssim_released", value, **about))
            found.append(record("ssim", 0.9, kind="images", **about))
            for metric in ("f1_released", "f1_truth", "harvest_yield", "false_positives"):
                found.append(record(metric, value, kind="detection", detector="s3fd", **about))
    return found


def test_a_variant_stands_in_its_study_and_nowhere_else():
    alone = build_tables(a_run(), plan(training_set="celeba"), REPORTED)
    tables = build_tables([*a_run(), *of_variants()], with_studies(), REPORTED)
    assert list(tables) == [*TABLES, "table_VII"]
    for name, table in alone.items():
        assert table.equals(tables[name]), name


def test_reported_beside_measured_with_seeds_and_deviation():
    table = build_tables([*a_run(), *of_variants()], with_studies(), REPORTED)["table_VII"]
    assert all(isinstance(text, str) and text.strip() for text in table.to_numpy().ravel())
    where = {"dataset": "CelebA", "method": "TSDF tau=0.00"}
    row = cell(table, subject="StarGAN", metric="l2_mask", **where)
    assert (row["reported"], row["measured"], row["n"], row["seeds"]) == ("0.38", "0.305", "100", "0 1")
    assert float(row["sd"]) == pytest.approx(0.01 / 2**0.5, rel=1e-4) and row["why"] == NOTHING
    released = cell(table, subject="StarGAN", metric="ssim_released", **where)
    assert (released["reported"], released["measured"]) == ("0.13", "0.305")
    found = cell(table, subject="S3FD", metric="f1_released", **where)
    assert (found["reported"], found["measured"]) == ("1", "0.305")
    floods = cell(table, subject="S3FD", metric="false_positives", **where)
    assert (floods["reported"], floods["measured"]) == (NOT_REPORTED, "0.305")
    photograph = cell(table, subject="protected image", metric="ssim[protected]", **where)
    assert (photograph["measured"], photograph["measured_by"]) == ("0.9", "ssim")
    # The variant that is the defence itself takes the defence's own records.
    base = cell(table, dataset="CelebA", method="TSDF tau=0.04", subject="StarGAN", metric="l2_mask")
    own = [r for r in a_run() if r["subject"].get("defence") == "tsdf" and r["metric"] == "l2_mask"]
    own = [r for r in own if r["subject"]["model"] == "stargan" and r["subject"]["dataset"] == "celeba"]
    assert float(base["measured"]) == pytest.approx(sum(r["value"] for r in own) / len(own), rel=1e-5)


def test_every_missing_cell_has_its_reason():
    table = build_tables(of_variants(), with_studies(), REPORTED)["table_VII"]

    def why(**where):
        row = cell(table, **{"dataset": "CelebA", "metric": "l2_mask", **where})
        assert row["measured"] == NOT_MEASURED
        return row["why"]

    assert "too slow for this preset" in why(subject="HiSD", method="TSDF tau=0.00")
    assert "AGGAN is not part of this run" in why(subject="AGGAN", method="TSDF tau=0.00")
    assert "TSDF tau=0.02 is not part of this run" in why(subject="StarGAN", method="TSDF tau=0.02")
    assert "no record" in why(subject="AttGAN", method="TSDF tau=0.00")
    dsfd = why(subject="DSFD", method="TSDF tau=0.05", metric="f1_released")
    assert "the face detector DSFD is not part of this run" in dsfd
    other = with_studies()
    other["training_set"] = "synthetic"
    table = build_tables(of_variants(), other, REPORTED)["table_VII"]
    assert "studies are measured on Synthetic" in why(subject="StarGAN", method="TSDF tau=0.00")
    assert set(table["dataset"]) == {"CelebA", "Synthetic"}


def test_a_skipped_study_says_why_in_every_cell():
    reason = "to keep this short"
    mine = {"title": "Study: mine", "skip": reason, "defences": defences({"a": "strength=1"}, reason)}
    known = plan(training_set="synthetic", studies={"table_mine": mine})
    table = build_tables(a_run(), known, REPORTED)["table_mine"]
    assert len(table) and (table["measured"] == NOT_MEASURED).all()
    reasons = set(table["why"])
    assert f"strength=1 is left out: {reason}" in reasons and NOTHING not in reasons


def test_only_the_wanted_tables_are_built_and_they_read_back_equal(tmp_path):
    records = [*a_run(), *of_variants()]
    everything = build_tables(records, with_studies(), REPORTED)
    needed = [r for r in records if r["subject"].get("defence") in TITLES]
    one = build_tables(needed, with_studies(), REPORTED, ["table_VII"])
    assert list(one) == ["table_VII"] and one["table_VII"].equals(everything["table_VII"])
    write_tables(everything, tmp_path)
    back = read_tables(tmp_path, titles_of_tables(with_studies()))
    assert list(back) == list(everything)
    assert all(table.equals(everything[name]) for name, table in back.items())


def test_the_layout_compares_variants_within_a_metric():
    table = build_tables([*a_run(), *of_variants()], with_studies(), REPORTED)["table_VII"]
    shown = wide("table_VII", table)
    assert isinstance(shown, pd.DataFrame)
    assert shown.loc[("CelebA", "TSDF tau=0.00"), ("l2_mask", "StarGAN")] == "0.38 / 0.305"
    assert shown.loc[("CelebA", "TSDF tau=0.05"), ("f1_released", "S3FD")] == "0.03 / 0.205"
    # Between edits the defender wants little likeness, between photographs much.
    assert direction("table_VII", "ssim") == "down" and direction("table_VII", "ssim[protected]") == "up"
    assert direction("table_VII", "false_positives") is None and direction("table_VI", "ssim") == "up"


def test_the_report_shows_studies_and_those_left_out(tmp_path):
    known = with_studies()
    mine = {"title": "Study: mine <b>", "skip": "later & more", "defences": defences({"a": "x=1"}, "later")}
    known["studies"]["table_mine"] = mine
    tables = build_tables([*a_run(), *of_variants()], known, REPORTED)
    write_report(tmp_path / "r.html", known, tables, [], [], [], a_run())
    text = (tmp_path / "r.html").read_text()
    for part in (
        "Table VII: tau",
        "Study: mine &lt;b&gt;",
        "later &amp; more",
        "TSDF tau=0.05",
        "tables/table_VII.csv",
    ):
        assert part in text, part


def test_the_papers_studies_name_every_reported_variant():
    known = plan_of(config.read(ROOT / "config.yaml"))
    for table in ("VII", "VIII"):
        told = REPORTED[(REPORTED["paper"] == "tsdf") & (REPORTED["table"] == table)]
        titles = [entry["title"] for entry in known["studies"][f"table_{table}"]["defences"].values()]
        assert list(dict.fromkeys(told["method"])) == titles
    readings = known["studies"]["table_ambiguities"]["defences"]
    assert len(readings) == 12 and "tsdf" in readings
    # What Table VIII calls feature enhancement is Table VII's tau = 0: their reported numbers agree, too.
    assert known["studies"]["table_VII"]["defences"]["tsdf-tau=0"]["title"] == "TSDF tau=0.00"
    assert known["studies"]["table_VIII"]["defences"]["tsdf-tau=0"]["title"] == "Feature Enhancement"
    key = ["subject", "metric"]
    seven, eight = (
        REPORTED[(REPORTED["table"] == table) & (REPORTED["method"] == method)].set_index(key)["value"]
        for table, method in (("VII", "TSDF tau=0.00"), ("VIII", "Feature Enhancement"))
    )
    assert seven.drop("f1", level="metric").to_dict() == eight.to_dict()


def test_a_skipped_study_of_the_config_has_its_reason_in_the_plan():
    known = plan_of(config.read(ROOT / "config.yaml", ROOT / "workflow/presets/demo.yaml"))
    assert known["studies"]["table_ambiguities"]["skip"] == "to keep the demo short"
    table = build_tables([], known, REPORTED, ["table_ambiguities"])["table_ambiguities"]
    assert set(table["dataset"]) == {"Synthetic"}
    assert all("to keep the demo short" in why or "not healthy" in why for why in table["why"])


def test_what_the_config_confines_stands_in_the_plan():
    lab = config.read(ROOT / "config.yaml", ROOT / "workflow/presets/lab.yaml")
    known = plan_of(lab)
    assert known["seeds"] == known["studies"]["table_VII"]["seeds"] == [0, 1, 2]
    assert known["studies"]["table_hidden"]["seeds"] == known["attacker"]["seeds"] == [0]
    assert known["attacker"]["models"] == ["stargan", "attgan"]
    assert known["attacker"]["defences"] == lab["attacker"]["defences"]
