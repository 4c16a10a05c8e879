"""Registries that are plain dictionaries, filled from the files of a folder.

A module in ``defences/`` (or ``deepfakes/``, ``detectors/``, ``data/``, ``metrics/``) that says
``REGISTER = {"name": thing}`` stands in the registry of its folder; nothing else has to be edited.
"""

import importlib
import pkgutil

from holdfast.errors import HoldfastError


def collect(package_name, package_path):
    """All ``REGISTER`` entries of a package's modules, ordered by name.

    Raises:
        HoldfastError: two modules register one name.
    """
    found = {}
    for module in sorted(pkgutil.iter_modules(package_path), key=lambda m: m.name):
        entries = getattr(importlib.import_module(f"{package_name}.{module.name}"), "REGISTER", {})
        for name, thing in entries.items():
            if name in found:
                raise HoldfastError(
                    f"{package_name}.{module.name} registers '{name}', which another module has registered",
                    repair="give one of them another name in its REGISTER",
                )
            found[name] = thing
    return dict(sorted(found.items()))
