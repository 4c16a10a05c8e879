"""What the library's modules register, read from their text and not by importing them: a workflow starts in a
second, without torch.

A module says REGISTER, {name: thing}, and may say SETTINGS, {setting: JSON schema}, and FIRST_STAGE, names of
settings (holdfast.defences.base). holdfast.registry holds the things themselves.
"""

import ast
import functools
from pathlib import Path

from holdfast.errors import HoldfastError

PACKAGE = Path(__file__).resolve().parent
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
        module = literals(path)
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
    found = [next(stem for stem, path in beside.items() if name in literals(path)["REGISTER"])]
    for stem in found:  # grows on the way
        for node in ast.walk(ast.parse(beside[stem].read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                package, _, module = node.module.partition(f"holdfast.{folder}")
                named = [alias.name for alias in node.names] if not module else [module.removeprefix(".")]
                if not package:
                    found += [other for other in named if other in beside and other not in found]
    return tuple(f"{folder}/{stem}.py" for stem in found)


@functools.cache
def literals(path):
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
                found[name] = literals(path.with_name(f"{ast.unparse(value.value)}.py"))[name]
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


@functools.cache
def first_stage_settings(method):
    """Names of the settings that decide the first stage of a registered defence; () of one without.

    Raises:
        HoldfastError: FIRST_STAGE names something else.
    """
    module = modules_of("defences", method)[0]
    settings, known = literals(PACKAGE / module)["FIRST_STAGE"], registered("defences")[method]
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
