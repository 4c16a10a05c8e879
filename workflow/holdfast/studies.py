"""Studies: a defence measured again with other values of its settings. Here is what its variants are called.

An entry of the config's `studies` names a defence, the base. Its variants are the cartesian product of `vary`
({setting: [values]}), then `variants` ([{setting: value, ...}]), each laid over the base together with
`settings`, which all of them share. A variant is named by what differs from the base: one set of settings is
one defence, computed once, however many studies have it; and what differs in nothing is the base itself.
"""

import itertools
import json
import re

from holdfast.errors import HoldfastError

LONGEST = 160  # characters of a variant's name, which is part of file names
_SAFE = re.compile(r"[A-Za-z0-9_.+-]+")


def values_of(study):
    """What each variant of a study sets besides the shared `settings`: a list of {setting: value}."""
    vary = study["vary"]
    products = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
    return [*(products if vary else []), *study["variants"]]


def title_of(study, values):
    """A variant's title in the study's table: its label, or else "setting=value, ..."."""
    key = ", ".join(f"{setting}={_text(value)}" for setting, value in values.items())
    return study["labels"].get(key, key)


def expanded(where, study, base, known):
    """The variants of a study.

    Args:
        where: the study's key in the config, for messages.
        study: its entry, complete.
        base: the entry of the defence that it varies, complete.
        known: names of that defence's settings; their order is that of a variant's name.

    Returns:
        A list of (name, entry, title): the name of the defence, its settings and whatever else the base's
        entry has, and what it is called in the study's table.

    Raises:
        HoldfastError: a name that cannot stand in file names, two variants that are one defence, or two of
            one title.
    """
    found = []
    for values in values_of(study):
        laid_over = study["settings"] | values
        changed = {
            setting: _plain(laid_over[setting])
            for setting in known
            if setting in laid_over and not (setting in base and _same(laid_over[setting], base[setting]))
        }
        name = _checked(where, study["defence"], changed)
        found.append((name, {**base, **changed}, title_of(study, values)))
    for what, column in (("are one defence", 0), ("share a title", 2)):
        names = [variant[column] for variant in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise HoldfastError(
                f"config key {where}: two variants {what}",
                found=twice,
                expected="variants that differ",
                repair="remove one of the two, or change its settings or its label",
            )
    return found


def named(method, base, entry, settings):
    """What a defence is called that differs from `base` as `entry` does, as far as `settings` go."""
    changed = {setting: entry[setting] for setting in settings if not _same(entry[setting], base[setting])}
    return _name(method, changed)


def _name(base, changed):
    return base + "".join(f"-{setting}={_text(value)}" for setting, value in changed.items())


def _checked(where, base, changed):
    for setting, value in changed.items():
        if not _SAFE.fullmatch(_text(value)):
            raise HoldfastError(
                f"config key {where} varies {setting} by values that cannot stand in file names",
                found=_text(value),
                expected="numbers, true, false, null, or words of letters, digits and . _ + -",
                repair=f"give {where}.settings what all variants share, and vary something else",
            )
    name = _name(base, changed)
    if len(name) > LONGEST:
        raise HoldfastError(
            f"config key {where} gives a variant a name that is too long for file names",
            found=f"{len(name)} characters: {name}",
            expected=f"at most {LONGEST}",
            repair="vary fewer settings at a time",
        )
    return name


def _plain(value):
    """A whole number as an integer: 0 and 0.0 are one variant with one name."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _same(first, second):
    """Whether two values of a setting are one, as JSON has it: 0 is 0.0, but neither false nor "0"."""
    return json.dumps(_plain(first), sort_keys=True) == json.dumps(_plain(second), sort_keys=True)


def _text(value):
    """A value as it stands in names: words as they are, all else as in JSON."""
    return value if isinstance(value, str) else json.dumps(_plain(value), sort_keys=True)
