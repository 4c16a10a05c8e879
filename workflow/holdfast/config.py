"""The config: checked against schema and registries, completed with defaults; and what a run asks it."""

import copy
import hashlib
import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from holdfast import studies
from holdfast.errors import HoldfastError
from holdfast.modules import METRICS, PACKAGE, SECTIONS, first_stage_settings, literals, registered
from holdfast.schema import check, closest, entry_schema, full_schema, with_defaults
from holdfast.yaml_files import merge, ordered_like, read_part

UNION = "union"  # the attacker's detector that is all of them
WIDER_FACE = "wider_face"  # the scenes' source where it is a folder


def prepare_environment_of_jobs():
    """What jobs inherit: this library on the PYTHONPATH, and threads that do not fight over cores.

    torch takes as many threads as a job sets (holdfast.jobs); BLAS beside it gets one, since jobs run side
    by side.
    """
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), *paths]))
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def read(*paths):
    """Merge YAML files in order (mappings deeply, anything else replaced) and complete the result.

    Raises:
        HoldfastError: a file is missing or not YAML, or the config is wrong (:func:`complete`).
    """
    merged = {}
    for path in paths:
        merged = merge(merged, read_part(path))
    return complete(merged)


def complete(config, order=None):
    """The config with all defaults filled in.

    Args:
        config: what the files amount to.
        order: path of a YAML file whose order of keys the result takes (Snakemake puts a preset's first).

    Raises:
        HoldfastError: an unknown key, a wrong type, a value out of range, a name that nobody
            registered, a reference to nothing. Names the key and shows the repair.
    """
    schema = full_schema()
    config = copy.deepcopy(dict(config))
    if order is not None:
        config = ordered_like(read_part(order), config)
    check(config, schema, "")
    config = with_defaults(config, schema, schema)
    for section in SECTIONS:
        for name, entry in config[section].items():
            config[section][name] = _complete_entry(section, name, entry)
    _check_titles(config)
    _check_references(config)
    for name, study in config["studies"].items():
        config["studies"][name] = with_defaults(study, schema["$defs"]["study"], schema)
        if not study.get("skip"):
            _check_study(config, name)
    _check_tables(config)
    first_stages(config)  # refuses a FIRST_STAGE that cannot be used
    return config


def _complete_entry(section, name, entry):
    kind = entry.get("kind", name) if section == "datasets" else name
    where = f"{section}.{name}"
    known = registered(section)
    if entry.get("skip"):
        # Not run: it may be of a kind that does not exist yet, with settings that nobody knows.
        # What is registered brings its own title.
        return entry if kind in known and section != "datasets" else {"title": name, **entry}
    if kind not in known:
        named = f"{where}.kind" if "kind" in entry else where
        raise HoldfastError(
            f"config key {named}: nobody registered '{kind}'",
            found=kind,
            expected=", ".join(known),
            repair=_yaml_repair(section, closest(kind, known), name, entry)
            + f"; or add workflow/holdfast/{SECTIONS[section]}/{kind}.py with a REGISTER",
        )
    schema = entry_schema(section, kind)
    check(entry, schema, where)
    entry = with_defaults(entry, schema, schema)
    if section == "datasets":
        entry.setdefault("kind", kind)
    return entry


def _yaml_repair(section, nearest, name, entry):
    if nearest is None:
        return f"remove {section}.{name}"
    if "kind" in entry:
        return f"write `{section}: {{{name}: {{kind: {nearest}}}}}`"
    return f"write `{section}: {{{nearest}: …}}`"


def _check_titles(config):
    """Rows of one title could not be told apart. (An inherited title is seen by the tables only.)"""
    for section, folder in SECTIONS.items():
        own = {}
        for path in sorted((PACKAGE / folder).glob("*.py")):
            own |= literals(path)["TITLES"]
        owners = {}
        for name, entry in config[section].items():
            title = entry.get("title") or own.get(name)
            if title and (other := owners.setdefault(title, name)) != name:
                raise HoldfastError(
                    f"config keys {section}.{other} and {section}.{name} share a title",
                    found=title,
                    expected="one title each, or their rows could not be told apart",
                    repair=f"give {name} a `title` of its own, in its module or under {section}.{name}",
                )


def _check_references(config):
    def refuse(key, found, expected, repair):
        raise HoldfastError(
            f"config key {key} refers to nothing that is run", found=found, expected=expected, repair=repair
        )

    for key, name, section in (
        ("training_set", config["training_set"], "datasets"),
        ("attacker.detector", config["attacker"]["detector"], "detectors"),
    ):
        running = active(config, section)
        if name not in running and not (key == "attacker.detector" and name == UNION and running):
            nearest = closest(name, running) or next(iter(running), None)
            repair = f"write `{key.split('.')[-1]}: {nearest}`" if nearest else f"add an entry to {section}"
            refuse(key, name, ", ".join(running) or f"an entry of {section} without `skip`", repair)
    attacker, seeds = config["attacker"], config["perturbation_seeds"]
    for where, chosen, entries, running in (
        ("attacker.models", attacker["models"], config["deepfakes"], active(config, "deepfakes")),
        ("attacker.defences", attacker["defences"], config["defences"], active(config, "defences")),
        ("attacker.seeds", attacker["seeds"], seeds, seeds),
        *(
            (f"{section}.{name}.seeds", entry.get("seeds"), seeds, seeds)
            for section in ("defences", "studies")
            for name, entry in active(config, section).items()
        ),
    ):
        # What is skipped may be named, as long as something is left: the tables give the reason.
        lost = [one for one in chosen or [] if one not in entries]
        if lost or (chosen and not set(chosen) & set(running)):
            known, key = ", ".join(map(str, running)), where.rpartition(".")[2]
            refuse(where, ", ".join(map(str, lost or chosen)), known, f"write `{key}: [{known}]`, or fewer")
    for name in config["metrics"]:
        if name not in registered(METRICS):
            known = registered(METRICS)
            refuse("metrics", name, ", ".join(known), f"write `{closest(name, known) or next(iter(known))}`")
    for name, entry in active(config, "deepfakes").items():
        # A model with tags knows attributes that it does not edit.
        edited, where = entry["attributes"], "attributes"
        if tags := {tag["name"]: tag["attributes"] for tag in entry.get("tags", [])}:
            where = "edited" if entry.get("edited") else "tags"
            lost = [tag for tag in entry.get("edited") or [] if tag not in tags]
            if lost:
                refuse(f"deepfakes.{name}.edited", ", ".join(lost), ", ".join(tags), "name some of its tags")
            edited = [known for tag in entry.get("edited") or tags for known in tags[tag]]
        asked, least = entry["health"]["attributes"], entry["health"]["least"]
        if least is not None and least > len(asked):
            raise HoldfastError(
                f"config key deepfakes.{name}.health.least asks for more attributes than it names",
                found=f"{least} of {len(asked)}",
                expected=f"at most {len(asked)}",
                repair=f"name more in deepfakes.{name}.health.attributes, or write `least: {len(asked)}`",
            )
        unknown = set(asked) - set(edited)
        if unknown:
            refuse(
                f"deepfakes.{name}.health.attributes",
                ", ".join(sorted(unknown)),
                ", ".join(edited),
                f"name those of deepfakes.{name}.{where} only",
            )


def _check_study(config, name):
    where, study = f"studies.{name}", config["studies"][name]
    base, running = study["defence"], active(config, "defences")
    if base not in running:
        nearest = closest(base, running)
        raise HoldfastError(
            f"config key {where}.defence refers to nothing that is run",
            found=base,
            expected=", ".join(running) or "an entry of defences without `skip`",
            repair=f"write `defence: {nearest}`" if nearest else f"give {where} `skip` as well",
        )
    known = registered("defences")[base]
    own = {"type": "object", "properties": known, "additionalProperties": False}
    check(study["settings"], own, f"{where}.settings")
    for setting, values in study["vary"].items():
        for value in values:
            check({setting: value}, own, f"{where}.vary")
    for number, values in enumerate(study["variants"]):
        check(values, own, f"{where}.variants.{number}")
    varied = {setting for values in studies.values_of(study) for setting in values}
    if not varied:
        raise HoldfastError(
            f"config key {where} has nothing to vary",
            expected="`vary` or `variants`",
            repair=f"write `vary: {{SETTING: [VALUE, …]}}`, settings being {', '.join(known) or 'none'}",
        )
    for label in study["labels"]:
        if not {part.partition("=")[0] for part in label.split(", ")} <= varied:
            raise HoldfastError(
                f"config key {where}.labels names something that the study does not vary",
                found=label,
                expected=f"setting=value of {', '.join(sorted(varied))}",
                repair="write the settings in the study's order, separated by a comma and a space",
            )
    _expanded(config, name)


def _check_tables(config):
    """Every study has a table of its own."""
    tables = [table_of(config, name) for name in config["studies"]]
    for name, table in zip(config["studies"], tables, strict=True):
        if tables.count(table) > 1:
            raise HoldfastError(
                f"config key studies.{name}.table: another study has this table",
                found=table,
                expected="one study for each table",
                repair=f"remove `table` from studies.{name}",
            )


def table_of(config, study):
    """What the name of a study's table ends with: "VII" of table_VII.csv, or the study's own name."""
    return config["studies"][study].get("table", study)


def _expanded(config, study):
    entry = config["studies"][study]
    base = config["defences"][entry["defence"]]
    return studies.expanded(f"studies.{study}", entry, base, registered("defences")[entry["defence"]])


def studied(config, study):
    """{defence: its title in the study's table} of a study that is run; {} of one that is skipped.

    One of them may be the study's base; all others are :func:`variants`.
    """
    if config["studies"][study].get("skip"):
        return {}
    return {name: title for name, _, title in _expanded(config, study)}


def variants(config):
    """{name: (registered name, entry)} of all defences that the studies derive from entries of `defences`.

    They are no entries themselves: a variant stands in no other table than its study's, and the attacker
    never retrains on it.
    """
    return {
        name: (config["studies"][study]["defence"], entry)
        for study in active(config, "studies")
        for name, entry, _ in _expanded(config, study)
        if name not in config["defences"]
    }


def defence_of(config, name):
    """(registered name, entry) of a defence: an entry of `defences`, or a variant of one."""
    if name in config["defences"]:
        return name, config["defences"][name]
    return variants(config)[name]


def first_stages(config):
    """{name: (registered name, {setting: value})} of the first stages that the run's defences begin with.

    A defence's module may name the settings that decide its first stage (FIRST_STAGE). Variants that differ
    in others only share it; it has the name that a variant would have that differs in nothing else.
    """
    entries = {name: (name, entry) for name, entry in active(config, "defences").items()}
    found = {}
    for method, entry in [*entries.values(), *variants(config).values()]:
        name = _first_stage(config, method, entry)
        if name is not None:
            found[name] = method, {key: entry[key] for key in first_stage_settings(method)}
    return found


def first_stage_of(config, name):
    """The name, in :func:`first_stages`, of the stage that a defence begins with; None if it has only one."""
    return _first_stage(config, *defence_of(config, name))


def _first_stage(config, method, entry):
    settings = first_stage_settings(method)
    return studies.named(method, config["defences"][method], entry, settings) if settings else None


def active(config, section):
    """The entries of a section that are run: those without `skip`."""
    return {name: entry for name, entry in config[section].items() if not entry.get("skip")}


def digest(value):
    """sha256 of any JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def all_attributes(config):
    """Attributes that the classifier must know: those of all models that are run, in order."""
    names = []
    for entry in active(config, "deepfakes").values():
        names += [name for name in entry["attributes"] if name not in names]
    return names


def attackers_detectors(config, name):
    """The detectors that the attacker runs if his detector is called `name`: that one, or all."""
    return list(active(config, "detectors")) if name == UNION else [name]


def harvesters(config):
    """What harvests are measured with: each detector, the union of several, the attacker's own."""
    names = list(active(config, "detectors"))
    union = [UNION] if len(names) > 1 else []
    return list(dict.fromkeys([*names, *union, config["attacker"]["detector"]]))


def attackers_models(config):
    """The deepfake models that the attacker retrains, in the config's order."""
    return _attackers(config, "models", "deepfakes")


def attackers_defences(config):
    """The defences whose protected faces he collects, in the config's order."""
    return _attackers(config, "defences", "defences")


def _attackers(config, key, section):
    chosen = config["attacker"][key]
    return [name for name in active(config, section) if chosen is None or name in chosen]


def attackers_seeds(config):
    """The perturbation seeds whose protected faces he collects, in the config's order."""
    return _seeds_of(config, config["attacker"])


def defences_seeds(config, name):
    """The perturbation seeds that a defence is measured with, in the config's order."""
    return _seeds_of(config, config["defences"][name])


def studys_seeds(config, study):
    """The perturbation seeds that a study is run with, in the config's order."""
    return _seeds_of(config, config["studies"][study])


def _seeds_of(config, entry):
    chosen = entry.get("seeds")
    return [seed for seed in config["perturbation_seeds"] if chosen is None or seed in chosen]


def scenes_source(config):
    """What the detectors' scenes are made of: "synthetic", "training_set", or WIDER_FACE for a folder."""
    source = config["scenes"]["source"]
    return source if source in ("synthetic", "training_set") else WIDER_FACE


def sources_of(weights):
    """`weights` of a deepfake model as a list of {path or url, sha256, attributes}; empty: train."""
    if weights == "train":
        return []
    entries = weights if isinstance(weights, list) else [weights]
    return [entry if isinstance(entry, dict) else {"path": entry} for entry in entries]


def check_files(config):
    """Refuse checkpoints that the config names and this machine has not, before anything runs.

    Raises:
        HoldfastError: a path of `weights` or `initialisation` that is no file or has braces, or a malformed
            URL.
    """
    given = [
        (f"deepfakes.{name}.weights", source, "weights: train")
        for name, entry in active(config, "deepfakes").items()
        for source in sources_of(entry["weights"])
    ]
    for name, entry in active(config, "detectors").items():
        start = entry["training"]["initialisation"]
        given += [(f"detectors.{name}.weights", {"path": entry["weights"]}, "weights: null")]
        given += [(f"detectors.{name}.training.initialisation", {"path": start}, "initialisation: null")]
    for where, source, otherwise in given:
        path, url = source.get("path"), source.get("url")
        if path is None and url is None:
            continue
        try:
            sound = bool(urlsplit(url).scheme) if path is None else Path(path).expanduser().is_file()
        except (OSError, RuntimeError, ValueError):  # no such user, a name that no disk takes, no such host
            sound = False
        if not sound:
            repair = f"mend the {'URL' if path is None else 'path'}, or write `{otherwise}`"
            if path is not None and "://" in path and where.startswith("deepfakes."):
                repair = f"write `weights: {{url: {path}, sha256: …}}`"
            raise HoldfastError(
                f"config key {where} names a checkpoint that is not there",
                found=path or url,
                expected="a file" if url is None else "scheme://host/path",
                repair=repair,
            )
        if path is not None and set("{}") & set(path):
            raise HoldfastError(
                f"config key {where} names a path with braces, which rules read as wildcards",
                found=path,
                expected="a path without { and }",
                repair="rename the file or its folder, or link to it",
            )


def hash_of(config):
    """sha256 of the settings that can change a number: all but where data and results lie."""
    settings = {key: value for key, value in config.items() if key not in ("results", "inception_weights")}
    for section in ("deepfakes", "detectors"):
        settings[section] = {
            # A given checkpoint counts by its content, which is among the inputs of every record.
            name: {key: value for key, value in entry.items() if key != "weights"}
            | {"given": entry.get("weights") not in (None, "train")}
            for name, entry in config[section].items()
        }
    for entry in settings["detectors"].values():
        if "initialisation" in entry.get("training", {}):
            begun = {"initialisation": entry["training"]["initialisation"] is not None}
            entry["training"] = {**entry["training"], **begun}
    settings["scenes"] = {**config["scenes"], "source": scenes_source(config)}
    settings["datasets"] = {
        name: {key: value for key, value in entry.items() if key not in ("source", "downloads")}
        for name, entry in config["datasets"].items()
    }
    return digest(settings)
