"""A defence's settings: defaults filled in, names and choices checked."""

from holdfast.errors import HoldfastError


def options(owner, defaults, given, choices=None):
    """`given` on top of `defaults`.

    Args:
        owner: whose settings they are, for the message.
        defaults: {key: value}; all keys there are.
        given: {key: value} from the config.
        choices: {key: allowed values} for the keys that are a choice.

    Raises:
        HoldfastError: an unknown key, or a value that is none of the choices.
    """
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise HoldfastError(
            f"the defence {owner} knows no setting `{unknown[0]}`", expected=f"any of {', '.join(defaults)}"
        )
    merged = {**defaults, **given}
    for key, allowed in (choices or {}).items():
        if merged[key] not in allowed:
            raise HoldfastError(
                f"the defence {owner} cannot take this `{key}`",
                found=merged[key],
                expected=" | ".join(str(value) for value in allowed),
            )
    return merged
