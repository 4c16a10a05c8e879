"""The config's JSON schema: what is wrong with a value, told with its repair, and defaults of what is absent.

The schema itself is schemas/config.schema.json; the entries' own settings are their modules' SETTINGS
(holdfast.modules).
"""

import copy
import difflib
import json
import math

import jsonschema

from holdfast.errors import HoldfastError
from holdfast.modules import PACKAGE, registered
from holdfast.yaml_files import as_yaml

SCHEMA = PACKAGE.parent / "schemas" / "config.schema.json"
KINDS = {"datasets": "dataset", "deepfakes": "deepfake", "detectors": "detector", "defences": "defence"}


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


def with_defaults(value, schema, root):
    """A copy of a mapping with the defaults of its schema at all depths; `root` has the $defs."""
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
            value[key] = with_defaults(value[key], part, root)
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


def check(value, schema, where):
    """Refuse what does not hold to its schema; `where` is its key in the config, "" for all of it.

    Raises:
        HoldfastError: names the key that is wrong, and its repair.
    """
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
            found=as_yaml(value),
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
        nearest = closest(unknown, allowed)
        repair = (
            f"write `{nearest}: {as_yaml(error.instance[unknown])}`" if nearest else f"remove `{unknown}`"
        )
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
        nearest = closest(found, registered(error.validator_value))
        repair = f"write {nearest}" if nearest else f"remove {found}"
    elif expected == "integer" and isinstance(found, float) and found.is_integer():
        repair = f"write `{last}: {int(found)}`"
    elif "default" in schema:
        repair = f"write for example `{last}: {as_yaml(schema['default'])}`"
    return HoldfastError(
        f"config key {key} has a wrong value",
        found=as_yaml(found),
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


def closest(name, names):
    """The one of `names` that `name` is likely a misspelling of, or None."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.6)
    return close[0] if close else None
