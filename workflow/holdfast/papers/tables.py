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
import statistics
from pathlib import Path

import pandas as pd

from holdfast.errors import HoldfastError
from holdfast.files import write_text

NOT_MEASURED, NOT_REPORTED, NOTHING = "not measured", "not reported", "-"

_OUTPUTS = ["l2_mask", "sr_mask", "fid", "psnr", "ssim_released", "ssim"]
_DETECTION = ["f1_released", "f1_truth", "harvest_yield", "false_positives"]
_LIKENESS = ["psnr", "ssim_released", "ssim"]

#: Titles of what is no entry of the config, or has none there: the control, and all detectors together.
OWN_TITLES = {("defences", "none"): "Original", ("detectors", "union"): "all detectors"}
_UNION = OWN_TITLES["detectors", "union"]

#: What each table holds. `metrics` are expected of every run; others appear where they were recorded.
#: `order` sorts the rows like the paper; `index` and `columns` lay the table out like the paper.
TABLES = {
    "table_I": {
        "title": "Table I: interruption, G(x) against G(x')",
        "kind": "outputs",
        "metrics": _OUTPUTS,
        "states": [],
        "order": ["dataset", "subject", "metric", "method"],
        "index": ["dataset", "subject"],
        "columns": ["metric", "method"],
    },
    "table_II": {
        "title": "Table II: face detectors on protected images",
        "kind": "detection",
        "metrics": ["f1_released"],
        "states": [],
        "order": ["metric", "method", "dataset", "subject"],
        "index": ["metric", "method"],
        "columns": ["dataset", "subject"],
    },
    "table_III": {
        "title": "Table III: interruption before and after the attacker retrains on protected images",
        "kind": "outputs",
        "metrics": _OUTPUTS,
        "states": ["original", "retrained"],
        "order": ["dataset", "method", "subject", "metric", "state", "attacker"],
        "index": ["dataset", "method", "subject"],
        "columns": ["metric", "state"],
    },
    "table_IV": {
        "title": "Table IV: persistence, the mean over StarGAN and AttGAN before and after retraining",
        "kind": "outputs",
        "metrics": ["ssim_released", "ssim", "fid"],
        "states": ["before", "after"],
        "order": ["dataset", "subject", "method", "metric", "state", "attacker"],
        "index": ["dataset", "method"],
        "columns": ["metric", "state"],
    },
    "table_V": {
        "title": "Table V: deepfake models on clean inputs, healthy and after retraining, x against G(x)",
        "kind": "model",
        "metrics": ["fid_clean", "ssim_released", "ssim"],
        "states": ["healthy", "retrained", "poisoned"],
        "order": ["dataset", "subject", "state", "method", "attacker", "metric"],
        "index": ["dataset", "subject", "method", "state"],
        "columns": ["metric"],
    },
    "table_VI": {
        "title": "Table VI: likeness of protected and original images, x against x'",
        "kind": "images",
        "metrics": ["ssim_released", "ssim", "psnr"],
        "states": [],
        "order": ["dataset", "metric", "method"],
        "index": ["dataset"],
        "columns": ["metric", "method"],
    },
}

#: What the table of every study holds.
STUDY = {
    "kind": "study",
    "metrics": [*_OUTPUTS, *_DETECTION],
    "states": [],
    "order": ["dataset", "method", "metric", "subject"],
    "index": ["dataset", "method"],
    "columns": ["metric", "subject"],
}

_DOWN_BETWEEN_OUTPUTS = {"psnr": "down", "ssim_released": "down", "ssim": "down", "l2_mask": "up"}
_OF_DETECTION = {"f1_released": "down", "f1_truth": "down", "harvest_yield": "down", "ap": "down"}
#: The defender's direction, by table and metric; fid[...] counts as fid.
DIRECTIONS = {
    "table_I": {**_DOWN_BETWEEN_OUTPUTS, "sr_mask": "up", "fid": "up"},
    "table_II": _OF_DETECTION,
    "table_III": {**_DOWN_BETWEEN_OUTPUTS, "sr_mask": "up", "fid": "up"},
    "table_IV": {"ssim_released": "down", "ssim": "down", "fid": "up"},
    "table_V": {
        "fid_clean": "up",
        "ssim_released": "down",
        "ssim": "down",
        "psnr": "down",
        "edit_accuracy": "down",
    },
    "table_VI": {"ssim_released": "up", "ssim": "up", "psnr": "up"},
}
_DIRECTIONS_OF_STUDY = {
    **_DOWN_BETWEEN_OUTPUTS,
    "sr_mask": "up",
    "fid": "up",
    **_OF_DETECTION,
    **{f"{metric}[protected]": "up" for metric in _LIKENESS},
}

# These compare before with after: the same models, and the seeds on which the attacker works.
_COMPARING = ("table_III", "table_IV")
AVERAGE, PAIR, PAIR_MODELS = "Avg", "StarGAN+AttGAN", ("StarGAN", "AttGAN")
_IMAGES = "protected image"
_RETRAINED = ("retrained", "after", "poisoned")  # states of models on which the attacker has worked
# Ends the metrics of the training split, which the attacker collects; all others are of the test split.
_COLLECTED = "[collected]"
_KEY = ("dataset", "subject", "method", "metric", "state", "attacker")
_KINDS = {"outputs", "images", "detection", "harvest", "model"}
_SUBJECT_KEYS = {
    "kind",
    "dataset",
    "model",
    "detector",
    "defence",
    "seed",
    "state",
    "attribute",
    "pair",
}
_GROUPS = {
    "datasets": "data set",
    "deepfakes": "deepfake model",
    "detectors": "face detector",
    "defences": "defence",
}
_UNPROTECTED = "without a defence the protected image is the original one, so there is nothing to compare"


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
    names = _Names(plan)
    owners = dict.fromkeys(TABLES, names)
    studied = {name: study["defences"] for name, study in plan.get("studies", {}).items()}
    variants = {defence for defences in studied.values() for defence in defences} - set(plan["defences"])
    cells = _place([r for r in records if r["subject"].get("defence") not in variants], names, _keys)
    cells["table_III"] = _with_seeds(cells.get("table_III", {}), names.attackers_seeds)
    cells["table_IV"] = _means_of_pair(cells["table_III"], names)
    for name, defences in studied.items():
        seeds = plan["studies"][name].get("seeds", plan["seeds"])
        owners[name] = _Names({**plan, "defences": defences}, seeds)
        of_study = [r for r in records if r["subject"].get("defence") in defences]
        of_study = [r for r in of_study if r["subject"].get("seed") in seeds]
        cells |= _place(of_study, owners[name], functools.partial(_keys_of_study, name))
    return {
        name: _table(name, cells.get(name, {}), owner, reported[reported["paper"] == "tsdf"])
        for name, owner in owners.items()
        if only is None or name in only
    }


def _table(name, cells, names, paper):
    layout, attacker = layout_named(name), _first_attacker(cells, names)
    told = _reported_cells(name, paper[paper["table"] == name.removeprefix("table_")], attacker)
    if name in _COMPARING:
        # Outputs are measured on all data sets, but these tables compare before with after: of a data
        # set on which nothing was retrained only what stands beside a reported cell belongs here.
        whole = {names.training} | {key[0] for key in cells if key[4] in ("retrained", "after")}
        beside = {key[:3] for key in told}
        cells = {k: c for k, c in cells.items() if k[0] in whole or k[:3] in beside}
    if name in ("table_I", "table_III"):
        models = list(dict.fromkeys(key[1] for key in told if key[1] != AVERAGE))
        cells = cells | _averages(cells, models, names.compared(models) if layout["states"] else models)
    keys = set(told) | set(cells) | _planned(name, layout, names, attacker)
    harvests = [key for key in cells if key[3].endswith(_COLLECTED)]
    keys |= {(*key[:2], method, *key[3:]) for key in harvests for method in names.uncollected}
    rank = _ranking(layout, told, names)
    rows = [_row(name, key, cells.get(key), told, names) for key in sorted(keys, key=rank)]
    columns = ["dataset", "subject", "method", "metric"]
    columns += ["state", "attacker"] if layout["states"] else []
    columns += ["reported", "measured", "sd", "n", "seeds", "measured_by", "why"]
    return pd.DataFrame(rows, columns=columns)


def layout_named(name):
    """The layout of a table: its own, or that of every study."""
    return TABLES.get(name, STUDY)


def titles_of_tables(plan):
    """{name: title} of all tables of a plan, in their order."""
    titles = {name: layout["title"] for name, layout in TABLES.items()}
    return titles | {name: study["title"] for name, study in plan.get("studies", {}).items()}


def direction(name, metric):
    """The defender's direction of a metric in a table: "up", "down", or None where there is none."""
    known = DIRECTIONS.get(name, _DIRECTIONS_OF_STUDY)
    return known.get(metric, known.get(metric.partition("[")[0]))


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


def wide(name, table):
    """A table laid out like the paper's: each cell "reported / measured", "–" for a missing number.

    Args:
        name: "table_I" ...; table: its tidy DataFrame.

    Returns:
        DataFrame of text with the paper's rows as index and its columns as columns; "" where the tidy
        table has no such cell.
    """
    rows, columns, cells = layout_of(name, table)
    text = [[_beside(cells.get((row, column))) for column in columns] for row in rows]
    layout = layout_named(name)
    return pd.DataFrame(
        text,
        index=pd.MultiIndex.from_tuples(rows, names=layout["index"]),
        columns=pd.MultiIndex.from_tuples(columns, names=layout["columns"]),
        dtype=object,
    )


def layout_of(name, table):
    """Rows and columns of the paper's layout, and which tidy row stands where.

    Metrics that the paper does not have for this table come after its own. Where more than one attacker
    harvested, the state names him.

    Returns:
        list of row labels (tuples), list of column labels (tuples), {(row, column): tidy row as a dict}.
    """
    layout = layout_named(name)
    several = "attacker" in table and table["attacker"].replace(NOTHING, pd.NA).nunique() > 1
    rows, columns, cells = {}, {}, {}
    for cell in table.to_dict("records"):
        place = dict(cell)
        if several and cell["attacker"] != NOTHING:
            place["state"] = f"{cell['state']}, harvested by {cell['attacker']}"
        row = tuple(place[part] for part in layout["index"])
        column = tuple(place[part] for part in layout["columns"])
        rows.setdefault(row)
        columns.setdefault(column)
        cells[row, column] = cell
    # The rows of a tidy table come in the paper's order, but a column may first be met late.
    parts = [list(dict.fromkeys(column[i] for column in columns)) for i in range(len(layout["columns"]))]
    for i, part in enumerate(layout["columns"]):
        if part == "metric":
            parts[i] = sorted(parts[i], key=_metric_rank(layout))
        if part == "state":
            parts[i] = sorted(parts[i], key=lambda state: layout["states"].index(state.split(",")[0]))
    ordered = sorted(columns, key=lambda column: [parts[i].index(label) for i, label in enumerate(column)])
    return list(rows), ordered, cells


def short(text, digits=4):
    """A number of a table to a few significant digits; any other text as it is."""
    try:
        return f"{float(text):.{digits}g}"
    except ValueError:
        return text


def _beside(cell):
    if cell is None:
        return ""
    reported = "–" if cell["reported"] == NOT_REPORTED else cell["reported"]
    measured = "–" if cell["measured"] == NOT_MEASURED else short(cell["measured"])
    return f"{reported} / {measured}"


class _Names:
    """Titles of the plan's names, and why something with a title was not measured."""

    def __init__(self, plan, seeds=None):
        self.groups = {}
        for group, word in _GROUPS.items():
            entries = {name: entry.get("title", name) for name, entry in plan[group].items()}
            for title in entries.values():
                owners = [name for name, other in entries.items() if other == title]
                if len(owners) > 1:
                    raise HoldfastError(
                        f"the {word}s {' and '.join(owners)} share a title",
                        found=title,
                        expected="one title each, or their rows could not be told apart",
                        repair=f"give one of them another title under {group} in the config",
                    )
            self.groups[group] = entries
        self.skips = {
            (group, self.groups[group][name]): entry["skip"]
            for group in _GROUPS
            for name, entry in plan[group].items()
            if entry.get("skip")
        }
        self.training = self.title("datasets", plan["training_set"])
        attacker = plan.get("attacker") or {}
        chosen, retrained = attacker.get("detector"), attacker.get("models")
        self.attacker = self.title("detectors", chosen) if chosen else None
        #: Titles of the models that the attacker does not retrain, and of the defences that he never meets.
        self.left_alone = self._others("deepfakes", retrained)
        self.uncollected = self._others("defences", attacker.get("defences"))
        #: The seeds whose harvest he retrains on, and those of this study, where these are not all.
        self.attackers_seeds = _fewer(attacker.get("seeds"), plan["seeds"])
        self.studys_seeds = _fewer(seeds, plan["seeds"])
        self.defences_seeds = {
            entry.get("title", name): _fewer(entry.get("seeds"), plan["seeds"])
            for name, entry in plan["defences"].items()
        }

    def _others(self, group, chosen):
        running = self.titles(group, skipped=False)
        chosen = running if chosen is None else [self.title(group, name) for name in chosen]
        return [title for title in running if title not in chosen]

    def compared(self, models):
        """Of these models those of which there is a before and an after; all if there is none such."""
        return [title for title in models if title not in self.left_alone] or models

    def title(self, group, name):
        return self.groups[group].get(name, OWN_TITLES.get((group, name), name))

    def titles(self, group, skipped=True):
        """Titles in the order of the config."""
        return [t for t in self.groups[group].values() if skipped or (group, t) not in self.skips]

    @property
    def control(self):
        """Title of the defence `none`."""
        return self.title("defences", "none")

    def absent(self, group, title):
        """Why nothing with this title was measured, or None."""
        if (group, title) in self.skips:
            return f"{title} is left out: {self.skips[group, title]}"
        if title not in self.groups[group].values():
            ending = "has no source" if group == "datasets" else "is not part"
            return f"the {_GROUPS[group]} {title} {ending} {'of' if group != 'datasets' else 'in'} this run"
        return None


def _fewer(seeds, all_seeds):
    return seeds if seeds and len(seeds) < len(all_seeds) else []


def _place(records, names, keys):
    """{table: {key: {seed: record}}}, None being the seed of what has none (a model that was not retrained);
    `keys` gives the tables and keys of a record.
    """
    known = [record for record in records if record["subject"].get("kind") in _KINDS]
    networks = {base: _network(known, base) for base in ("fid", "fid_clean")}
    cells = {}
    for record in known:
        subject = record["subject"]
        _check_subject(subject)
        metric = _row_metric(record["metric"], networks)
        if metric is None:
            continue
        for table, key in keys(subject, metric, names):
            by_seed = cells.setdefault(table, {}).setdefault(key, {})
            if subject.get("seed") in by_seed:
                raise HoldfastError(
                    f"two records measure {record['metric']} of the same subject",
                    found=", ".join(f"{name}={value}" for name, value in subject.items()),
                    expected="each measurement once",
                    repair="remove one of the records files and run again",
                )
            by_seed[subject.get("seed")] = record
    return cells


def _with_seeds(cells, seeds):
    """Cells with these seeds only; with all if there are none."""
    if not seeds:
        return cells
    return {
        key: {seed: record for seed, record in by_seed.items() if seed in seeds}
        for key, by_seed in cells.items()
    }


def _check_subject(subject):
    needed = {
        "outputs": ("dataset", "model", "defence", "state"),
        "images": ("dataset", "defence"),
        "detection": ("dataset", "detector", "defence"),
        "harvest": ("dataset", "detector", "defence"),
        "model": ("dataset", "model", "state"),
    }[subject["kind"]]
    told = ", ".join(f"{name}={value}" for name, value in subject.items())
    for name in needed:
        if subject.get(name) is None:
            raise HoldfastError(f"a record's subject lacks '{name}'", found=told, expected=", ".join(needed))
    unknown = sorted(set(subject) - _SUBJECT_KEYS)
    if unknown:
        raise HoldfastError(
            f"a record's subject has the unknown key '{unknown[0]}'",
            found=told,
            expected=", ".join(sorted(_SUBJECT_KEYS)),
            repair="give studies a `kind` of their own; they are no part of Tables I to VI",
        )
    states = {"outputs": ("original", "retrained"), "model": ("healthy", "retrained")}.get(subject["kind"])
    if states and subject["state"] not in states:
        raise HoldfastError(
            "a record's subject has an unknown state", found=subject["state"], expected=" or ".join(states)
        )


def _network(records, base):
    """Which metric fills the rows of `base`: itself, or else the first fid[NAME] that was measured."""
    measured = {r["metric"] for r in records if r["value"] is not None}
    others = sorted(metric for metric in measured if metric.startswith(f"{base}["))
    return base if base in measured or not others else others[0]


def _row_metric(metric, networks):
    for base, chosen in networks.items():
        if metric == chosen:
            return base
        if metric == base:  # without a value, while another network has one
            return None
    return metric


def _keys(subject, metric, names):
    """The tables and keys of a record."""
    kind, state = subject["kind"], subject.get("state")
    dataset = names.title("datasets", subject["dataset"])
    defence = subject.get("defence")
    method = names.title("defences", defence) if defence is not None else NOTHING
    if kind in ("detection", "harvest"):
        detector = names.title("detectors", subject["detector"])
        if kind == "harvest":
            metric += _COLLECTED
        yield "table_II", (dataset, detector, method, metric, NOTHING, NOTHING)
        return
    if kind == "images":
        yield "table_VI", (dataset, _IMAGES, method, metric, NOTHING, NOTHING)
        return
    model, attacker = names.title("deepfakes", subject["model"]), NOTHING
    if state == "retrained":
        detector = subject.get("detector")
        attacker = names.title("detectors", detector) if detector else names.attacker or "not stated"
    if kind == "model":
        if subject.get("attribute") not in (None, "mean"):
            metric = f"{metric}[{subject['attribute']}]"
        method = NOTHING if state == "healthy" else method
        yield "table_V", (dataset, model, method, metric, _model_state(state, method, names), attacker)
        return
    if state == "original":
        yield "table_I", (dataset, model, method, metric, NOTHING, NOTHING)
    yield "table_III", (dataset, model, method, metric, state, attacker)


def _keys_of_study(table, subject, metric, names):
    """The same of a study: what was measured of its defences on the training set, before any retraining."""
    kind, dataset = subject["kind"], names.title("datasets", subject["dataset"])
    if dataset != names.training or kind not in ("outputs", "detection", "images"):
        return
    if subject.get("state", "original") != "original":
        return
    if kind == "images":
        # Between x and x', not between edits: these have another direction.
        who, metric = _IMAGES, f"{metric}[protected]"
    else:
        group, part = ("deepfakes", "model") if kind == "outputs" else ("detectors", "detector")
        who = names.title(group, subject[part])
    yield table, (dataset, who, names.title("defences", subject["defence"]), metric, NOTHING, NOTHING)


def _model_state(state, method, names):
    """The paper calls a model poisoned that was retrained on protected faces; clean ones poison nothing."""
    if state == "healthy":
        return state
    return "retrained" if method == names.control else "poisoned"


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
        who = attacker if state in _RETRAINED else NOTHING
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
        whole = [(model, metric) for model in models for metric in _OUTPUTS]
        whole += [(d, metric) for d in names.titles("detectors") for metric in _DETECTION]
        whole += [(_IMAGES, f"{metric}[protected]") for metric in _LIKENESS]
        return {(names.training, s, m, metric, NOTHING, NOTHING) for s, metric in whole for m in defences}
    if name == "table_II":
        combinations = [
            (d, s, m, NOTHING, NOTHING) for d in datasets for s in names.titles("detectors") for m in defences
        ]
    elif name == "table_VI":
        combinations = [(d, _IMAGES, m, NOTHING, NOTHING) for d in datasets for m in protecting]
    elif name == "table_V":
        combinations = [(d, s, NOTHING, "healthy", NOTHING) for d in datasets for s in models]
        combinations += [
            (d, s, m, _model_state("retrained", m, names), attacker)
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


def _means_of_pair(cells, names):
    """Table IV from the cells of Table III."""
    pair = names.compared(PAIR_MODELS)
    states = {"original": "before", "retrained": "after"}
    metrics = TABLES["table_IV"]["metrics"]
    groups = {}
    for (dataset, subject, method, metric, state, who), by_seed in cells.items():
        if subject in pair and metric.split("[")[0] in metrics:
            key = (dataset, PAIR, method, metric, states[state], who)
            groups.setdefault(key, {})[subject] = by_seed
    return {key: _Mean(parts, PAIR_MODELS) for key, parts in groups.items()}


def _averages(cells, models, chosen):
    """The rows Avg: over those of the paper's `models` that are `chosen` and were measured."""
    groups = {}
    for (dataset, subject, *rest), by_seed in cells.items():
        if subject in chosen:
            groups.setdefault((dataset, AVERAGE, *rest), {})[subject] = by_seed
    return {key: _Mean(parts, models) for key, parts in groups.items()}


class _Mean:
    """Cells of several models, {title: {seed: record}}, to be averaged; `models` are the paper's."""

    def __init__(self, parts, models):
        self.parts, self.models = parts, models


def _row(name, key, cell, told, names):
    row = dict(zip(_KEY, key, strict=True))
    row["reported"] = f"{told[key]:.6g}" if key in told else NOT_REPORTED
    found = _averaged(cell) if isinstance(cell, _Mean) else _over_seeds(cell or {})
    if found is None:
        row |= {
            "measured": NOT_MEASURED,
            "sd": NOTHING,
            "n": NOTHING,
            "seeds": NOTHING,
            "measured_by": NOTHING,
        }
        row["why"] = _reason(name, row, cell, names)
        return row
    values, numbers, seeds, metrics, why = found
    mean = math.fsum(values) / len(values)
    row["measured"] = f"{mean:.6g}"
    row["sd"] = f"{statistics.stdev(values):.6g}" if len(values) > 1 and seeds is not None else NOTHING
    low, high = min(numbers), max(numbers)
    row["n"] = str(low) if low == high else f"{low}-{high}"
    row["seeds"] = " ".join(str(seed) for seed in seeds or [] if seed is not None) or NOTHING
    row["measured_by"] = " ".join(sorted(metrics))
    if names.attackers_seeds and (_of_attacker(row) or name in _COMPARING):
        why.append(f"the attacker works on seed {_listed(names.attackers_seeds)} only (attacker.seeds)")
    elif not _of_attacker(row) and (own := names.defences_seeds.get(row["method"])):
        why.append(f"{row['method']} is measured with seed {_listed(own)} only (its `seeds`)")
    if names.studys_seeds:
        why.append(f"the study is run with seed {_listed(names.studys_seeds)} only (its `seeds`)")
    network = sorted(
        m for m in metrics if m != row["metric"] and "[" in m and not row["metric"].endswith("]")
    )
    if network:
        inside = network[0].partition("[")[2].rstrip("]")
        why.append(f"features of the network '{inside}', not of the FID Inception: not the paper's scale")
    row["why"] = "; ".join(why) or NOTHING
    return row


def _of_attacker(row):
    """Whether a row is of what the attacker collects, or of a model that he retrained on it."""
    return row.get("state") in _RETRAINED or row["metric"].endswith(_COLLECTED)


def _over_seeds(by_seed):
    """(values, numbers, seeds, metrics, remarks) of the seeds that have a value, or None."""
    by_seed = {seed: by_seed[seed] for seed in sorted(by_seed, key=lambda seed: (seed is not None, seed))}
    good = {seed: r for seed, r in by_seed.items() if r["value"] is not None}
    if not good:
        return None
    remarks = [
        f"seed {seed} is missing, its record says: {r['why']}"
        for seed, r in by_seed.items()
        if r["value"] is None
    ]
    remarks += _told({f"seed {seed}": r.get("extra", {}).get("remark") for seed, r in good.items()})
    values = [r["value"] for r in good.values()]
    return values, [r["n"] for r in good.values()], list(good), {r["metric"] for r in good.values()}, remarks


def _told(by_name):
    """Remarks by what they are on, as a list; with the name before each where they differ."""
    if len(set(by_name.values())) > 1:
        return [f"{name}: {remark}" for name, remark in by_name.items() if remark]
    return [remark for remark in set(by_name.values()) if remark]


def _averaged(mean):
    """As :func:`_over_seeds`: per seed the mean over the models; without seeds where they differ."""
    found = {title: _over_seeds(mean.parts[title]) for title in mean.models if title in mean.parts}
    found = {title: cell for title, cell in found.items() if cell is not None}
    if not found:
        return None
    seeds = [cell[2] for cell in found.values()]
    remarks = [f"mean over {_listed(found)}"]
    if len(found) < len(mean.models):
        remarks[0] += f"; the paper's is over {_listed(mean.models)}"
    remarks += _told({title: "; ".join(cell[4]) for title, cell in found.items()})
    if all(other == seeds[0] for other in seeds):
        shared = seeds[0]
        values = [math.fsum(v) / len(v) for v in zip(*(cell[0] for cell in found.values()), strict=True)]
    else:
        shared = None
        remarks.append("the models were measured with different seeds")
        total = math.fsum(math.fsum(cell[0]) / len(cell[0]) for cell in found.values())
        values = [total / len(found)]
    numbers = [n for cell in found.values() for n in cell[1]]
    metrics = set().union(*(cell[3] for cell in found.values()))
    return values, numbers, shared, metrics, remarks


def _listed(titles):
    titles = [str(title) for title in titles]
    return titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"


def _reason(name, row, cell, names):
    """Why a cell has no measured value."""
    if isinstance(cell, dict) and cell:
        reasons = dict.fromkeys(r["why"] for _, r in sorted(cell.items()))
        return "record says: " + "; ".join(reasons)
    of_detector = name == "table_II" or (name not in TABLES and row["metric"] in _DETECTION)
    subject_group = "detectors" if of_detector else "deepfakes"
    checks = [("datasets", row["dataset"])]
    if row["subject"] not in (AVERAGE, PAIR, _IMAGES, _UNION):
        checks.append((subject_group, row["subject"]))
    if row["method"] != NOTHING:
        checks.append(("defences", row["method"]))
    for group, title in checks:
        reason = names.absent(group, title)
        if reason:
            return reason
    if layout_named(name) is STUDY and row["dataset"] != names.training:
        return f"studies are measured on {names.training} in this run"
    if layout_named(name)["states"] and row["dataset"] != names.training:
        return f"the models are trained and retrained on {names.training} in this run"
    if row["method"] == names.control and layout_named(name)["kind"] in ("outputs", "images"):
        return _UNPROTECTED
    if row["method"] in names.uncollected and _of_attacker(row):
        return f"the attacker does not collect faces of {row['method']} in this run (attacker.defences)"
    if row.get("state") in _RETRAINED and row["subject"] in names.left_alone:
        return f"the attacker does not retrain {row['subject']} in this run (attacker.models)"
    if row["subject"] in (AVERAGE, PAIR):
        why = "none of its models has this value"
        if row.get("state") in _RETRAINED and names.left_alone:
            why += (
                f"; the attacker does not retrain {_listed(names.left_alone)} in this run (attacker.models)"
            )
        return why
    return "the run has no record of it"


def _metric_rank(layout):
    def rank(metric):
        base, bracket, _ = metric.partition("[")
        known = layout["metrics"].index(base) if base in layout["metrics"] else len(layout["metrics"])
        return known, base, bool(bracket), metric

    return rank


def _ranking(layout, told, names):
    """Sorting key of keys: the paper's order first, then the config's, then by name."""
    groups = {"dataset": "datasets", "method": "defences", "attacker": "detectors"}
    groups["subject"] = "detectors" if layout["kind"] == "detection" else "deepfakes"
    orders = {}
    for part, group in groups.items():
        position = _KEY.index(part)
        titles = [NOTHING, *(key[position] for key in told), *names.titles(group)]
        if part == "subject" and layout is STUDY:
            titles += names.titles("detectors")
        orders[part] = {title: i for i, title in reversed(list(enumerate(titles)))}
    orders["subject"][AVERAGE] = math.inf  # below all models, new ones too
    metric_rank = _metric_rank(layout)

    def rank(key):
        row = dict(zip(_KEY, key, strict=True))
        parts = []
        for part in layout["order"]:
            if part == "metric":
                parts.append(metric_rank(row[part]))
            elif part == "state":
                parts.append(layout["states"].index(row[part]))
            else:
                order = orders[part]
                parts.append(
                    (order.get(row[part], len(order) + len(names.groups["datasets"]) + 1e6), row[part])
                )
        return parts

    return rank
