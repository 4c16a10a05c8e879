"""The TSDF paper's tables, reported beside measured, from the records of a run: I to VI, and the studies'.

Each table is tidy: one row per cell, all columns text, no cell blank.

================  =====================================================================================
column            meaning
================  =====================================================================================
dataset           title of the data set
subject           deepfake model, detector, "protected image", "Avg" or "StarGAN+AttGAN"
method            title of the defence, of a study: what the variant sets; "-" for Table V's healthy models
metric            name as in records; ``fid`` and ``fid_clean`` whichever network gave the features
state             Tables III to V: original | retrained, before | after, healthy | poisoned | retrained
attacker          Tables III to V: whose detections the attacker harvested; "-" before retraining
reported          the paper's number, or "not reported"
measured          mean over the seeds, or "not measured"
sd                sample standard deviation over the seeds (ddof = 1), "-" for fewer than two
n                 what each seed's value was computed from; "fewest-most" where that differs
seeds             the seeds, separated by spaces, or "-" for what has none
measured_by       exact name of the metric that was measured, such as ``fid[attributes]``
why               reason of a missing value or what to know about this one; "-" where there is nothing
================  =====================================================================================

The rows are the union of what the paper reports, what the plan holds and what the records hold, so a new
data set, model, detector, defence or metric appears without a change here. The paper's SSIM follows the
rule ``ssim_released`` and its F1 the rule ``f1_released`` (the released code's); the reported cells stand
beside these, and the sound ``ssim`` and ``f1_truth`` have rows of their own.

A study (holdfast.studies) has a table of this form too: the paper's Table VII or VIII, or one of its own. It
has all that was measured of its variants, on edits, on detectors and on the photograph, whose likeness to
the original is called ``psnr[protected]`` and so on; the variants stand in no other table.
"""

import functools
import math
from pathlib import Path

import pandas as pd

from holdfast.errors import HoldfastError
from holdfast.files import write_text
from holdfast.papers.cells import (
    averages,
    keys_of,
    keys_of_study,
    means_of_pair,
    model_state,
    placed,
    with_seeds,
)
from holdfast.papers.layouts import (
    AVERAGE,
    COLLECTED,
    COMPARING,
    DETECTION,
    IMAGES,
    KEY,
    LIKENESS,
    NOTHING,
    OUTPUTS,
    PAIR,
    RETRAINED,
    STUDY,
    TABLES,
    layout_named,
    metric_rank,
)
from holdfast.papers.names import Names
from holdfast.papers.rows import row_of


def build_tables(records, plan, reported, only=None):
    """Tables I to VI, and those of the studies.

    Args:
        records: dictionaries as of ``holdfast.records``; subjects of other kinds than outputs, images,
            detection, harvest and model belong to other tables and are passed over.
        plan: what the config asks for: ``training_set`` (name), ``datasets``, ``deepfakes``,
            ``detectors`` and ``defences`` (each {name: {"title": text, "skip": None or the reason}}, in
            the order of the config; titles as in the paper; a defence may have ``seeds`` of its own, those
            that it is measured with), ``seeds``, and optionally ``attacker``
            ({"detector": name, "models": names, "defences": names, "seeds": seeds}: his detector stands
            beside the reported cells where several harvested, and he retrains only these models, on what
            these defences protect with these seeds) and
            ``studies`` ({table name: {"title": text, "defences": as above, those of the study, "seeds": those
            that it is run with, without the key all}}).
        reported: DataFrame of :func:`holdfast.papers.reported.load_reported`.
        only: names of the tables that are wanted; None: all.

    Returns:
        dict of table name ("table_I" ...) to DataFrame; see the module's text for the columns.

    Raises:
        HoldfastError: two things of the plan share a title, a subject lacks a key or has an unknown one,
            or two records measure the same cell.
    """
    names = Names(plan)
    owners = dict.fromkeys(TABLES, names)
    studied = {name: study["defences"] for name, study in plan.get("studies", {}).items()}
    variants = {defence for defences in studied.values() for defence in defences} - set(plan["defences"])
    cells = placed([r for r in records if r["subject"].get("defence") not in variants], names, keys_of)
    cells["table_III"] = with_seeds(cells.get("table_III", {}), names.attackers_seeds)
    cells["table_IV"] = means_of_pair(cells["table_III"], names)
    for name, defences in studied.items():
        seeds = plan["studies"][name].get("seeds", plan["seeds"])
        owners[name] = Names({**plan, "defences": defences}, seeds)
        of_study = [r for r in records if r["subject"].get("defence") in defences]
        of_study = [r for r in of_study if r["subject"].get("seed") in seeds]
        cells |= placed(of_study, owners[name], functools.partial(keys_of_study, name))
    return {
        name: _table(name, cells.get(name, {}), owner, reported[reported["paper"] == "tsdf"])
        for name, owner in owners.items()
        if only is None or name in only
    }


def _table(name, cells, names, paper):
    layout, attacker = layout_named(name), _first_attacker(cells, names)
    told = _reported_cells(name, paper[paper["table"] == name.removeprefix("table_")], attacker)
    if name in COMPARING:
        # Outputs are measured on all data sets, but these tables compare before with after: of a data
        # set on which nothing was retrained only what stands beside a reported cell belongs here.
        whole = {names.training} | {key[0] for key in cells if key[4] in ("retrained", "after")}
        beside = {key[:3] for key in told}
        cells = {k: c for k, c in cells.items() if k[0] in whole or k[:3] in beside}
    if name in ("table_I", "table_III"):
        models = list(dict.fromkeys(key[1] for key in told if key[1] != AVERAGE))
        cells = cells | averages(cells, models, names.compared(models) if layout["states"] else models)
    keys = set(told) | set(cells) | _planned(name, layout, names, attacker)
    harvests = [key for key in cells if key[3].endswith(COLLECTED)]
    keys |= {(*key[:2], method, *key[3:]) for key in harvests for method in names.uncollected}
    rank = _ranking(layout, told, names)
    rows = [row_of(name, key, cells.get(key), told, names) for key in sorted(keys, key=rank)]
    columns = ["dataset", "subject", "method", "metric"]
    columns += ["state", "attacker"] if layout["states"] else []
    columns += ["reported", "measured", "sd", "n", "seeds", "measured_by", "why"]
    return pd.DataFrame(rows, columns=columns)


def _first_attacker(cells, names):
    """The attacker beside whom the reported cells stand."""
    found = {key[5] for key in cells} - {NOTHING}
    order = [names.attacker, *names.titles("detectors"), *sorted(found)]
    return next((title for title in order if title in found), names.attacker or NOTHING)


def _reported_cells(name, paper, attacker):
    """{key: number}, with our names of the metrics."""
    renamed = {"ssim": "ssim_released", "f1": "f1_released"}
    if name == "table_V":
        renamed["fid"] = "fid_clean"
    cells = {}
    for cell in paper.to_dict("records"):
        metric, state = renamed.get(cell["metric"], cell["metric"]), cell["state"] or NOTHING
        method = NOTHING if state == "healthy" else cell["method"]
        who = attacker if state in RETRAINED else NOTHING
        cells[cell["dataset"], cell["subject"], method, metric, state, who] = cell["value"]
    return cells


def _planned(name, layout, names, attacker):
    """Keys of all cells that a complete run of the plan measures."""
    datasets = names.titles("datasets", skipped=False)
    if layout["states"]:
        datasets = [title for title in datasets if title == names.training]
    defences = names.titles("defences")
    protecting = [title for title in defences if title != names.control]
    models = names.titles("deepfakes")
    if layout is STUDY:
        whole = [(model, metric) for model in models for metric in OUTPUTS]
        whole += [(d, metric) for d in names.titles("detectors") for metric in DETECTION]
        whole += [(IMAGES, f"{metric}[protected]") for metric in LIKENESS]
        return {(names.training, s, m, metric, NOTHING, NOTHING) for s, metric in whole for m in defences}
    if name == "table_II":
        combinations = [
            (d, s, m, NOTHING, NOTHING) for d in datasets for s in names.titles("detectors") for m in defences
        ]
    elif name == "table_VI":
        combinations = [(d, IMAGES, m, NOTHING, NOTHING) for d in datasets for m in protecting]
    elif name == "table_V":
        combinations = [(d, s, NOTHING, "healthy", NOTHING) for d in datasets for s in models]
        combinations += [
            (d, s, m, model_state("retrained", m, names), attacker)
            for d in datasets
            for s in models
            for m in defences
        ]
    else:
        subjects = [PAIR] if name == "table_IV" else [*models, AVERAGE]
        methods = defences if name == "table_IV" else protecting
        first, *later = layout["states"] or [NOTHING]
        combinations = [
            (d, s, m, state, attacker if state in later else NOTHING)
            for d in datasets
            for s in subjects
            for m in methods
            for state in (first, *later)
        ]
    return {
        (d, s, m, metric, state, who) for d, s, m, state, who in combinations for metric in layout["metrics"]
    }


def _ranking(layout, told, names):
    """Sorting key of keys: the paper's order first, then the config's, then by name."""
    groups = {"dataset": "datasets", "method": "defences", "attacker": "detectors"}
    groups["subject"] = "detectors" if layout["kind"] == "detection" else "deepfakes"
    orders = {}
    for part, group in groups.items():
        position = KEY.index(part)
        titles = [NOTHING, *(key[position] for key in told), *names.titles(group)]
        if part == "subject" and layout is STUDY:
            titles += names.titles("detectors")
        orders[part] = {title: i for i, title in reversed(list(enumerate(titles)))}
    orders["subject"][AVERAGE] = math.inf  # below all models, new ones too
    rank_of_metric = metric_rank(layout)

    def rank(key):
        row = dict(zip(KEY, key, strict=True))
        parts = []
        for part in layout["order"]:
            if part == "metric":
                parts.append(rank_of_metric(row[part]))
            elif part == "state":
                parts.append(layout["states"].index(row[part]))
            else:
                order = orders[part]
                parts.append(
                    (order.get(row[part], len(order) + len(names.groups["datasets"]) + 1e6), row[part])
                )
        return parts

    return rank


def titles_of_tables(plan):
    """{name: title} of all tables of a plan, in their order."""
    titles = {name: layout["title"] for name, layout in TABLES.items()}
    return titles | {name: study["title"] for name, study in plan.get("studies", {}).items()}


def write_tables(tables, folder):
    """Write each table as <folder>/<name>.csv (UTF-8, newline "\\n"); returns the paths.

    Raises:
        HoldfastError: the disk refuses.
    """
    paths = []
    for name, table in tables.items():
        paths.append(Path(folder) / f"{name}.csv")
        write_text(paths[-1], table.to_csv(index=False, lineterminator="\n"))
    return paths


def read_tables(folder, names=tuple(TABLES)):
    """The tables of these names that :func:`write_tables` wrote, equal to what it was given.

    Raises:
        HoldfastError: a table is missing.
    """
    tables = {}
    for name in names:
        path = Path(folder) / f"{name}.csv"
        try:
            tables[name] = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise HoldfastError(f"cannot read {path}", found=str(error), expected="a table as CSV") from error
    return tables
