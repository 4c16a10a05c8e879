"""Registries: a file in a folder is all that an addition takes."""

import sys

import pytest

from holdfast.errors import HoldfastError
from holdfast.registry import collect


@pytest.fixture
def package(tmp_path, monkeypatch):
    """package({module: text}) -> (name, path) of a package on the import path."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(**modules):
        folder = tmp_path / "things_of_test"
        folder.mkdir()
        (folder / "__init__.py").touch()
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        return "things_of_test", [str(folder)]

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] == "things_of_test"]:
        del sys.modules[name]


def test_all_registered_things_ordered_by_name(package):
    found = collect(
        *package(
            zeta="REGISTER = {'apple': 1, 'pear': 2}",
            alpha="REGISTER = {'orange': 3}",
            helper="X = {'no': 0}",
        )
    )
    assert list(found.items()) == [("apple", 1), ("orange", 3), ("pear", 2)]


def test_an_empty_folder_gives_an_empty_registry(package):
    assert collect(*package()) == {}


def test_one_name_twice_is_refused(package):
    name, path = package(first="REGISTER = {'apple': 1}", second="REGISTER = {'apple': 2}")
    with pytest.raises(HoldfastError, match=r"things_of_test\.second registers 'apple'") as caught:
        collect(name, path)
    assert "REGISTER" in caught.value.repair


def test_a_module_that_does_not_import_is_not_passed_over(package):
    name, path = package(broken="import nothing_of_this_name")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        collect(name, path)
