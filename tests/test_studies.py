"""Studies: the defences that they derive, how these are called, and what is refused."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import config, studies
from holdfast.errors import HoldfastError
from holdfast.stages.common import own_settings


def small(defences=None, **entries):
    return {
        "training_set": "synthetic",
        "datasets": {"synthetic": {}},
        "deepfakes": {"stargan": {}},
        "detectors": {"retinaface": {}},
        "defences": defences or {"none": {}, "tsdf": {"iterations": 7}, "ssod": {"skip": "too slow"}},
        "studies": entries,
    }


def complete(**entries):
    return config.complete(small(**entries))


def refusal(**entries):
    with pytest.raises(HoldfastError) as caught:
        complete(**entries)
    assert caught.value.repair
    return caught.value


TAU = {"defence": "tsdf", "vary": {"tau": [0, 0.02, 0.04]}}


def test_variants_are_the_base_with_their_settings_laid_over():
    found = complete(tau=TAU)
    variants = config.variants(found)
    assert list(variants) == ["tsdf-tau=0", "tsdf-tau=0.02"]
    for name, tau in (("tsdf-tau=0", 0), ("tsdf-tau=0.02", 0.02)):
        assert config.defence_of(found, name) == ("tsdf", {**found["defences"]["tsdf"], "tau": tau})
    assert config.defence_of(found, "tsdf") == ("tsdf", found["defences"]["tsdf"])
    # 0.04 is the base's own: the variant is the base, not another defence.
    titles = {"tsdf-tau=0": "tau=0", "tsdf-tau=0.02": "tau=0.02", "tsdf": "tau=0.04"}
    assert config.studied(found, "tau") == titles
    assert list(found["defences"]) == ["none", "tsdf", "ssod"]  # and no entry either
    assert config.complete(found) == found


def test_variants_that_differ_behind_the_first_stage_share_it():
    found = complete(
        tau=TAU,
        signs={
            "defence": "tsdf",
            "vary": {"enhancement_sign": ["ascend", "descend"], "mask_acts_on": ["update", "perturbation"]},
        },
    )
    assert list(config.first_stages(found)) == ["tsdf", "tsdf-enhancement_sign=descend"]
    method, settings = config.first_stages(found)["tsdf-enhancement_sign=descend"]
    assert method == "tsdf" and settings["enhancement_sign"] == "descend" and "tau" not in settings
    shared = "tsdf-enhancement_sign=descend-mask_acts_on=update"
    assert config.first_stage_of(found, shared) == "tsdf-enhancement_sign=descend"
    assert config.first_stage_of(found, "tsdf-tau=0") == "tsdf"
    assert config.first_stage_of(found, "ssod") is None


def test_the_product_then_single_variants_under_shared_settings():
    study = {
        "defence": "tsdf",
        "settings": {"tau": 0},
        "vary": {"feature_distance": ["none", "enhancement"], "restandardise": [True, False]},
        "variants": [{"lambda_enh": 1}],
        "labels": {"feature_distance=none, restandardise=false": "None, as written"},
    }
    assert config.studied(complete(shapes=study), "shapes") == {
        "tsdf-feature_distance=none-tau=0": "feature_distance=none, restandardise=true",
        "tsdf-restandardise=false-feature_distance=none-tau=0": "None, as written",
        "tsdf-tau=0": "feature_distance=enhancement, restandardise=true",
        "tsdf-restandardise=false-tau=0": "feature_distance=enhancement, restandardise=false",
        "tsdf-lambda_enh=1-tau=0": "lambda_enh=1",
    }


def test_one_set_of_settings_is_one_defence_however_it_is_written():
    first = {"defence": "tsdf", "vary": {"tau": [0.0], "beta": [5]}}
    second = {"defence": "tsdf", "vary": {"beta": [5.0], "tau": [0]}}
    found = complete(first=first, second=second, third=TAU)
    assert list(config.studied(found, "first")) == list(config.studied(found, "second"))
    assert list(config.variants(found)) == ["tsdf-tau=0-beta=5", "tsdf-tau=0", "tsdf-tau=0.02"]


def test_a_title_of_the_base_stays_the_variants_and_is_no_setting_of_theirs():
    titled = {"tsdf": {"title": "Ours"}}
    found = config.complete(small(titled, tau=TAU))
    entry = config.defence_of(found, "tsdf-tau=0")[1]
    assert entry["title"] == "Ours" and "title" not in own_settings(entry)


@pytest.mark.parametrize(
    "entry, key, words",
    [
        ({"defence": "tsdf", "vary": {"tua": [0]}}, "studies.s.vary.tua is unknown", "write `tau: 0`"),
        ({"defence": "tsdf", "settings": {"tua": 0}}, "studies.s.settings.tua is unknown", "`tau: 0`"),
        (
            {"defence": "tsdf", "variants": [{"tau": 0}, {"betta": 1}]},
            "studies.s.variants.1.betta is unknown",
            "write `beta: 1`",
        ),
        ({"defence": "tsdf", "vary": {"title": ["a"]}}, "studies.s.vary.title is unknown", "remove `title`"),
        ({"defence": "tsdf", "vary": {"skip": ["a"]}}, "studies.s.vary.skip is unknown", "remove `skip`"),
        ({"defence": "tsdf", "vary": {"tau": [0, -1]}}, "studies.s.vary.tau has a wrong value", "at least 0"),
        ({"defence": "tsdf", "vary": {"tau": []}}, "studies.s.vary.tau has a wrong value", "at least 1"),
        ({"defence": "tsdf", "vary": {"tau": [0, 0.0]}}, "studies.s.vary.tau has a wrong value", "differ"),
        ({"defence": "tsdf", "vary": {"tau": 0}}, "studies.s.vary.tau has a wrong value", "array"),
        ({"defence": "tsdf"}, "studies.s has nothing to vary", "`vary: {"),
        ({"vary": {"tau": [0]}}, "studies.s.defence is missing", "`defence:`"),
        ({**TAU, "table": "I"}, "studies.s.table has a wrong value", "VII"),
        ({**TAU, "tabel": "VII"}, "studies.s.tabel is unknown", "write `table: VII`"),
        ({**TAU, "defence": "tsdff"}, "studies.s.defence refers to nothing that is run", "`defence: tsdf`"),
        ({**TAU, "defence": "ssod"}, "studies.s.defence refers to nothing that is run", "`skip` as well"),
        ({**TAU, "labels": {"beta=1": "x"}}, "studies.s.labels names something", "beta=1"),
        ({**TAU, "variants": [{"tau": 0.02}]}, "studies.s: two variants are one defence", "tsdf-tau=0.02"),
        (
            {**TAU, "labels": {"tau=0": "x", "tau=0.02": "x"}},
            "studies.s: two variants share a title",
            "its label",
        ),
        (
            {"defence": "tsdf", "vary": {"level_weights": [[1, 2, 3]]}},
            "studies.s varies level_weights by values that cannot stand in file names",
            "[1, 2, 3]",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_key_and_repair(entry, key, words):
    error = refusal(s=entry)
    assert f"config key {key}" in str(error) and words in str(error)


def test_a_name_that_is_too_long_is_refused():
    many = {f"poison_{key}": [2] for key in ("iterations", "steps_per_batch", "step_size")}
    many |= {key: [3] for key in ("fused_size", "adaptor_channels", "box_weight", "output_weight", "sigma")}
    many |= {key: [1] for key in ("steps_per_batch", "feature_size", "detected_above", "nu", "alpha", "beta")}
    assert "too long" in str(refusal(s={"defence": "tsdf", "vary": many}))


def test_two_studies_cannot_have_one_table():
    error = refusal(first={**TAU, "table": "VII"}, second={**TAU, "table": "VII"})
    assert "studies.first.table: another study has this table" in str(error)


def test_a_skipped_study_derives_nothing_and_asks_for_nothing_that_is_run():
    later = {"skip": "later", "defence": "nobody", "vary": {"strength": [1, 2]}}
    found = complete(later=later, tau={**TAU, "skip": "later", "defence": "ssod"})
    assert config.variants(found) == {} and config.studied(found, "later") == {}
    assert [studies.title_of(found["studies"]["later"], v) for v in ({"strength": 1}, {"strength": 2})] == [
        "strength=1",
        "strength=2",
    ]


@settings(max_examples=15)
@given(
    st.dictionaries(
        st.sampled_from(["tau", "beta", "nu"]),
        st.lists(st.floats(0, 9).map(lambda x: round(x, 3)), min_size=1, max_size=2, unique=True),
        min_size=1,
    )
)
def test_names_tell_variants_apart_and_none_is_an_entry(vary):
    given = small(s={"defence": "tsdf", "vary": vary})
    before = copy.deepcopy(given)
    found = config.complete(given)
    names = list(config.studied(found, "s"))
    count = 1
    for values in vary.values():
        count *= len(values)
    assert len(set(names)) == len(names) == count and given == before
    variants = config.variants(found)
    assert set(variants) == set(names) - {"tsdf"}
    assert len({str(entry) for _, entry in variants.values()}) == len(variants)
    for name in variants:
        assert "/" not in name and "," not in name and " " not in name
