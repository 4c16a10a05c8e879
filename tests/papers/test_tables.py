import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper_records import a_run, cell, outputs, plan, record

from holdfast.errors import HoldfastError
from holdfast.papers.layouts import AVERAGE, NOT_MEASURED, NOT_REPORTED, NOTHING, TABLES
from holdfast.papers.reported import load_reported
from holdfast.papers.tables import build_tables, read_tables, write_tables
from holdfast.papers.wide import wide
from holdfast.records import check

REPORTED = load_reported()


def build(records, **changes):
    return build_tables(records, plan(**changes), REPORTED)


def test_the_records_of_these_tests_fit_the_schema():
    for entry in a_run():
        check(entry)


def test_without_records_every_reported_cell_stays_with_a_reason():
    tables = build([])
    for name, table in tables.items():
        told = REPORTED[(REPORTED["paper"] == "tsdf") & (REPORTED["table"] == name.removeprefix("table_"))]
        shown = table[table["reported"] != NOT_REPORTED]
        assert sorted(float(text) for text in shown["reported"]) == sorted(told["value"])
        assert (table["measured"] == NOT_MEASURED).all()
        assert (table["why"] != NOTHING).all()


def test_no_cell_is_ever_blank_and_rows_are_unique():
    for name, table in build(a_run()).items():
        assert all(isinstance(text, str) and text.strip() for text in table.to_numpy().ravel()), name
        key = [c for c in table if c in ("dataset", "subject", "method", "metric", "state", "attacker")]
        assert not table.duplicated(key).any(), name


def test_mean_and_sample_deviation_over_seeds():
    values = [0.31, 0.35, 0.42]
    table = build([outputs("l2_mask", v, seed=s) for s, v in enumerate(values)])["table_I"]
    row = cell(table, dataset="CelebA", subject="StarGAN", method="CMUA", metric="l2_mask")
    assert row["reported"] == "0.21"
    assert row["measured"] == f"{statistics.mean(values):.6g}"
    assert row["sd"] == f"{statistics.stdev(values):.6g}"
    assert (row["n"], row["seeds"], row["measured_by"], row["why"]) == ("100", "0 1 2", "l2_mask", NOTHING)


def test_one_seed_has_no_deviation_and_n_may_differ():
    table = build([outputs("l2_mask", 0.3)])["table_I"]
    assert cell(table, dataset="CelebA", subject="StarGAN", method="CMUA", metric="l2_mask")["sd"] == NOTHING
    table = build([outputs("l2_mask", 0.3, n=90), outputs("l2_mask", 0.3, n=95, seed=1)])["table_I"]
    row = cell(table, dataset="CelebA", subject="StarGAN", method="CMUA", metric="l2_mask")
    assert row["n"] == "90-95" and row["sd"] == "0"


def test_the_papers_ssim_and_f1_stand_beside_the_released_rules():
    records = [outputs("ssim_released", 0.44), outputs("ssim", 0.33)]
    about = {"dataset": "celeba", "detector": "retinaface", "defence": "tsdf", "seed": 0}
    records += [record("f1_released", 0.5, kind="detection", **about)]
    records += [record("f1_truth", 0.6, kind="detection", **about)]
    records += [record("harvest_yield", 0.7, kind="harvest", **about)]
    tables = build(records)
    where = {"dataset": "CelebA", "subject": "StarGAN", "method": "CMUA"}
    released = cell(tables["table_I"], metric="ssim_released", **where)
    sound = cell(tables["table_I"], metric="ssim", **where)
    assert (released["reported"], released["measured"]) == ("0.48", "0.44")
    assert (sound["reported"], sound["measured"]) == (NOT_REPORTED, "0.33")
    where = {"dataset": "CelebA", "subject": "RetinaFace", "method": "TSDF"}
    found = {
        m: cell(tables["table_II"], metric=m, **where)
        for m in ("f1_released", "f1_truth", "harvest_yield[collected]")
    }
    assert [(c["reported"], c["measured"]) for c in found.values()] == [
        ("0.77", "0.5"),
        (NOT_REPORTED, "0.6"),
        (NOT_REPORTED, "0.7"),
    ]


def test_fid_of_another_network_says_so():
    why = "the weights of the FID Inception are not at hand"
    records = [outputs("fid[attributes]", 31.5), outputs("fid", None, why=why)]
    where = {"dataset": "CelebA", "subject": "StarGAN", "method": "CMUA", "metric": "fid"}
    row = cell(build(records)["table_I"], **where)
    assert (row["reported"], row["measured"], row["measured_by"]) == ("305.05", "31.5", "fid[attributes]")
    assert "'attributes'" in row["why"]
    # With the Inception at hand it fills the row, and the other network has its own.
    both = build([outputs("fid[attributes]", 31.5), outputs("fid", 290.0)])["table_I"]
    assert cell(both, **where)["measured"] == "290" and cell(both, **where)["why"] == NOTHING
    assert cell(both, **{**where, "metric": "fid[attributes]"})["reported"] == NOT_REPORTED


def test_reasons_of_missing_values():
    records = [outputs("l2_mask", None, n=0, why="every mask was empty", model="stargan", defence="cmua")]
    table = build(records)["table_I"]

    def why(dataset, subject, method):
        row = cell(table, dataset=dataset, subject=subject, method=method, metric="l2_mask")
        assert row["measured"] == NOT_MEASURED
        return row["why"]

    assert why("CelebA", "StarGAN", "CMUA") == "record says: every mask was empty"
    assert "FF++O has no source in this run" in why("FF++O", "StarGAN", "CMUA")
    assert "no folder was named for LFW" in why("LFW", "StarGAN", "CMUA")
    assert "too slow for this preset" in why("CelebA", "HiSD", "TSDF")
    assert "AGGAN is not part of this run" in why("CelebA", "AGGAN", "TSDF")
    assert "FOUND is not part of this run" in why("CelebA", "StarGAN", "FOUND")
    assert "no record" in why("CelebA", "StarGAN", "TSDF")
    retrained = build([])["table_III"]
    where = {
        "dataset": "CelebA",
        "subject": "StarGAN",
        "method": "CMUA",
        "metric": "fid",
        "state": "retrained",
    }
    assert "retrained on Synthetic" in cell(retrained, **where)["why"]


def test_a_seed_without_value_is_told():
    records = [outputs("l2_mask", 0.3), outputs("l2_mask", None, n=0, why="empty", seed=1)]
    row = cell(
        build(records)["table_I"], dataset="CelebA", subject="StarGAN", method="CMUA", metric="l2_mask"
    )
    assert (row["measured"], row["seeds"]) == ("0.3", "0")
    assert "seed 1" in row["why"] and "empty" in row["why"]


def test_new_things_appear_by_themselves():
    known = plan()
    known["defences"]["mine"] = {"title": "Mine", "skip": None}
    known["deepfakes"]["newgan"] = {"title": "NewGAN", "skip": None}
    known["detectors"]["eye"] = {"title": "Eye", "skip": None}
    known["datasets"]["folder"] = {"title": "Folder", "skip": None}
    tables = build_tables([], known, REPORTED)
    assert "Mine" in set(tables["table_I"]["method"]) & set(tables["table_II"]["method"])
    assert "Mine" in set(tables["table_III"]["method"]) & set(tables["table_IV"]["method"])
    assert "Mine" in set(tables["table_V"]["method"]) & set(tables["table_VI"]["method"])
    assert "Eye" in set(tables["table_II"]["subject"])
    for name in ("table_I", "table_III", "table_V"):
        assert "NewGAN" in set(tables[name]["subject"])
    for name in ("table_I", "table_II", "table_VI"):
        assert "Folder" in set(tables[name]["dataset"])
    measured = build([outputs("lpips", 0.4), outputs("l2_mask", 0.1, model="other", dataset="elsewhere")])
    assert cell(measured["table_I"], metric="lpips", subject="StarGAN")["measured"] == "0.4"
    assert cell(measured["table_I"], dataset="elsewhere", subject="other")["measured"] == "0.1"


def test_the_order_is_the_papers_then_the_configs():
    table = build(a_run())["table_I"]
    assert list(dict.fromkeys(table["dataset"])) == ["CelebA", "LFW", "FF++O", "Synthetic"]
    of_celeba = table[table["dataset"] == "CelebA"]
    assert list(dict.fromkeys(of_celeba["subject"])) == ["StarGAN", "AGGAN", "AttGAN", "HiSD", "Avg"]
    first = of_celeba[of_celeba["subject"] == "StarGAN"]
    assert list(dict.fromkeys(first["metric"])) == TABLES["table_I"]["metrics"]
    assert list(first[first["metric"] == "l2_mask"]["method"]) == ["CMUA", "FOUND", "TSDF", "Random"]


def test_averages_name_their_models():
    records = [outputs("l2_mask", 0.2 + 0.1 * s, seed=s) for s in (0, 1)]
    records += [outputs("l2_mask", 0.4 + 0.3 * s, seed=s, model="attgan") for s in (0, 1)]
    row = cell(build(records)["table_I"], dataset="CelebA", subject="Avg", method="CMUA", metric="l2_mask")
    per_seed = [0.3, 0.5]
    assert (row["reported"], row["measured"]) == ("0.2", f"{statistics.mean(per_seed):.6g}")
    assert row["sd"] == f"{statistics.stdev(per_seed):.6g}"
    assert row["why"] == "mean over StarGAN and AttGAN; the paper's is over StarGAN, AGGAN, AttGAN and HiSD"
    uneven = cell(
        build(records[:3])["table_I"], dataset="CelebA", subject="Avg", method="CMUA", metric="l2_mask"
    )
    assert uneven["measured"] == f"{(0.25 + 0.4) / 2:.6g}"
    assert (uneven["sd"], uneven["seeds"]) == (NOTHING, NOTHING) and "different seeds" in uneven["why"]


def test_table_iv_is_the_mean_of_table_iii():
    tables = build(a_run(), training_set="synthetic")
    three, four = tables["table_III"], tables["table_IV"]
    for before, after in (("original", "before"), ("retrained", "after")):
        where = {"dataset": "Synthetic", "method": "TSDF", "metric": "ssim_released", "state": before}
        parts = [float(cell(three, subject=model, **where)["measured"]) for model in ("StarGAN", "AttGAN")]
        row = cell(four, **{**where, "state": after})
        assert float(row["measured"]) == pytest.approx(statistics.mean(parts), abs=1e-6)
        assert row["why"] == "mean over StarGAN and AttGAN"
    only = [r for r in a_run() if r["subject"].get("model") != "attgan"]
    row = cell(
        build(only)["table_IV"], dataset="Synthetic", method="TSDF", metric="ssim_released", state="after"
    )
    assert row["why"] == "mean over StarGAN; the paper's is over StarGAN and AttGAN"
    control = cell(four, dataset="Synthetic", method="Original", metric="ssim", state="before")
    assert "nothing to compare" in control["why"]


def test_table_v_has_healthy_poisoned_and_control():
    table = build(a_run(), training_set="synthetic")["table_V"]
    where = {"dataset": "Synthetic", "subject": "StarGAN", "metric": "fid_clean"}
    states = {row["method"]: row["state"] for row in table[table["subject"] == "StarGAN"].to_dict("records")}
    assert states == {
        NOTHING: "healthy",
        "Original": "retrained",
        "Random": "poisoned",
        "CMUA": "poisoned",
        "TSDF": "poisoned",
    }
    assert cell(table, method=NOTHING, **where)["measured_by"] == "fid_clean[attributes]"
    assert cell(table, method=NOTHING, **where)["seeds"] == NOTHING  # nothing of it hangs on a perturbation
    assert cell(table, method="TSDF", **where)["attacker"] == "RetinaFace"
    assert cell(table, **{**where, "metric": "edit_accuracy[Male]"}, method=NOTHING)["measured"] == "0.9"
    healthy = cell(table, **{**where, "dataset": "CelebA"}, method=NOTHING)
    assert healthy["reported"] == "43.77"


def test_what_a_record_remarks_stands_beside_its_number():
    records = [
        outputs("l2_mask", 0.1, state="retrained", detector="retinaface", seed=seed, defence=defence)
        for seed in (0, 1)
        for defence in ("cmua", "tsdf")
    ]
    remarks = ("retrained on 3", "not retrained", "retrained on 3", "on 5")
    for found, remark in zip(records, remarks, strict=True):
        found["extra"]["remark"] = remark
    table = build(records, training_set="celeba", seeds=[0, 1])["table_III"]
    where = {"dataset": "CelebA", "subject": "StarGAN", "metric": "l2_mask", "state": "retrained"}
    assert cell(table, method="CMUA", **where)["why"] == "retrained on 3"
    assert cell(table, method="TSDF", **where)["why"] == "seed 0: not retrained; seed 1: on 5"
    of_all = cell(table, method="CMUA", **{**where, "subject": AVERAGE})
    assert of_all["why"].endswith("; retrained on 3")
    other = outputs("l2_mask", 0.1, model="attgan", state="retrained", detector="retinaface", defence="cmua")
    other["extra"]["remark"] = "not retrained"
    table = build([*records, other], training_set="celeba", seeds=[0, 1])["table_III"]
    of_all = cell(table, method="CMUA", **{**where, "subject": AVERAGE})
    assert "; StarGAN: retrained on 3; AttGAN: not retrained" in of_all["why"]


def test_two_attackers_are_kept_apart():
    records = [outputs("l2_mask", 0.1, state="retrained", detector=d) for d in ("s3fd", "retinaface")]
    table = build(records, training_set="celeba")["table_III"]
    where = {"dataset": "CelebA", "subject": "StarGAN", "method": "CMUA", "metric": "l2_mask"}
    reported = cell(table, state="retrained", attacker="RetinaFace", **where)["reported"]
    assert reported == "0.07"
    assert cell(table, state="retrained", attacker="S3FD", **where)["reported"] == NOT_REPORTED
    assert ("l2_mask", "retrained, harvested by S3FD") in wide("table_III", table).columns


def test_what_the_attacker_leaves_alone_says_so():
    attacker = {"detector": "retinaface", "models": ["stargan"], "seeds": [0]}
    tables = build(a_run(), training_set="celeba", attacker=attacker)
    where = {"dataset": "CelebA", "subject": "AttGAN", "method": "TSDF"}
    for name, state in (("table_III", "retrained"), ("table_V", "poisoned")):
        found = cell(tables[name], state=state, metric="ssim", **where)
        assert found["measured"] == NOT_MEASURED and "does not retrain AttGAN" in found["why"]
    before = cell(tables["table_III"], state="original", metric="ssim", **where)
    assert "retrain" not in before["why"]


def test_where_the_attacker_works_on_one_seed_before_and_after_are_of_that_seed():
    records = [outputs("ssim", value, seed=seed) for seed, value in enumerate((0.2, 0.4))]
    records += [outputs("ssim", 0.9, seed=1, state="retrained", detector="retinaface")]
    attacker = {"detector": "retinaface", "seeds": [1]}
    tables = build(records, training_set="celeba", attacker=attacker, seeds=[0, 1])
    where = {"dataset": "CelebA", "method": "CMUA", "metric": "ssim"}
    for name, subject, before, after in (
        ("table_III", "StarGAN", "original", "retrained"),
        ("table_IV", "StarGAN+AttGAN", "before", "after"),
    ):
        for state, measured in ((before, "0.4"), (after, "0.9")):
            row = cell(tables[name], subject=subject, state=state, **where)
            assert (row["measured"], row["seeds"]) == (measured, "1")
            assert "works on seed 1 only" in row["why"]
    row = cell(tables["table_I"], subject="StarGAN", **where)
    assert (row["measured"], row["seeds"], row["why"]) == ("0.3", "0 1", NOTHING)


def test_what_the_attacker_never_meets_says_so():
    def of_cmuas_attack(subject):
        attacked = subject["kind"] == "harvest" or subject.get("state") == "retrained"
        return attacked and subject["defence"] == "cmua"

    records = [r for r in a_run() if not of_cmuas_attack(r["subject"])]
    about = {"dataset": "synthetic", "detector": "union", "defence": "tsdf"}
    records.append(record("harvest_yield", 0.9, kind="harvest", **about))
    attacker = {"detector": "retinaface", "defences": ["none", "tsdf"]}
    tables = build(records, training_set="synthetic", attacker=attacker)
    for name, subject, metric, state in (
        ("table_II", "RetinaFace", "harvest_yield[collected]", {}),
        ("table_II", "all detectors", "harvest_yield[collected]", {}),
        ("table_III", "StarGAN", "ssim", {"state": "retrained"}),
        ("table_IV", "StarGAN+AttGAN", "ssim", {"state": "after"}),
        ("table_V", "StarGAN", "ssim", {"state": "poisoned"}),
    ):
        where = {"dataset": "Synthetic", "subject": subject, "metric": metric, **state}
        found = cell(tables[name], method="CMUA", **where)
        assert found["measured"] == NOT_MEASURED and "does not collect faces of CMUA" in found["why"]
        assert cell(tables[name], method="TSDF", **where)["measured"] != NOT_MEASURED
    before = {"subject": "StarGAN", "method": "CMUA", "state": "original", "metric": "ssim"}
    assert cell(tables["table_III"], dataset="Synthetic", **before)["measured"] != NOT_MEASURED


def test_a_study_with_fewer_seeds_says_so():
    entry = {"title": "Study: s", "skip": None, "defences": {"cmua": {"title": "as it is", "skip": None}}}
    records = [outputs("l2_mask", value, seed=seed) for seed, value in enumerate((0.1, 0.2, 0.6))]
    where = {"dataset": "CelebA", "subject": "StarGAN", "method": "as it is", "metric": "l2_mask"}
    for seeds, measured, used in (([0, 1, 2], "0.3", "0 1 2"), ([1], "0.2", "1"), ([0, 2], "0.35", "0 2")):
        told = {
            "seeds": [0, 1, 2],
            "training_set": "celeba",
            "studies": {"table_s": {**entry, "seeds": seeds}},
        }
        tables = build(records, **told)
        row = cell(tables["table_s"], **where)
        assert (row["measured"], row["seeds"]) == (measured, used)
        assert ("only (its `seeds`)" in row["why"]) == (len(seeds) < 3)
        assert cell(tables["table_I"], **where | {"method": "CMUA"})["seeds"] == "0 1 2"


def test_a_defence_with_fewer_seeds_says_so():
    fewer = plan()["defences"]
    fewer["cmua"]["seeds"], fewer["tsdf"]["seeds"] = [1], [0, 1]
    records = [outputs("l2_mask", 0.2, seed=1), outputs("l2_mask", 0.3, defence="tsdf", seed=0)]
    table = build(records, defences=fewer)["table_I"]
    where = {"dataset": "CelebA", "subject": "StarGAN", "metric": "l2_mask"}
    assert "CMUA is measured with seed 1 only (its `seeds`)" in cell(table, method="CMUA", **where)["why"]
    assert "only" not in cell(table, method="TSDF", **where)["why"]
    # What the attacker retrains on are his seeds, not those.
    states = {"original": {}, "retrained": {"detector": "retinaface"}}
    records = [
        outputs("l2_mask", 0.2, dataset="synthetic", seed=seed, state=state, **more)
        for state, more in states.items()
        for seed in ([1] if state == "original" else [0, 1])
    ]
    table = build(records, defences=fewer)["table_III"]
    where["dataset"] = "Synthetic"
    for state, said in (("original", True), ("retrained", False)):
        row = cell(table, method="CMUA", state=state, **where)
        assert ("is measured with seed 1 only" in row["why"]) == said and row["measured"] == "0.2"


def test_means_compare_the_same_models_before_and_after():
    values = {("stargan", "original"): 0.4, ("attgan", "original"): 0.6, ("stargan", "retrained"): 0.8}
    records = [
        outputs(
            "ssim",
            value,
            model=model,
            state=state,
            **({"detector": "retinaface"} if state != "original" else {}),
        )
        for (model, state), value in values.items()
    ]
    told = {"training_set": "celeba", "attacker": {"detector": "retinaface", "models": ["stargan"]}}
    for name, subject, states in (
        ("table_III", "Avg", ("original", "retrained")),
        ("table_IV", "StarGAN+AttGAN", ("before", "after")),
    ):
        where = {"dataset": "CelebA", "subject": subject, "method": "CMUA", "metric": "ssim"}
        found = [cell(build(records, **told)[name], state=state, **where) for state in states]
        assert [row["measured"] for row in found] == ["0.4", "0.8"], name
        assert all("mean over StarGAN;" in row["why"] for row in found)
    told["attacker"]["models"] = ["hisd"]
    found = cell(build(records[:2], **told)["table_IV"], state="after", **where)
    assert "the attacker does not retrain StarGAN and AttGAN" in found["why"]
    assert cell(build(records[:2], **told)["table_IV"], state="before", **where)["measured"] == "0.5"


@pytest.mark.parametrize("state", ["original", "retrained"])
def test_a_cell_measured_twice_is_refused(state):
    with pytest.raises(HoldfastError, match="two records measure l2_mask"):
        build([outputs("l2_mask", 0.1, state=state), outputs("l2_mask", 0.2, state=state)])


def test_bad_subjects_and_plans_are_refused():
    with pytest.raises(HoldfastError, match="tau"):
        build([outputs("l2_mask", 0.1, tau=0.03)])
    with pytest.raises(HoldfastError, match="'model'"):
        build([outputs("l2_mask", 0.1, model=None)])
    with pytest.raises(HoldfastError, match="state"):
        build([outputs("l2_mask", 0.1, state="tired")])
    same = plan()
    same["defences"]["other"] = {"title": "TSDF", "skip": None}
    with pytest.raises(HoldfastError, match="tsdf and other"):
        build_tables([], same, REPORTED)


def test_studies_are_passed_over():
    study = record("l2_mask", 0.1, kind="study", dataset="celeba", tau=0.03)
    assert build([study])["table_I"].equals(build([])["table_I"])


@settings(max_examples=5, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_records_does_not_matter(shuffler: random.Random):
    records = a_run()
    straight = build(records)
    shuffler.shuffle(records)
    for name, table in build(records).items():
        assert table.equals(straight[name]), name


def test_files_are_identical_and_read_back_equal(tmp_path):
    tables = build(a_run())
    paths = write_tables(tables, tmp_path / "one")
    write_tables(build(a_run()), tmp_path / "two")
    assert [path.name for path in paths] == [f"{name}.csv" for name in TABLES]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    for name, table in read_tables(tmp_path / "one").items():
        assert table.equals(tables[name])
    with pytest.raises(HoldfastError, match="table_I.csv"):
        read_tables(tmp_path / "three")


def test_wide_reads_like_the_paper():
    tables = build([outputs("l2_mask", 0.246813), outputs("sr_mask", 0.5, defence="random")])
    one = wide("table_I", tables["table_I"])
    assert one.loc[("CelebA", "StarGAN"), ("l2_mask", "CMUA")] == "0.21 / 0.2468"
    assert one.loc[("CelebA", "AGGAN"), ("fid", "FOUND")] == "224.97 / –"
    assert one.loc[("CelebA", "StarGAN"), ("sr_mask", "Random")] == "– / 0.5"
    assert list(dict.fromkeys(one.columns.get_level_values(0))) == TABLES["table_I"]["metrics"]
    two = wide("table_II", tables["table_II"])
    assert two.loc[("f1_released", "Face Poison"), ("LFW", "S3FD")] == "0.96 / –"
    assert wide("table_V", tables["table_V"]).loc[
        ("CelebA", "AttGAN", "TSDF", "poisoned"), ("ssim_released",)
    ] == ("0.68 / –")


def test_table_iii_keeps_to_data_sets_where_something_is_retrained():
    table = build(a_run())["table_III"]
    of_celeba = table[table["dataset"] == "CelebA"]
    assert set(of_celeba["method"]) == {"CMUA", "FOUND"}
    row = cell(of_celeba, subject="StarGAN", method="CMUA", metric="ssim_released", state="original")
    assert row["reported"] == "0.48" and row["measured"] != NOT_MEASURED
    assert set(table[table["dataset"] == "Synthetic"]["method"]) == {"CMUA", "Random", "TSDF"}
    assert "LFW" not in set(table["dataset"])


def test_what_is_left_out_keeps_its_title(tmp_path):
    from holdfast import config, modules
    from holdfast.stages.publish import plan_of

    left_out = tmp_path / "left_out.yaml"
    left_out.write_text("deepfakes: {hisd: {skip: no time}}\ndefences: {found: {skip: no time}}\n")
    known = plan_of(config.read(modules.PACKAGE.parents[1] / "config.yaml", left_out))
    assert known["deepfakes"]["hisd"] == {"title": "HiSD", "skip": "no time"}
    where = {"dataset": "CelebA", "subject": "StarGAN", "metric": "l2_mask", "method": "FOUND"}
    assert "no time" in cell(build_tables([], known, REPORTED)["table_I"], **where)["why"]


def test_every_method_of_the_paper_is_a_defence_of_the_config():
    from holdfast import config, modules
    from holdfast.stages.publish import plan_of

    known = plan_of(config.read(modules.PACKAGE.parents[1] / "config.yaml"))
    paper = REPORTED[REPORTED["paper"] == "tsdf"]
    titles = {entry["title"] for entry in known["defences"].values()}
    # Healthy models have no method, and Tables VII and VIII compare variants of TSDF itself.
    assert set(paper[paper["table"].isin(["I", "II", "III", "IV", "VI"])]["method"]) <= titles
    tables = build_tables([], known, REPORTED)
    where = {"dataset": "CelebA", "metric": "f1_released", "subject": "RetinaFace"}
    reported = {m: cell(tables["table_II"], method=m, **where)["reported"] for m in ("SSOD", "Face Poison")}
    assert reported == {"SSOD": "0.9", "Face Poison": "0.96"}
    for name, method in (("table_I", "FOUND"), ("table_II", "SSOD"), ("table_VI", "FOUND")):
        rows = tables[name][(tables[name]["method"] == method) & (tables[name]["dataset"] == "CelebA")]
        assert len(rows) and all("no record" in why or "none of" in why for why in rows["why"])
    ours = tables["table_II"][tables["table_II"]["method"] == "Face Poison (universal)"]
    assert len(ours) and set(ours["reported"]) == {NOT_REPORTED}
    assert len(set(tables["table_II"]["method"])) == len(known["defences"])
