"""The modules whose code decides what a training or an optimisation gives, and a hash of that code.

The rules name them as inputs, so that a job runs again when one of them changes; and the folder of its state
file is named by their hash, so that it then does not take up what other code has computed. Not the whole
library, or any change would cost every job.
"""

import ast
import functools

from holdfast.config import digest
from holdfast.modules import PACKAGE, modules_of

LOOP = ("training/loop.py", "seeds.py")
#: Beside the folder of the defences, what some of them import that decides what they give.
BESIDE_DEFENCES = (*LOOP, "data/pixels.py", "metrics/image.py")


def of_classifier():
    """Paths within the library, as those of all functions here."""
    return ("deepfakes/classifier.py", *LOOP)


def of_deepfake(name):
    """Of pretraining and of retraining."""
    return (*modules_of("deepfakes", name), "deepfakes/training.py", *LOOP)


def of_detector(name):
    return (*modules_of("detectors", name), "detectors/training.py", *LOOP)


@functools.cache  # asked for once for every job of the graph
def of_defence(name):
    own = modules_of("defences", name)
    imported = set().union(*map(_imports, own))
    return (*own, *(module for module in BESIDE_DEFENCES if module in imported))


def of_attacked(models, detectors):
    """Of what a defence looks at, by name: weights do not say what is done with them."""
    given = {"deepfakes": models, "detectors": detectors}
    return tuple(
        module for kind, names in given.items() for name in names for module in modules_of(kind, name)
    )


def of_protection(name):
    """Of protected images; a defence per image works there."""
    return tuple(dict.fromkeys([*of_defence(name), "stages/protect.py", "data/pixels.py"]))


def hash_of(modules):
    """sha256 of the modules' code; comments, docstrings and layout do not count."""
    return digest([_code(module) for module in modules])


def _imports(module):
    """The modules of the library that a module takes names from, as paths within the library."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    named = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {f"{name.removeprefix('holdfast.').replace('.', '/')}.py" for name in named}


@functools.cache
def _code(module):
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)
