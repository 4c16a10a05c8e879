"""Stage publish: tables, figures and the report, from records and stored files."""

from pathlib import Path

import torch
import yaml

from holdfast import studies
from holdfast.config import (
    active,
    attackers_defences,
    attackers_models,
    attackers_seeds,
    defences_seeds,
    hash_of,
    studied,
    studys_seeds,
    table_of,
)
from holdfast.data.pixels import to_bytes
from holdfast.deepfakes import DEEPFAKES
from holdfast.defences import DEFENCES
from holdfast.detectors import DETECTORS
from holdfast.errors import HoldfastError
from holdfast.files import write_text
from holdfast.metrics import METRICS
from holdfast.modules import SECTIONS
from holdfast.papers.figures import figure_5, figure_6, figure_7
from holdfast.papers.layouts import TABLES
from holdfast.papers.report import write_report
from holdfast.papers.reported import REPORTED, load_reported
from holdfast.papers.tables import build_tables, read_tables, titles_of_tables, write_tables
from holdfast.records import read_records
from holdfast.schema import closest
from holdfast.stages.common import Work, detections_of, labels_of, open_faces
from holdfast.stages.health import health_bar
from holdfast.stages.protect import ProtectedSet
from holdfast.stages.retrain import NOT_RETRAINED

FIGURE_SCORE = 0.5
HEALTH_KINDS = ("model", "detector", "classifier")  # in the report's order


def plan_of(config):
    """What the tables need to know of the config: titles, reasons of what is left out, seeds."""
    registries = {"deepfakes": DEEPFAKES, "detectors": DETECTORS, "defences": DEFENCES}
    plan = {
        "preset": config["preset"],
        "training_set": config["training_set"],
        "seeds": config["perturbation_seeds"],
        "attacker": {
            "detector": config["attacker"]["detector"],
            "models": attackers_models(config),
            "defences": attackers_defences(config),
            "seeds": attackers_seeds(config),
        },
    }
    for section in SECTIONS:
        plan[section] = {
            name: {
                "title": entry.get("title") or getattr(registries.get(section, {}).get(name), "title", name),
                "skip": entry.get("skip"),
            }
            for name, entry in config[section].items()
        }
    for name in config["defences"]:
        plan["defences"][name]["seeds"] = defences_seeds(config, name)
    plan["studies"] = {}
    for name, entry in config["studies"].items():
        table = table_of(config, name)
        kind = f"Table {table}" if "table" in entry else "Study"
        titles = studied(config, name) or {
            title: title for title in (studies.title_of(entry, values) for values in studies.values_of(entry))
        }
        plan["studies"][f"table_{table}"] = {
            "title": f"{kind}: {entry.get('title', name)}",
            "skip": entry["skip"],
            "seeds": studys_seeds(config, name),
            "defences": {
                defence: {"title": title, "skip": entry["skip"]} for defence, title in titles.items()
            },
        }
    return plan


def tables(config, records, reported, folder, only=tuple(TABLES)):
    """Tables as CSV files: I to VI, or those named by `only`, such as that of a study; returns the paths."""
    built = build_tables(read_records(records), plan_of(config), load_reported(reported), only)
    return write_tables(built, folder)


def tables_so_far(config, records, folder, only=None):
    """The same of whatever records lie there by now: what is not measured yet, the tables say. Those that an
    earlier config has left count, too.

    Args:
        records: folder with the records' folders (outputs, images, detection, ...).
        only: names of tables; None: all, the studies' as well.

    Raises:
        HoldfastError: there are no records, or there is no such table.
    """
    known = list(titles_of_tables(plan_of(config)))
    for name in only or []:
        if name not in known:
            nearest = closest(name, known)
            raise HoldfastError(
                f"there is no table {name}",
                found=name,
                expected=", ".join(known),
                repair=f"write {nearest}" if nearest else "leave --only out for all of them",
            )
    files = sorted(Path(records).glob("*/*.jsonl"))
    if not files:
        raise HoldfastError(
            f"there are no records in {records}",
            expected="files outputs/*.jsonl, images/*.jsonl and so on, as a run writes them",
            repair="name the folder `records` of the run's results, and the run's --config",
        )
    return tables(config, files, REPORTED, folder, only or known)


@torch.no_grad()
def figures(config, protected, index_csv, classifier, models, detectors, folder):
    """Figs. 5 to 7 on the first protected faces of the training set's test split.

    Args:
        protected: {defence: folder of its protected test split}; `models`, `detectors`: {name: weights}.
    """
    work, plan = Work(config), plan_of(config)
    faces, judge = open_faces(index_csv), work.classifier(classifier)
    sets = {name: ProtectedSet(Path(path) / "index.csv") for name, path in protected.items()}
    first = slice(0, config["measuring"]["figure_faces"])
    positions = next(iter(sets.values())).source_positions[first]
    x = faces.pixels(positions).to(work.device)
    shown = [name for name in sets if name != "none"]
    titles = {name: plan["defences"][name]["title"] for name in shown}
    stored = {name: sets[name].pixels(first).to(work.device) for name in shown}

    outputs, edits, of_protected = {}, {}, {title: {} for title in titles.values()}
    for name, path in models.items():
        model = work.deepfake(name, path)
        labels = labels_of(faces, positions, model, judge)[0].to(work.device)
        # Every face gets another of the model's edits, spread over all of them.
        targets = model.targets(labels)
        edit_of = [i * len(targets) // len(positions) for i in range(len(positions))]
        chosen = torch.stack([targets[edit, i] for i, edit in enumerate(edit_of)])
        outputs[model.title] = to_bytes(model.edit(x, chosen))
        edits[model.title] = [model.target_names[edit] for edit in edit_of]
        for defence, x_protected in stored.items():
            of_protected[titles[defence]][model.title] = to_bytes(model.edit(x_protected, chosen))
    figure_5(Path(folder) / "figure_5.png", to_bytes(x), outputs, of_protected, edits)

    quality = {}
    for defence, x_protected in stored.items():
        decibels = METRICS["psnr"].per_image(x, x_protected)
        likeness = METRICS["ssim"].per_image(x, x_protected)
        # Short, since a thumbnail is hardly wider; the report's caption says what the two are.
        quality[titles[defence]] = [f"{a:.1f} | {b:.2f}" for a, b in zip(decibels, likeness, strict=True)]
    originals = to_bytes(x)
    bytes_of = {titles[name]: to_bytes(pixels) for name, pixels in stored.items()}
    figure_6(Path(folder) / "figure_6.png", originals, bytes_of, texts=quality)

    before, after = {}, {title: {} for title in titles.values()}
    for name, path in detectors.items():
        detector = work.detector(name, path)
        found = detections_of(detector, [x], work.device, FIGURE_SCORE)
        before[detector.title] = [boxes for boxes, _ in found]
        for defence, x_protected in stored.items():
            found = detections_of(detector, [x_protected], work.device, FIGURE_SCORE)
            after[titles[defence]][detector.title] = [boxes for boxes, _ in found]
    figure_7(Path(folder) / "figure_7.png", originals, bytes_of, before, after)


def health_rows(records, plan):
    """Rows of the report's health tables: models before and after retraining, detectors, classifier.

    The first key of a row is its kind, with the title; then come state, ssim and edit_accuracy.
    """
    rows = {}
    for record in records:
        subject = record["subject"]
        if subject["kind"] not in HEALTH_KINDS:
            continue
        if subject["kind"] == "model":
            title = plan["deepfakes"][subject["model"]]["title"]
            state = subject["state"]
            if state == "retrained":
                state += f" on {plan['defences'][subject['defence']]['title']}, seed {subject['seed']}"
                if record["extra"].get("remark", "").startswith(NOT_RETRAINED):
                    state += f" ({NOT_RETRAINED})"
        elif subject["kind"] == "detector":
            title, state = plan["detectors"][subject["detector"]]["title"], subject["state"]
        else:
            title, state = "attribute classifier", "trained"
        row = rows.setdefault((title, state), {subject["kind"]: title, "state": state})
        if subject.get("attribute") == "mean":
            row["edit_accuracy"] = record["value"]
        elif "attribute" in subject:
            row[subject["attribute"]] = record["value"]
        else:
            row[record["metric"]] = record["value"]
    for key, row in rows.items():
        first = [*list(row)[:2], *(name for name in ("ssim", "edit_accuracy") if name in row)]
        rows[key] = {name: row[name] for name in [*first, *row]}
    return sorted(rows.values(), key=lambda row: HEALTH_KINDS.index(next(iter(row))))


def report(config, records, table_folder, figure_folder, samples, page, merged):
    """The self-contained page, and the merged config beside it."""
    plan, read = plan_of(config), read_records(records)
    folder = Path(figure_folder)
    shown = plan["datasets"][config["training_set"]]["title"]
    pictures = [
        (
            "Fig. 5: edits of protected faces",
            f"{shown}, one edit per face, named beside it; each defence with its first seed, in all figures.",
            folder / "figure_5.png",
        ),
        (
            "Fig. 6: protected photographs",
            f"{shown}, as stored in 8 bit, with PSNR in dB | SSIM, and the difference, amplified.",
            folder / "figure_6.png",
        ),
        (
            "Fig. 7: detected faces",
            f"{shown}, boxes with a score above {FIGURE_SCORE}.",
            folder / "figure_7.png",
        ),
    ]
    for name, path in samples.items():
        pictures.append(
            (
                f"Sample sheet of {plan['deepfakes'][name]['title']}",
                "The pretrained model on validation faces: input, then every edit.",
                Path(path),
            )
        )
    notes = [
        f"Preset {config['preset']}: {config['image_size']} px, budget {config['epsilon']} of [-1, 1]. Every "
        "perturbed image was stored as an 8-bit PNG file; what was measured afterwards is what was stored.",
        "The defence called Original leaves faces as they are."
        + (
            " Its retrained rows are the control: what retraining alone does to the model."
            if "none" in attackers_defences(config)
            else " The attacker does not retrain on them in this run, so there is no control."
        ),
    ]
    notes.append(
        "Health: under an attribute's name stands edit_accuracy for a deepfake model (how often its edit "
        "shows the attribute to the classifier), and plain accuracy for the classifier itself. A run stops "
        "where a model is below its bar: "
        + ". ".join(
            f"{plan['deepfakes'][name]['title']}, {health_bar(entry['health'])}"
            for name, entry in active(config, "deepfakes").items()
        )
        + "."
    )
    if config["fid_features"] != "inception":
        notes.append(
            "FID is measured on the features of the trained attribute classifier, fid[attributes]: it cannot "
            "be compared in size with the papers' FID, only in order."
        )
    shown_tables = read_tables(table_folder, titles_of_tables(plan))
    write_report(page, plan, shown_tables, pictures, health_rows(read, plan), notes, read)
    text = yaml.safe_dump(without_paths(config), sort_keys=False, allow_unicode=True)
    write_text(
        merged,
        f"# The merged config of this run, sha256 {hash_of(config)}. Of paths on the machine that it\n"
        f"# ran on, only the last part is kept.\n{text}",
    )


def without_paths(value):
    """A config whose paths from the root or the home folder are cut to their last part, for publication."""
    if isinstance(value, dict):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_paths(part) for part in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return Path(value).name
    return value
