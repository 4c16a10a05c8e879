"""The config: read, merged, checked against schema and registries, and completed with defaults.

The names and the SETTINGS of data sets, models, detectors and defences are read from the modules'
text, not by importing them: a workflow starts in a second, without torch.
"""

import ast
import copy
import difflib
import functools
import hashlib
import json
import math
import os
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import yaml

from holdfast import studies
from holdfast.errors import HoldfastError

PACKAGE = Path(__file__).resolve().parent
SCHEMA = PACKAGE.parent / "schemas" / "config.schema.json"
UNION = "union"  # the attacker's detector that is all of them
WIDER_FACE = "wider_face"  # the scenes' source where it is a folder
# Section of the config: folder of the library whose modules register its entries.
METRICS = "metrics"
SECTIONS = {
    "datasets": "data",
    "deepfakes": "deepfakes",
    "detectors": "detectors",
    "defences": "defences",
}
# Keys of an entry that are the pipeline's, not its module's own SETTINGS.
PIPELINE_KEYS = {"kind", "title", "skip", "seeds", "perturbation_images", "weights", "training", "health"}
KINDS = {"datasets": "dataset", "deepfakes": "deepfake", "detectors": "detector", "defences": "defence"}


def prepare_environment_of_jobs():
    """What jobs inherit: this library on the PYTHONPATH, and threads that do not fight over cores.

    torch takes as many threads as a job sets (holdfast.jobs); BLAS beside it gets one, since jobs run side
    by side.
    """
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), *paths]))
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


@functools.cache
def registered(section):
    """{name: {setting: JSON schema}} of what the modules of a section register.

    Reads the literal ``REGISTER`` and ``SETTINGS`` of each module; SETTINGS of a module that registers
    nothing are common to all of its folder.

    Raises:
        HoldfastError: a REGISTER or SETTINGS that is not a literal dictionary, or a setting that has the
            name of one of the pipeline's keys.
    """
    folder = PACKAGE / SECTIONS.get(section, section)
    common, modules = {}, []
    for path in sorted(folder.glob("*.py")):
        module = _literals(path)
        modules.append(module)
        common |= {} if module["REGISTER"] else module["SETTINGS"]
        taken = sorted(PIPELINE_KEYS & set(module["SETTINGS"]))
        if taken:
            raise HoldfastError(
                f"SETTINGS of {path.name} cannot be used: the pipeline has a key of this name",
                found=taken[0],
                expected=f"none of {', '.join(sorted(PIPELINE_KEYS))}",
                repair=f"call {taken[0]} something else",
            )
    return {name: {**common, **module["SETTINGS"]} for module in modules for name in module["REGISTER"]}


@functools.cache  # asked for once for every job of the graph
def modules_of(section, name):
    """Paths, within the library, of the module that registers `name` (a registered one) and of all that it
    imports from its folder, directly or not: that module first.
    """
    folder = SECTIONS.get(section, section)
    beside = {path.stem: path for path in sorted((PACKAGE / folder).glob("*.py"))}
    found = [next(stem for stem, path in beside.items() if name in _literals(path)["REGISTER"])]
    for stem in found:  # grows on the way
        for node in ast.walk(ast.parse(beside[stem].read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                package, _, module = node.module.partition(f"holdfast.{folder}")
                named = [alias.name for alias in node.names] if not module else [module.removeprefix(".")]
                if not package:
                    found += [other for other in named if other in beside and other not in found]
    return tuple(f"{folder}/{stem}.py" for stem in found)


@functools.cache
def _literals(path):
    """What the text of a module says of REGISTER (names), SETTINGS and FIRST_STAGE, and TITLES: what its
    classes' titles are, by registered name, as far as they are written out there.
    """
    found, titles = {"REGISTER": [], "SETTINGS": {}, "FIRST_STAGE": (), "TITLES": {}}, {}
    for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if isinstance(node, ast.ClassDef):
            titles[node.name] = _title_of(node)
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        target, value = node.targets[0] if isinstance(node, ast.Assign) else node.target, node.value
        name = getattr(target, "id", None)
        try:
            if name == "REGISTER":
                if not isinstance(value, ast.Dict):
                    raise ValueError("not written out")
                found[name] = [ast.literal_eval(key) for key in value.keys]
                classes = [titles.get(ast.unparse(one)) for one in value.values]
                found["TITLES"] = dict(zip(found[name], classes, strict=True))
            elif name == "SETTINGS" and isinstance(value, ast.Attribute):
                # SETTINGS = stargan.SETTINGS: those of the module beside it.
                found[name] = _literals(path.with_name(f"{ast.unparse(value.value)}.py"))[name]
            elif name in ("SETTINGS", "FIRST_STAGE"):
                found[name] = ast.literal_eval(value)
        except ValueError as error:
            wanted = "tuple of strings" if name == "FIRST_STAGE" else "dictionary with plain strings as keys"
            raise HoldfastError(
                f"{name} of {path.name} cannot be read, line {node.lineno}",
                expected=f"a literal {wanted}",
                repair="write it out; it is read without running the module",
            ) from error
    return found


def _title_of(node):
    """The `title = "…"` of a class, or None."""
    for part in node.body:
        if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "title":
            return part.value.value if isinstance(part.value, ast.Constant) else None
    return None


def full_schema():
    """The JSON schema of the whole config, the entries' own settings not included."""
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


def entry_schema(section, entry_kind):
    """The JSON schema of one entry of a section: its common keys and its module's SETTINGS."""
    schema = full_schema()
    common = schema["$defs"][KINDS[section]]
    own = registered(section).get(entry_kind, {})
    return {
        "$defs": schema["$defs"],
        "type": "object",
        "properties": {**common["properties"], **own},
        "additionalProperties": False,
    }


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
    _check(config, schema, "")
    config = _with_defaults(config, schema, schema)
    for section in SECTIONS:
        for name, entry in config[section].items():
            config[section][name] = _complete_entry(section, name, entry)
    _check_titles(config)
    _check_references(config)
    for name, study in config["studies"].items():
        config["studies"][name] = _with_defaults(study, schema["$defs"]["study"], schema)
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
            repair=_yaml_repair(section, _nearest(kind, known), name, entry)
            + f"; or add workflow/holdfast/{SECTIONS[section]}/{kind}.py with a REGISTER",
        )
    schema = entry_schema(section, kind)
    _check(entry, schema, where)
    entry = _with_defaults(entry, schema, schema)
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
            own |= _literals(path)["TITLES"]
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
            nearest = _nearest(name, running) or next(iter(running), None)
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
            refuse("metrics", name, ", ".join(known), f"write `{_nearest(name, known) or next(iter(known))}`")
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
        nearest = _nearest(base, running)
        raise HoldfastError(
            f"config key {where}.defence refers to nothing that is run",
            found=base,
            expected=", ".join(running) or "an entry of defences without `skip`",
            repair=f"write `defence: {nearest}`" if nearest else f"give {where} `skip` as well",
        )
    known = registered("defences")[base]
    own = {"type": "object", "properties": known, "additionalProperties": False}
    _check(study["settings"], own, f"{where}.settings")
    for setting, values in study["vary"].items():
        for value in values:
            _check({setting: value}, own, f"{where}.vary")
    for number, values in enumerate(study["variants"]):
        _check(values, own, f"{where}.variants.{number}")
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


@functools.cache
def first_stage_settings(method):
    """Names of the settings that decide the first stage of a registered defence; () of one without.

    Raises:
        HoldfastError: FIRST_STAGE names something else.
    """
    module = modules_of("defences", method)[0]
    settings, known = _literals(PACKAGE / module)["FIRST_STAGE"], registered("defences")[method]
    whole = isinstance(settings, tuple)
    unknown = [name for name in settings if name not in known] if whole else []
    if not whole or unknown:
        raise HoldfastError(
            f"FIRST_STAGE of {module} cannot be used",
            found=repr(settings),
            expected=f"a tuple of names of settings: {', '.join(known)}",
            repair=f"remove {unknown[0]}" if unknown else "write a comma behind the only name",
        )
    return settings


def active(config, section):
    """The entries of a section that are run: those without `skip`."""
    return {name: entry for name, entry in config[section].items() if not entry.get("skip")}


def _with_defaults(value, schema, root):
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    value = dict(value)
    for key, part in properties.items():
        if "$ref" in part:
            part = {**root["$defs"][part["$ref"].rsplit("/", 1)[1]], **part}
        if key not in value and "default" in part:
            value[key] = copy.deepcopy(part["default"])
        if key in value:
            value[key] = _with_defaults(value[key], part, root)
    return value


def _check_registered(validator, section, name, schema):
    """What the keyword `registered` of a schema means: a name that a module of that section registers."""
    if isinstance(name, str) and name not in registered(section):
        yield jsonschema.ValidationError(f"nobody registered {name}")


_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    {"registered": _check_registered},
    # JSON Schema takes 2.0 for an integer, range() does not.
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


def _check(value, schema, where):
    errors = sorted(
        _Validator(schema).iter_errors(value),
        key=lambda e: list(map(str, e.absolute_path)),
    )
    if errors:
        raise _told(errors[0], where)
    _check_finite(value, where)


def _check_finite(value, key):
    """YAML knows .nan and .inf, which pass every comparison of a schema or make it meaningless."""
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_finite(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, float) and not math.isfinite(value):
        raise HoldfastError(
            f"config key {key} has a wrong value",
            found=_yaml(value),
            expected="a finite number",
            repair="give a finite number",
        )


def _told(error, where):
    error = _likeliest(error)
    path = [*([where] if where else []), *(str(part) for part in error.absolute_path)]
    key = ".".join(path)
    schema = error.schema
    if error.validator == "additionalProperties":
        allowed = list(schema.get("properties", {}))
        unknown = sorted(set(error.instance) - set(allowed), key=str)[0]
        full = ".".join([*path, str(unknown)])
        nearest = _nearest(unknown, allowed)
        repair = f"write `{nearest}: {_yaml(error.instance[unknown])}`" if nearest else f"remove `{unknown}`"
        return HoldfastError(
            f"config key {full} is unknown", found=unknown, expected=", ".join(allowed), repair=repair
        )
    if error.validator == "required":
        missing = [name for name in schema["required"] if name not in error.instance][0]
        return HoldfastError(
            f"config key {'.'.join([*path, missing])} is missing",
            repair=f"add `{missing}:` as in config.yaml",
        )
    expected, found = _expectation(error), error.instance
    last = path[-1] if path else ""
    repair = f"give {expected}"
    if error.validator == "registered":
        nearest = _nearest(found, registered(error.validator_value))
        repair = f"write {nearest}" if nearest else f"remove {found}"
    elif expected == "integer" and isinstance(found, float) and found.is_integer():
        repair = f"write `{last}: {int(found)}`"
    elif "default" in schema:
        repair = f"write for example `{last}: {_yaml(schema['default'])}`"
    return HoldfastError(
        f"config key {key} has a wrong value",
        found=_yaml(found),
        expected=expected + (f" ({schema['description']})" if "description" in schema else ""),
        repair=repair,
    )


def _likeliest(error):
    """Of what an `anyOf` has against a value: the first complaint of the form that was likely meant."""
    while error.context:
        forms = {}
        for part in error.context:
            forms.setdefault(part.schema_path[0], []).append(part)
        # Neither one of another type, nor one that has more against it.
        meant = [parts for parts in forms.values() if not any(map(_of_another_type, parts))]
        if not meant:
            break
        error = min(meant, key=len)[0]
    return error


def _of_another_type(error):
    whole = error.validator == "type" or (error.context and all(map(_of_another_type, error.context)))
    return bool(whole) and not error.path


def _types_of(error):
    """The types that an `anyOf` would take."""
    if error.validator == "type":
        return [error.validator_value]
    return list(dict.fromkeys(name for part in error.context for name in _types_of(part)))


def _expectation(error):
    wanted = error.validator_value
    words = {
        "type": lambda: " or ".join(wanted if isinstance(wanted, list) else [wanted]),
        "anyOf": lambda: " or ".join(_types_of(error)),
        "registered": lambda: "one of " + ", ".join(registered(wanted)),
        "enum": lambda: "one of " + ", ".join(map(str, wanted)),
        "exclusiveMinimum": lambda: f"a number above {wanted}",
        "minimum": lambda: f"a number of at least {wanted}",
        "maximum": lambda: f"a number of at most {wanted}",
        "exclusiveMaximum": lambda: f"a number below {wanted}",
        "multipleOf": lambda: f"a multiple of {wanted}",
        "minItems": lambda: f"at least {wanted} entries",
        "maxItems": lambda: f"at most {wanted} entries",
        "minLength": lambda: "some text",
        "minProperties": lambda: "at least one entry",
        "uniqueItems": lambda: "entries that differ",
        "pattern": lambda: f"text of the form {wanted}",
    }
    return words.get(error.validator, lambda: error.message)()


def _nearest(name, names):
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.6)
    return close[0] if close else None


def _yaml(value):
    return yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("...").strip()


def read(*paths):
    """Merge YAML files in order (mappings deeply, anything else replaced) and complete the result.

    Raises:
        HoldfastError: a file is missing or not YAML, or the config is wrong (:func:`complete`).
    """
    merged = {}
    for path in paths:
        merged = merge(merged, read_part(path))
    return complete(merged)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node, deep=False):
        seen = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} stands twice: put all of it under one", key_node.start_mark
                )
            seen.append(key)
        return super().construct_mapping(node, deep)


def read_part(path):
    """One YAML file, not completed; nothing but comments is {}.

    Raises:
        HoldfastError: it is missing, not YAML of `key: value`, or has a key twice.
    """
    try:
        part = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HoldfastError(
            f"cannot read the config {path}", found=str(error), expected="a YAML file"
        ) from error
    if not isinstance(part, dict):
        raise HoldfastError(
            f"cannot read the config {path}", found=_yaml(part), expected="a YAML file of `key: value`"
        )
    return part


def merge(base, change):
    """`change` laid over `base`; mappings are merged deeply."""
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    return {**base, **{key: merge(base.get(key), value) for key, value in change.items()}}


def ordered_like(reference, value):
    """`value` with the keys of `reference` first and in its order, deeply: the order of rows in tables."""
    if not (isinstance(reference, dict) and isinstance(value, dict)):
        return value
    names = [name for name in reference if name in value] + [name for name in value if name not in reference]
    return {name: ordered_like(reference.get(name), value[name]) for name in names}


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
