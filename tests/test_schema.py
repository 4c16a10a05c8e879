"""The schema of the config; what it refuses and how that is told is in test_config.py."""

from holdfast.modules import SECTIONS, registered
from holdfast.schema import check, full_schema


def properties(schema, path=()):
    """(path, schema) of everything that a config can set."""
    if isinstance(schema, dict):
        for name, part in schema.get("properties", {}).items():
            yield (*path, name), part
            yield from properties(part, (*path, name))
        for name, part in schema.get("$defs", {}).items():
            yield from properties(part, (name,))


def test_every_setting_is_described_and_its_default_is_valid():
    root = full_schema()
    everything = list(properties(root))
    for section in SECTIONS:
        known = registered(section)
        assert known, section
        for kind, own in known.items():
            everything += list(properties({"properties": own}, (section, kind)))
    for path, part in everything:
        if "$ref" in part:
            part = {**root["$defs"][part["$ref"].rsplit("/", 1)[1]], **part}
        assert part.get("description", "").endswith("."), ".".join(path)
        if "default" in part:
            check(part["default"], {**part, "$defs": root["$defs"]}, ".".join(path))
