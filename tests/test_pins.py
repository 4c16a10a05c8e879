"""One set of versions: what pip installs from pyproject.toml is what envs/holdfast.yaml gives to jobs."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "envs/holdfast.yaml").read_text(encoding="utf-8"))
PIN = re.compile(r"([a-z0-9-]+)==(\d+(?:\.\d+)+)")


def pins(requirements):
    found = {}
    for requirement in requirements:
        match = PIN.fullmatch(requirement)
        assert match, f"{requirement} is not pinned exactly"
        assert match[1] not in found, f"{match[1]} is pinned twice"
        found[match[1]] = match[2]
    return found


def test_the_environment_pins_what_the_project_pins():
    (inner,) = (part["pip"] for part in ENVIRONMENT["dependencies"] if isinstance(part, dict))
    assert pins(inner) == pins(PROJECT["dependencies"]) and "torch" in pins(inner)


def test_optional_dependencies_are_pinned_too():
    for extra, requirements in PROJECT["optional-dependencies"].items():
        assert pins(requirements), extra


def test_the_environments_python_is_one_that_the_project_allows():
    (python,) = (
        part.removeprefix("python=")
        for part in ENVIRONMENT["dependencies"]
        if isinstance(part, str) and part.startswith("python=")
    )
    least, below = re.fullmatch(r">=([\d.]+),<([\d.]+)", PROJECT["requires-python"]).groups()
    least, below, python = (tuple(map(int, v.split("."))) for v in (least, below, python))
    assert least <= python < below


def test_everything_that_the_library_imports_is_a_dependency():
    import ast
    import sys

    names = {"PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image", "pytorch_fid": "pytorch-fid"}
    imported = set()
    for path in (ROOT / "workflow/holdfast").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    outside = {names.get(name, name) for name in imported - set(sys.stdlib_module_names) - {"holdfast"}}
    assert "snakemake" not in outside
    assert outside <= set(pins(PROJECT["dependencies"]))
