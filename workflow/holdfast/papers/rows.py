"""A row of a table: the reported number, the mean over the seeds' records, or why there is none."""

import math
import statistics

from holdfast.papers.cells import Mean
from holdfast.papers.layouts import (
    AVERAGE,
    COLLECTED,
    COMPARING,
    DETECTION,
    IMAGES,
    KEY,
    NOT_MEASURED,
    NOT_REPORTED,
    NOTHING,
    PAIR,
    RETRAINED,
    STUDY,
    TABLES,
    layout_named,
)
from holdfast.papers.names import UNION

_UNPROTECTED = "without a defence the protected image is the original one, so there is nothing to compare"


def row_of(name, key, cell, told, names):
    """A row of the table `name`, {column: text} without blanks.

    Args:
        key: what stands in the columns of layouts.KEY.
        cell: {seed: record}, a holdfast.papers.cells.Mean of such, or None: nothing was recorded.
        told: {key: number} that the paper reports.
        names: holdfast.papers.names.Names of the run.
    """
    row = dict(zip(KEY, key, strict=True))
    row["reported"] = f"{told[key]:.6g}" if key in told else NOT_REPORTED
    found = _averaged(cell) if isinstance(cell, Mean) else _over_seeds(cell or {})
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
    if names.attackers_seeds and (_of_attacker(row) or name in COMPARING):
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
    return row.get("state") in RETRAINED or row["metric"].endswith(COLLECTED)


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
    """Titles or numbers as a sentence has them: "a, b and c"."""
    titles = [str(title) for title in titles]
    return titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"


def _reason(name, row, cell, names):
    """Why a cell has no measured value."""
    if isinstance(cell, dict) and cell:
        reasons = dict.fromkeys(r["why"] for _, r in sorted(cell.items()))
        return "record says: " + "; ".join(reasons)
    of_detector = name == "table_II" or (name not in TABLES and row["metric"] in DETECTION)
    subject_group = "detectors" if of_detector else "deepfakes"
    checks = [("datasets", row["dataset"])]
    if row["subject"] not in (AVERAGE, PAIR, IMAGES, UNION):
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
    if row.get("state") in RETRAINED and row["subject"] in names.left_alone:
        return f"the attacker does not retrain {row['subject']} in this run (attacker.models)"
    if row["subject"] in (AVERAGE, PAIR):
        why = "none of its models has this value"
        if row.get("state") in RETRAINED and names.left_alone:
            why += (
                f"; the attacker does not retrain {_listed(names.left_alone)} in this run (attacker.models)"
            )
        return why
    return "the run has no record of it"
