"""Which change of the code makes a job begin anew."""

import pytest

from holdfast import sources

MODULE = '''"""What the module is."""

RATE = 0.1  # per step


def step(x):
    """One step."""
    return x - RATE
'''


@pytest.fixture
def hash_of(tmp_path, monkeypatch):
    """Function of a module's text: the hash of a library that has no other module."""
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)

    def of_text(text):
        (tmp_path / "step.py").write_text(text, encoding="utf-8")
        sources._code.cache_clear()
        return sources.hash_of(["step.py"])

    yield of_text
    sources._code.cache_clear()


@pytest.mark.parametrize(
    "old, new",
    [("# per step", "# of each step, in pixels"), ("One step.", "A step down."), ("\n\n\n", "\n\n")],
)
def test_words_do_not_count(hash_of, old, new):
    assert old in MODULE and hash_of(MODULE.replace(old, new)) == hash_of(MODULE)


@pytest.mark.parametrize(
    "old, new", [("0.1", "0.2"), ("x - RATE", "x + RATE"), ("def step(x)", "def step(y)")]
)
def test_code_counts(hash_of, old, new):
    assert old in MODULE and hash_of(MODULE.replace(old, new)) != hash_of(MODULE)


def test_every_module_named_is_there():
    named = {
        *sources.of_classifier(),
        *sources.of_deepfake("attentiongan"),
        *sources.of_detector("dsfd"),
        *sources.of_protection("tsdf_hidden"),
    }
    assert all((sources.PACKAGE / module).is_file() for module in named)
    assert {"deepfakes/stargan.py", "detectors/vgg.py", "defences/hiding.py"} <= named


@pytest.mark.parametrize(
    "name, beside",
    [
        ("none", {"data/pixels.py"}),
        ("random", {"data/pixels.py", "seeds.py"}),
        ("tsdf", {"data/pixels.py", "seeds.py", "training/loop.py"}),
        ("cmua", {"data/pixels.py", "seeds.py", "training/loop.py", "metrics/image.py"}),
    ],
)
def test_a_defence_is_of_what_it_takes_from_beside_its_folder(name, beside):
    found = sources.of_defence(name)
    assert f"defences/{name}.py" == found[0]
    assert {module for module in found if not module.startswith("defences/")} == beside


def test_a_defence_is_of_the_code_of_what_it_attacks():
    found = sources.of_attacked(["attentiongan", "hisd"], ["s3fd"])
    assert {"deepfakes/stargan.py", "deepfakes/hisd.py", "detectors/s3fd.py"} <= set(found)
    assert not {"deepfakes/attgan.py", "detectors/dsfd.py"} & set(found)
    assert sources.of_attacked([], []) == ()


def test_a_state_of_other_code_is_not_taken_up(monkeypatch):
    from holdfast.stages.common import state_file

    config = {"device": "cpu", "threads": 1, "results": "results"}
    places = [state_file(config, "a", 1, code=code) for code in (("files.py",), ("seeds.py",), ("files.py",))]
    assert places[0] == places[2] != places[1]
