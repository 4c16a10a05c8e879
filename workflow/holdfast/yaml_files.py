"""YAML files of the config: read, merged, and their order of keys kept."""

from pathlib import Path

import yaml

from holdfast.errors import HoldfastError


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
            f"cannot read the config {path}", found=as_yaml(part), expected="a YAML file of `key: value`"
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


def as_yaml(value):
    """A value as it would be written in one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("...").strip()
