"""What is read from the text of the library's modules is what they register when they are imported."""

from pathlib import Path

import pytest

from holdfast import modules
from holdfast.errors import HoldfastError


def test_the_names_read_from_the_text_are_those_that_the_modules_register():
    from holdfast.data import DATASETS
    from holdfast.deepfakes import DEEPFAKES
    from holdfast.defences import DEFENCES
    from holdfast.detectors import DETECTORS
    from holdfast.metrics import METRICS

    registries = {
        "datasets": DATASETS,
        "deepfakes": DEEPFAKES,
        "detectors": DETECTORS,
        "defences": DEFENCES,
        "metrics": METRICS,
    }
    for section, registry in registries.items():
        assert set(modules.registered(section)) == set(registry)


def test_a_register_that_cannot_be_read_without_running_it_is_refused(tmp_path):
    module = tmp_path / "odd.py"
    module.write_text("NAME = 'x'\nREGISTER = {NAME: 1}\n")
    with pytest.raises(HoldfastError, match="REGISTER of odd.py cannot be read, line 2"):
        modules.literals(module)


@pytest.mark.parametrize("text", ["REGISTER = dict(own=None)", "REGISTER: dict = NAMES", "REGISTER: dict"])
def test_a_register_that_is_not_written_out_is_refused(tmp_path, text):
    (tmp_path / "odd.py").write_text(f"{text}\n")
    with pytest.raises(HoldfastError, match="REGISTER of odd.py cannot be read, line 1"):
        modules.literals(tmp_path / "odd.py")


def test_a_register_may_say_its_type(tmp_path):
    (tmp_path / "odd.py").write_text("REGISTER: dict = {'own': None}\n")
    assert modules.literals(tmp_path / "odd.py")["REGISTER"] == ["own"]


def test_titles_are_those_of_the_classes():
    from holdfast.deepfakes import DEEPFAKES
    from holdfast.defences import DEFENCES
    from holdfast.detectors import DETECTORS

    for section, registry in (("deepfakes", DEEPFAKES), ("defences", DEFENCES), ("detectors", DETECTORS)):
        for name, kind in registry.items():
            module = modules.PACKAGE / modules.modules_of(section, name)[0]
            assert modules.literals(module)["TITLES"][name] == kind.title


def test_settings_may_be_those_of_the_module_beside(tmp_path):
    found = modules.registered("deepfakes")
    assert found["attentiongan"] == found["stargan"] and "lambda_rec" in found["attentiongan"]
    assert found["hisd"]["critic_steps"]["const"] == 1 and found["attgan"]["critic_steps"]["default"] == 5


@pytest.fixture
def other_library(tmp_path, monkeypatch):
    """A function that makes a module of defences the only one that the config knows of."""

    def clear():
        modules.registered.cache_clear()
        modules.first_stage_settings.cache_clear()

    def make(text):
        (tmp_path / "defences").mkdir(exist_ok=True)
        (tmp_path / "defences/own.py").write_text(text)
        monkeypatch.setattr(modules, "PACKAGE", tmp_path)
        clear()

    clear()
    yield make
    monkeypatch.undo()
    clear()


def test_a_setting_called_as_one_of_the_pipelines_keys_is_refused(other_library):
    weights = "{'weights': {'type': 'number', 'default': 2, 'description': 'Weights.'}}"
    other_library(f"SETTINGS = {weights}\nREGISTER = {{'own': None}}\n")
    with pytest.raises(HoldfastError, match="SETTINGS of own.py cannot be used") as caught:
        modules.registered("defences")
    assert caught.value.repair == "call weights something else"


def test_every_first_stage_is_told_in_its_module():
    from holdfast.defences import DEFENCES

    for name, kind in DEFENCES.items():
        assert bool(kind.first_stage) == bool(modules.first_stage_settings(name)), name


@pytest.mark.parametrize(
    ("written", "repair"), [("('steps', 'tua')", "remove tua"), ("('steps')", "a comma behind")]
)
def test_a_first_stage_that_names_no_settings_is_refused(other_library, written, repair):
    settings = "{'steps': {'type': 'integer', 'default': 1, 'description': 'Steps.'}}"
    other_library(f"SETTINGS = {settings}\nFIRST_STAGE = {written}\nREGISTER = {{'own': None}}\n")
    with pytest.raises(HoldfastError, match="FIRST_STAGE of defences/own.py cannot be used") as caught:
        modules.first_stage_settings("own")
    assert repair in str(caught.value)


def test_a_first_stage_that_is_no_literal_is_refused(other_library):
    other_library("from x import NAMES\nFIRST_STAGE = NAMES\nREGISTER = {'own': None}\n")
    with pytest.raises(HoldfastError, match="FIRST_STAGE of own.py cannot be read, line 2"):
        modules.first_stage_settings("own")


def test_the_modules_of_a_name_begin_with_the_one_that_registers_it():
    assert modules.modules_of("defences", "facepoison_universal")[0] == "defences/facepoison.py"
    for section in modules.SECTIONS:
        for name in modules.registered(section):
            files = [modules.PACKAGE / file for file in modules.modules_of(section, name)]
            assert f'"{name}"' in files[0].read_text(encoding="utf-8").partition("REGISTER = ")[2]
            assert len(set(files)) == len(files) and all(file.is_file() for file in files)


@pytest.mark.parametrize(
    "section, name, some, others",
    [
        ("deepfakes", "attentiongan", ["stargan", "model", "losses"], ["attgan", "training", "hisd"]),
        ("detectors", "dsfd", ["vgg", "detector", "boxes"], ["s3fd", "retinaface", "training"]),
        ("detectors", "retinaface", ["detector", "boxes"], ["vgg"]),
        # By way of fusion and interruption: what is imported by what is imported.
        ("defences", "tsdf", ["base", "enhancement", "momentum", "poisoning", "separation"], ["cmua"]),
        (
            "defences",
            "tsdf_hidden",
            ["base", "hiding", "interruption", "tsdf", "diversity"],
            ["cmua", "found"],
        ),
        ("defences", "random", ["base"], ["stages", "momentum"]),
        ("datasets", "celeba", ["preparing"], ["rendering"]),
        ("datasets", "synthetic", ["rendering"], ["celeba"]),
    ],
)
def test_the_modules_of_a_name_are_what_it_imports_from_its_folder(section, name, some, others):
    stems = {Path(file).stem for file in modules.modules_of(section, name)}
    assert stems >= {name, *some} and not stems & set(others)
