"""What each table of the TSDF paper holds, in which order and layout, and what is better for the defender."""

NOT_MEASURED, NOT_REPORTED, NOTHING = "not measured", "not reported", "-"

OUTPUTS = ["l2_mask", "sr_mask", "fid", "psnr", "ssim_released", "ssim"]
DETECTION = ["f1_released", "f1_truth", "harvest_yield", "false_positives"]
LIKENESS = ["psnr", "ssim_released", "ssim"]

#: What each table holds. `metrics` are expected of every run; others appear where they were recorded.
#: `order` sorts the rows like the paper; `index` and `columns` lay the table out like the paper.
TABLES = {
    "table_I": {
        "title": "Table I: interruption, G(x) against G(x')",
        "kind": "outputs",
        "metrics": OUTPUTS,
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
        "metrics": OUTPUTS,
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
    "metrics": [*OUTPUTS, *DETECTION],
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
    **{f"{metric}[protected]": "up" for metric in LIKENESS},
}

# These compare before with after: the same models, and the seeds on which the attacker works.
COMPARING = ("table_III", "table_IV")
AVERAGE, PAIR, PAIR_MODELS = "Avg", "StarGAN+AttGAN", ("StarGAN", "AttGAN")
IMAGES = "protected image"
RETRAINED = ("retrained", "after", "poisoned")  # states of models on which the attacker has worked
# Ends the metrics of the training split, which the attacker collects; all others are of the test split.
COLLECTED = "[collected]"
KEY = ("dataset", "subject", "method", "metric", "state", "attacker")


def layout_named(name):
    """The layout of a table: its own, or that of every study."""
    return TABLES.get(name, STUDY)


def direction(name, metric):
    """The defender's direction of a metric in a table: "up", "down", or None where there is none."""
    known = DIRECTIONS.get(name, _DIRECTIONS_OF_STUDY)
    return known.get(metric, known.get(metric.partition("[")[0]))


def metric_rank(layout):
    """Sorting key of metrics: a layout's own in its order, then the others by name."""

    def rank(metric):
        base, bracket, _ = metric.partition("[")
        known = layout["metrics"].index(base) if base in layout["metrics"] else len(layout["metrics"])
        return known, base, bool(bracket), metric

    return rank
