"""Which cells of the tables the records of a run belong to."""

from holdfast.errors import HoldfastError
from holdfast.papers.layouts import AVERAGE, COLLECTED, IMAGES, NOTHING, PAIR, PAIR_MODELS, TABLES

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


def placed(records, names, keys):
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


def with_seeds(cells, seeds):
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


def keys_of(subject, metric, names):
    """The tables and keys of a record."""
    kind, state = subject["kind"], subject.get("state")
    dataset = names.title("datasets", subject["dataset"])
    defence = subject.get("defence")
    method = names.title("defences", defence) if defence is not None else NOTHING
    if kind in ("detection", "harvest"):
        detector = names.title("detectors", subject["detector"])
        if kind == "harvest":
            metric += COLLECTED
        yield "table_II", (dataset, detector, method, metric, NOTHING, NOTHING)
        return
    if kind == "images":
        yield "table_VI", (dataset, IMAGES, method, metric, NOTHING, NOTHING)
        return
    model, attacker = names.title("deepfakes", subject["model"]), NOTHING
    if state == "retrained":
        detector = subject.get("detector")
        attacker = names.title("detectors", detector) if detector else names.attacker or "not stated"
    if kind == "model":
        if subject.get("attribute") not in (None, "mean"):
            metric = f"{metric}[{subject['attribute']}]"
        method = NOTHING if state == "healthy" else method
        yield "table_V", (dataset, model, method, metric, model_state(state, method, names), attacker)
        return
    if state == "original":
        yield "table_I", (dataset, model, method, metric, NOTHING, NOTHING)
    yield "table_III", (dataset, model, method, metric, state, attacker)


def keys_of_study(table, subject, metric, names):
    """The same of a study: what was measured of its defences on the training set, before any retraining."""
    kind, dataset = subject["kind"], names.title("datasets", subject["dataset"])
    if dataset != names.training or kind not in ("outputs", "detection", "images"):
        return
    if subject.get("state", "original") != "original":
        return
    if kind == "images":
        # Between x and x', not between edits: these have another direction.
        who, metric = IMAGES, f"{metric}[protected]"
    else:
        group, part = ("deepfakes", "model") if kind == "outputs" else ("detectors", "detector")
        who = names.title(group, subject[part])
    yield table, (dataset, who, names.title("defences", subject["defence"]), metric, NOTHING, NOTHING)


def model_state(state, method, names):
    """The paper calls a model poisoned that was retrained on protected faces; clean ones poison nothing."""
    if state == "healthy":
        return state
    return "retrained" if method == names.control else "poisoned"


def means_of_pair(cells, names):
    """Table IV from the cells of Table III."""
    pair = names.compared(PAIR_MODELS)
    states = {"original": "before", "retrained": "after"}
    metrics = TABLES["table_IV"]["metrics"]
    groups = {}
    for (dataset, subject, method, metric, state, who), by_seed in cells.items():
        if subject in pair and metric.split("[")[0] in metrics:
            key = (dataset, PAIR, method, metric, states[state], who)
            groups.setdefault(key, {})[subject] = by_seed
    return {key: Mean(parts, PAIR_MODELS) for key, parts in groups.items()}


def averages(cells, models, chosen):
    """The rows Avg: over those of the paper's `models` that are `chosen` and were measured."""
    groups = {}
    for (dataset, subject, *rest), by_seed in cells.items():
        if subject in chosen:
            groups.setdefault((dataset, AVERAGE, *rest), {})[subject] = by_seed
    return {key: Mean(parts, models) for key, parts in groups.items()}


class Mean:
    """Cells of several models, {title: {seed: record}}, to be averaged; `models` are the paper's."""

    def __init__(self, parts, models):
        self.parts, self.models = parts, models
