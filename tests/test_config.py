"""The config: what it refuses and how it says so, what it fills in, and that the shipped files hold to it."""

import copy
import functools
import re
from pathlib import Path

import pytest
import yaml

from holdfast import config, modules, schema, yaml_files
from holdfast.errors import HoldfastError

ROOT = Path(__file__).resolve().parent.parent
PAPER = ROOT / "config.yaml"
PRESETS = sorted((ROOT / "workflow/presets").glob("*.yaml"))
LAYOUTS = [(), *((preset,) for preset in PRESETS)]
NAMES = ["paper", *(preset.stem for preset in PRESETS)]

# What presets may change: sizes, how long and on what something is trained, where results lie.
SIZES = re.compile(
    r"""preset | results | perturbation_seeds | device | threads | image_size | training_set | fid_features
    | datasets\.synthetic(\..*)? | datasets\.\w+\.(skip|limits(\.\w+)?)
    | (classifier|scenes|measuring|protection)\.\w+
    | deepfakes\.\w+\.(\w*channels|layers|discriminator_layers|hidden|style|noise|iterations|batch
                       |critic_steps|generator_rate|discriminator_rate|decay_after|average|precision|skip|title)
    | detectors\.\w+\.(width|anchors|input_size|skip|training\.\w+)
    | defences\.\w+\.(iterations|(more_)?poison_iterations|poison_steps|steps|batch|fused_size
                      |adaptor_channels|feature_size|search_trials|skip|title|seeds)
    | attacker\.(images|models|defences|seeds|iterations|generator_rate|discriminator_rate)
    | studies\.\w+\.(skip|seeds|vary\.\w+)""",
    re.VERBOSE,
)
# With 8 iterations nothing is healthy or detected: the smoke preset lets everything through.
SMOKE_TOO = re.compile(r"deepfakes\.(\w+\.health\.\w+|hisd\.edited)|attacker\.(threshold|no_detection)")
# In their time HiSD learns one of its tags, and some weights of losses are others: the published ones need
# far more iterations.
DEMO_TOO = re.compile(
    r"deepfakes\.hisd\.(attributes|tags)|deepfakes\.(hisd|attgan)\.lambda_rec"
    r"|deepfakes\.stargan\.lambda_identity|defences\.cmua\.factor"
)
LAB_TOO = re.compile(
    r"deepfakes\.hisd\.(attributes|tags)|deepfakes\.(hisd|stargan|attgan|attentiongan)\.lambda_rec"
    r"|deepfakes\.(attgan|attentiongan)\.lambda_cls|deepfakes\.attgan\.(lambda_cls_real|mirror)"
    r"|deepfakes\.stargan\.lambda_(cls|identity)|defences\.cmua\.factor"
)


def small(**changes):
    """A config with little more than what is required."""
    base = {
        "training_set": "synthetic",
        "datasets": {"synthetic": {}},
        "deepfakes": {"stargan": {}},
        "detectors": {"retinaface": {}},
        "defences": {"none": {}},
    }
    return yaml_files.merge(base, changes)


def refusal(changes):
    with pytest.raises(HoldfastError) as caught:
        config.complete(small(**changes))
    return caught.value


def leaves(value, path=()):
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    else:
        yield ".".join(map(str, path)), value


@functools.cache
def shipped(*presets):
    return config.read(PAPER, *presets)


# ---- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, key, repair",
    [
        ({"epsilom": 0.1}, "epsilom", "write `epsilon: 0.1`"),
        ({"zzz": 1}, "zzz", "remove `zzz`"),
        ({"attacker": {"treshold": 0.3}}, "attacker.treshold", "write `threshold: 0.3`"),
        (
            {"deepfakes": {"stargan": {"itertions": 9}}},
            "deepfakes.stargan.itertions",
            "write `iterations: 9`",
        ),
        ({"deepfakes": {"stargan": {"health": {"sim": 0.5}}}}, "deepfakes.stargan.health.sim", "`ssim: 0.5`"),
        (
            {"detectors": {"retinaface": {"training": {"step": 5}}}},
            "detectors.retinaface.training.step",
            "`steps: 5`",
        ),
        ({"datasets": {"synthetic": {"trian": 5}}}, "datasets.synthetic.trian", "write `train: 5`"),
        ({"defences": {"none": {"strength": 5}}}, "defences.none.strength", "remove `strength`"),
        (
            {"defences": {"tsdf": {"lambda_enhance": 5}}},
            "defences.tsdf.lambda_enhance",
            "write `lambda_enh: 5`",
        ),
        ({1: 2, "b": 3}, "1", "remove `1`"),
    ],
)
def test_an_unknown_key_is_named_with_its_repair(changes, key, repair):
    error = refusal(changes) if 1 not in changes else _refusal_of(small() | changes)
    assert f"config key {key} is unknown" in str(error)
    assert repair in error.repair and "repair:" in str(error)
    assert str(error.found) in key and error.expected is not None


def _refusal_of(whole):
    with pytest.raises(HoldfastError) as caught:
        config.complete(whole)
    return caught.value


@pytest.mark.parametrize(
    "changes, key, expected",
    [
        ({"epsilon": 0}, "epsilon", "above 0"),
        ({"epsilon": -0.05}, "epsilon", "above 0"),
        ({"epsilon": 2.5}, "epsilon", "at most 2"),
        ({"epsilon": float("nan")}, "epsilon", "finite"),
        ({"epsilon": "1e-2"}, "epsilon", "number"),
        ({"seed": True}, "seed", "integer"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"image_size": 30}, "image_size", "at least 32"),
        ({"image_size": 66}, "image_size", "multiple of 4"),
        ({"perturbation_seeds": []}, "perturbation_seeds", "at least 1 entries"),
        ({"perturbation_seeds": [0, 0]}, "perturbation_seeds", "entries that differ"),
        ({"perturbation_seeds": [0, "1"]}, "perturbation_seeds.1", "integer"),
        ({"fid_features": "vgg"}, "fid_features", "one of inception, attributes"),
        ({"device": "gpu"}, "device", "cuda"),
        ({"results": ""}, "results", "some text"),
        ({"datasets": None}, "datasets", "object"),
        ({"datasets": {"synthetic": None}}, "datasets.synthetic", "object"),
        ({"datasets": {"synthetic": {"train": 1.5}}}, "datasets.synthetic.train", "integer"),
        ({"datasets": {"synthetic": {"skip": ""}}}, "datasets.synthetic.skip", "some text"),
        ({"deepfakes": {"stargan": {"batch": 1}}}, "deepfakes.stargan.batch", "at least 2"),
        ({"deepfakes": {"stargan": {"iterations": 2.0e5}}}, "deepfakes.stargan.iterations", "integer"),
        ({"deepfakes": {"stargan": {"weights": None}}}, "deepfakes.stargan.weights", "string or object"),
        ({"deepfakes": {"stargan": {"weights": [[1]]}}}, "deepfakes.stargan.weights.0", "string or object"),
        ({"deepfakes": {"stargan": {"weights": []}}}, "deepfakes.stargan.weights", "at least 1"),
        ({"deepfakes": {"stargan": {"precision": "float16"}}}, "deepfakes.stargan.precision", "bfloat16"),
        ({"defences": {"cmua": {"factor": "tune"}}}, "defences.cmua.factor", "search"),
        ({"deepfakes": {"stargan": {"attributes": []}}}, "deepfakes.stargan.attributes", "at least 1"),
        (
            {"deepfakes": {"stargan": {"generator_rate": float("inf")}}},
            "deepfakes.stargan.generator_rate",
            "finite",
        ),
        ({"defences": {"tsdf": {"momentum": 1.5}}}, "defences.tsdf.momentum", "at most 1"),
        ({"defences": {"tsdf": {"level_weights": [1, 2]}}}, "defences.tsdf.level_weights", "at least 3"),
        ({"attacker": {"threshold": 1.2}}, "attacker.threshold", "at most 1"),
        ({"attacker": {"no_detection": "skip"}}, "attacker.no_detection", "drop, whole"),
        ({"classifier": {"learning_rate": 0}}, "classifier.learning_rate", "above 0"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(changes, key, expected):
    error = refusal(changes)
    assert f"config key {key} has a wrong value" in str(error)
    assert expected in error.expected and error.repair


@pytest.mark.parametrize("key", ["datasets", "deepfakes", "detectors", "defences", "training_set"])
def test_a_missing_section_is_named(key):
    whole = small()
    del whole[key]
    error = _refusal_of(whole)
    assert f"config key {key} is missing" in str(error) and f"`{key}:`" in error.repair


@pytest.mark.parametrize(
    "changes, key, folder, repair",
    [
        ({"defences": {"tsdff": {}}}, "defences.tsdff", "defences", "write `defences: {tsdf: …}`"),
        ({"deepfakes": {"starган": {}}}, "deepfakes.starган", None, None),
        (
            {"deepfakes": {"stargann": {}}},
            "deepfakes.stargann",
            "deepfakes",
            "write `deepfakes: {stargan: …}`",
        ),
        ({"detectors": {"zzz": {}}}, "detectors.zzz", "detectors", "remove detectors.zzz"),
        (
            {"datasets": {"mine": {"kind": "foldr"}}},
            "datasets.mine.kind",
            "data",
            "write `datasets: {mine: {kind: folder}}`",
        ),
        ({"datasets": {"celebra": {}}}, "datasets.celebra", "data", "write `datasets: {celeba: …}`"),
    ],
)
def test_what_nobody_registered_is_refused_with_the_nearest_name(changes, key, folder, repair):
    error = refusal(changes)
    if folder is None:  # not even a name
        assert "config key deepfakes has a wrong value" in str(error)
        return
    assert f"config key {key}: nobody registered" in str(error)
    assert repair in error.repair and f"workflow/holdfast/{folder}/" in error.repair
    assert set(error.expected.split(", ")) == set(modules.registered(key.split(".")[0]))


@pytest.mark.parametrize(
    "changes, key, repair",
    [
        ({"training_set": "celeba"}, "training_set", "write `training_set: synthetic`"),
        ({"attacker": {"detector": "retinafac"}}, "attacker.detector", "write `detector: retinaface`"),
        ({"detectors": {"retinaface": {"skip": "none"}}}, "attacker.detector", "add an entry to detectors"),
        (
            {"datasets": {"synthetic": {"skip": "no"}, "lfw": {}}},
            "training_set",
            "write `training_set: lfw`",
        ),
        ({"metrics": ["psnr", "smsi"]}, "metrics", "write `ssim`"),
        (
            {"deepfakes": {"stargan": {"attributes": ["Male"], "health": {"attributes": ["Young"]}}}},
            "deepfakes.stargan.health.attributes",
            "deepfakes.stargan.attributes",
        ),
    ],
)
def test_a_reference_to_nothing_that_is_run(changes, key, repair):
    error = refusal(changes)
    assert f"config key {key} refers to nothing that is run" in str(error) and repair in error.repair


def test_health_asks_for_no_more_attributes_than_it_names():
    error = refusal({"deepfakes": {"stargan": {"health": {"attributes": ["Male"], "least": 2}}}})
    assert "deepfakes.stargan.health.least" in str(error) and "least: 1" in error.repair


def test_the_attacker_may_retrain_some_models_on_what_some_defences_and_seeds_gave():
    two = {"stargan": {}, "attgan": {}}
    found = config.complete(small(deepfakes=two, perturbation_seeds=[0, 1, 2]))
    assert config.attackers_models(found) == ["stargan", "attgan"]
    assert config.attackers_seeds(found) == [0, 1, 2]
    chosen = {"models": ["attgan"], "seeds": [2, 0]}
    found = config.complete(small(deepfakes=two, perturbation_seeds=[0, 1, 2], attacker=chosen))
    assert config.attackers_models(found) == ["attgan"] and config.attackers_seeds(found) == [0, 2]
    three = {"defences": {"none": {}, "random": {}, "cmua": {}}}
    assert config.attackers_defences(config.complete(small(**three))) == ["none", "random", "cmua"]
    found = config.complete(small(**three, attacker={"defences": ["cmua", "none"]}))
    assert config.attackers_defences(found) == ["none", "cmua"]
    told = str(refusal({**three, "attacker": {"defences": ["tsdf"]}}))
    assert "attacker.defences refers to nothing" in told and "defences: [none, random, cmua]" in told
    # What is skipped may be named beside what is run.
    two["attgan"]["skip"] = "not here"
    found = config.complete(small(deepfakes=two, attacker={"models": ["attgan", "stargan"]}))
    assert config.attackers_models(found) == ["stargan"]
    told = str(refusal({"deepfakes": two, "attacker": {"models": ["attgan"]}}))
    assert "attacker.models refers to nothing that is run" in told and "models: [stargan]" in told
    told = str(refusal({"attacker": {"models": ["attgan"]}}))
    assert "attacker.models refers to nothing that is run" in told and "models: [stargan]" in told
    assert "attacker.seeds refers to nothing" in str(refusal({"attacker": {"seeds": [1]}}))


def test_a_study_may_be_run_with_some_seeds():
    def studies(seeds):
        return {"a": {"defence": "cmua", "vary": {"steps": [1, 2]}, "seeds": seeds}}

    three = {"defences": {"none": {}, "cmua": {}}, "perturbation_seeds": [0, 1, 2]}
    for seeds, run in ((None, [0, 1, 2]), ([2, 0], [0, 2])):
        found = config.complete(small(**three, studies=studies(seeds)))
        assert config.studys_seeds(found, "a") == run
    told = str(refusal({**three, "studies": studies([0, 3])}))
    assert "studies.a.seeds refers to nothing that is run" in told and "seeds: [0, 1, 2]" in told


def test_a_defence_may_be_measured_with_some_seeds():
    def measured(seeds):
        two = {"none": {"seeds": seeds}, "cmua": {}}
        return {"defences": two, "perturbation_seeds": [0, 1, 2]}

    for seeds, run in ((None, [0, 1, 2]), ([2, 0], [0, 2])):
        found = config.complete(small(**measured(seeds)))
        assert config.defences_seeds(found, "none") == run
        assert config.defences_seeds(found, "cmua") == [0, 1, 2]
    told = str(refusal(measured([3])))
    assert "defences.none.seeds refers to nothing that is run" in told and "seeds: [0, 1, 2]" in told


def test_the_attacker_may_harvest_with_all_detectors():
    two = {"retinaface": {}, "s3fd": {}, "dsfd": {"skip": "not here"}}
    found = config.complete(small(detectors=two, attacker={"detector": "union"}))
    assert config.attackers_detectors(found, "union") == ["retinaface", "s3fd"]
    assert config.attackers_detectors(found, "s3fd") == ["s3fd"]
    assert config.harvesters(found) == ["retinaface", "s3fd", "union"]
    one = config.complete(small(detectors=two | {"s3fd": {"skip": "not here"}}))
    assert config.harvesters(one) == ["retinaface"]  # a union of one would tell nothing new
    none = refusal({"detectors": {"retinaface": {"skip": "no"}}, "attacker": {"detector": "union"}})
    assert "attacker.detector refers to nothing" in str(none)


def test_where_initial_weights_lie_does_not_change_the_hash():
    def hashed(path):
        begun = {"training": {"initialisation": path}}
        return config.hash_of(config.complete(small(detectors={"s3fd": begun})))

    assert hashed("/here/vgg16.pth") == hashed("/there/vgg16.pth") != hashed(None)


def test_skipped_entries_may_be_of_unknown_kinds_with_unknown_settings():
    later = {"skip": "not there yet", "strength": 3}
    found = config.complete(
        small(
            defences={"facepoison": later},
            deepfakes={"attgan": {"title": "AttGAN", **later}},
            detectors={"mtcnn": later},
            datasets={"ffpp": {"kind": "video", **later}},
        )
    )
    assert found["defences"]["facepoison"] == later  # what is registered has a title of its own
    assert found["deepfakes"]["attgan"]["title"] == "AttGAN"
    assert [list(config.active(found, section)) for section in modules.SECTIONS] == [
        ["synthetic"],
        ["stargan"],
        ["retinaface"],
        ["none"],
    ]


# ---- what is filled in -------------------------------------------------------------------------------


def test_defaults_are_filled_in_at_all_depths_and_the_given_stays():
    given = small(
        deepfakes={"stargan": {"batch": 4, "attributes": ["Male"], "health": {"ssim": 0.1}}},
        attacker={"margin": 0.5},
        defences={"tsdf": {"tau": 0}},
        datasets={"photos": {"kind": "folder", "source": "/somewhere"}},
    )
    before = copy.deepcopy(given)
    found = config.complete(given)
    assert given == before
    assert found["epsilon"] == 0.05 and found["perturbation_seeds"] == [0]
    assert found["attacker"]["margin"] == 0.5 and found["attacker"]["threshold"] == 0.5
    stargan = found["deepfakes"]["stargan"]
    assert (stargan["batch"], stargan["lambda_rec"], stargan["critic_steps"]) == (4, 10, 5)
    assert stargan["health"] == {"ssim": 0.1, "edit_accuracy": 0.7, "attributes": [], "least": None}
    assert found["detectors"]["retinaface"]["training"]["steps"] == 20000
    assert found["datasets"]["synthetic"]["kind"] == "synthetic"
    photos = found["datasets"]["photos"]
    assert (photos["source"], photos["crop"], photos["perturbation_images"]) == ("/somewhere", None, 128)
    assert found["defences"]["tsdf"]["tau"] == 0 and found["defences"]["tsdf"]["beta"] == 0.4
    assert config.complete(found) == found


def test_defaults_are_not_shared_between_configs():
    first, second = config.complete(small()), config.complete(small())
    first["deepfakes"]["stargan"]["attributes"].append("Bald")
    first["metrics"].clear()
    assert "Bald" not in second["deepfakes"]["stargan"]["attributes"] and second["metrics"]
    assert "Bald" not in config.complete(small())["deepfakes"]["stargan"]["attributes"]


# ---- reading, merging, hashing -----------------------------------------------------------------------


def test_files_are_merged_in_order_mappings_deeply_lists_as_wholes(tmp_path):
    contents = [
        small(epsilon=0.1, perturbation_seeds=[0, 1, 2], attacker={"margin": 0.1, "threshold": 0.2}),
        {"epsilon": 0.2, "perturbation_seeds": [5], "attacker": {"margin": 0.4}},
        {},
        {"epsilon": 0.3},
    ]
    paths = []
    for number, content in enumerate(contents):
        paths.append(tmp_path / f"{number}.yaml")
        paths[-1].write_text(yaml.safe_dump(content) if content else "# nothing but a comment\n")
    found = config.read(*paths)
    assert found["epsilon"] == 0.3 and found["perturbation_seeds"] == [5]
    assert found["attacker"]["margin"] == 0.4 and found["attacker"]["threshold"] == 0.2
    assert config.read(paths[3], *paths[:3])["epsilon"] == 0.2


@pytest.mark.parametrize("content", [None, b"a: [1", b"- a\n- b\n", b"\xff\xfe\x00", b"just words"])
def test_a_file_that_is_no_config_is_named(tmp_path, content):
    path = tmp_path / "paths.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HoldfastError, match=f"cannot read the config {re.escape(str(path))}"):
        config.read(PAPER, path)


def test_the_hash_does_not_depend_on_where_things_lie_or_on_the_order_of_keys():
    base = config.complete(small(datasets={"photos": {"kind": "lfw"}}))
    there = copy.deepcopy(base)
    there["results"] = "/elsewhere"
    there["inception_weights"] = "/elsewhere/pt_inception.pth"
    there["datasets"]["photos"] |= {"source": "/faces", "downloads": "/tmp"}
    reordered = dict(reversed(there.items()))
    assert config.hash_of(base) == config.hash_of(there) == config.hash_of(reordered)
    given, elsewhere = copy.deepcopy(base), copy.deepcopy(base)
    given["deepfakes"]["stargan"]["weights"] = "here/G.ckpt"
    elsewhere["deepfakes"]["stargan"]["weights"] = {"path": "there/G.ckpt", "sha256": "0" * 64}
    assert config.hash_of(given) == config.hash_of(elsewhere) != config.hash_of(base)
    assert re.fullmatch("[0-9a-f]{64}", config.hash_of(base))
    for path in (("epsilon",), ("seed",), ("datasets", "photos", "crop"), ("deepfakes", "stargan", "batch")):
        changed = copy.deepcopy(base)
        inner = functools.reduce(dict.__getitem__, path[:-1], changed)
        inner[path[-1]] += 1
        assert config.hash_of(changed) != config.hash_of(base), path


# ---- the schema and the shipped files ----------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"defences": {"found": {"title": "TSDF"}}},
        {"datasets": {"lfw": {"title": "CelebA"}, "celeba": {"title": "CelebA"}}},
        {"detectors": {"later": {"skip": "not yet", "title": "S3FD"}}},
    ],
)
def test_two_things_of_one_title_are_refused_before_anything_runs(change):
    with pytest.raises(HoldfastError, match=f"config keys {next(iter(change))}.* share a title") as caught:
        config.complete(yaml_files.merge(yaml_files.read_part(PAPER), change))
    assert "a `title` of its own" in caught.value.repair


@pytest.mark.parametrize("presets", LAYOUTS, ids=NAMES)
def test_where_the_s3fd_term_has_a_weight_there_is_an_s3fd(presets):
    """Else the rule perturb would stop a run half-way."""
    found = shipped(*presets)
    if "tsdf_released" in config.active(found, "defences"):
        assert not found["defences"]["tsdf_released"]["flood_weight"] or "s3fd" in config.active(
            found, "detectors"
        )


@pytest.mark.parametrize("presets", LAYOUTS, ids=NAMES)
def test_the_shipped_configs_are_complete_and_sound(presets):
    found = shipped(*presets)
    assert found["preset"] == (presets[0].stem if presets else "paper")
    assert found["results"] == f"results/{found['preset']}"
    for section in modules.SECTIONS:
        assert config.active(found, section), section
    assert config.complete(found) == found


@pytest.mark.parametrize("path", [PAPER, *PRESETS], ids=NAMES)
def test_every_key_of_the_shipped_files_is_in_the_schema_or_in_its_modules_settings(path):
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = schema.full_schema()
    assert set(written) <= set(known["properties"])
    for section in modules.SECTIONS:
        for name, entry in written.get(section, {}).items():
            kind = entry.get("kind", name) if section == "datasets" else name
            assert set(entry) <= set(schema.entry_schema(section, kind)["properties"]), f"{section}.{name}"
    for section in ("classifier", "scenes", "protection", "attacker", "measuring"):
        assert set(written.get(section, {})) <= set(known["properties"][section]["properties"])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_change_sizes_only(preset):
    written = [key for key, _ in leaves(yaml.safe_load(preset.read_text(encoding="utf-8")))]
    allowed = [SIZES, *{"smoke": [SMOKE_TOO], "demo": [DEMO_TOO], "lab": [LAB_TOO]}.get(preset.stem, [])]
    assert written
    assert not [key for key in written if not any(rule.fullmatch(key) for rule in allowed)]
    assert all(shipped(preset)[key] == shipped()[key] for key in ("seed", "epsilon", "metrics"))


@pytest.mark.parametrize("presets", LAYOUTS, ids=NAMES)
def test_the_papers_constants_hold_in_every_preset(presets):
    found = shipped(*presets)
    tsdf, stargan = found["defences"]["tsdf"], found["deepfakes"]["stargan"]
    assert found["epsilon"] == 0.05
    assert (tsdf["momentum"], tsdf["lambda_enh"], tsdf["tau"], tsdf["beta"]) == (0.8, 0.001, 0.04, 0.4)
    assert (tsdf["alpha"], tsdf["sigma"], tsdf["nu"], tsdf["level_weights"]) == (0.4, 0.1, 1.0, [5, 3, 4])
    released = found["defences"]["tsdf_released"]
    assert [released[key] for key in ("beta", "enhancement_sign", "levels")] == [5, "descend", "last"]
    assert [released[key] for key in ("poison_rate", "adaptors", "without_gradient")] == [
        0.02,
        "redrawn",
        ["retinaface"],
    ]
    weights = [stargan[key] for key in ("lambda_cls", "lambda_rec", "lambda_gp")]
    assert weights == ([2, 15, 10] if found["preset"] == "lab" else [1, 10, 10])
    assert stargan["attributes"] == ["Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young"]


def test_the_papers_constants_of_the_other_models():
    stargan, attgan, attentiongan, hisd = shipped()["deepfakes"].values()
    assert attgan["attributes"] == sorted(attgan["attributes"]) and len(attgan["attributes"]) == 13
    assert [attgan[key] for key in ("lambda_rec", "lambda_cls", "lambda_cls_real")] == [100, 10, 1]
    assert all(attentiongan[key] == stargan[key] for key in ("lambda_rec", "attributes"))
    assert [tag["name"] for tag in hisd["tags"]] == ["Bangs", "Eyeglasses", "HairColor"]
    assert (hisd["average"], hisd["lambda_rec"]) == (0.99, 1)


def test_a_whole_number_with_a_point_is_written_without():
    error = refusal({"deepfakes": {"stargan": {"iterations": 2.0e5}}})
    assert error.found == "200000.0" and error.repair == "write `iterations: 200000`"


@pytest.mark.parametrize(
    ("defence", "settings", "key", "repair"),
    [
        ("cmua", {"factor": {"stargn": 2}}, "cmua.factor", "write stargan"),
        ("cmua", {"order": ["hisd", "stargn"]}, "cmua.order.1", "write stargan"),
        ("cmua", {"order": ["nothing of the kind"]}, "cmua.order.0", "remove nothing of the kind"),
        ("tsdf_released", {"without_gradient": ["retinafce"]}, "without_gradient.0", "write retinaface"),
        ("tsdf", {"fusion_weights": {"s3df": 1}}, "tsdf.fusion_weights", "write s3fd"),
    ],
)
def test_names_within_settings_are_those_that_are_registered(defence, settings, key, repair):
    error = refusal({"defences": {defence: settings}})
    assert f"{key} has a wrong value" in str(error) and error.repair == repair


def test_a_factor_may_be_the_default_of_all_models():
    given = {"cmua": {"factor": {"default": 1, "stargan": 2}}, "tsdf": {"fusion_weights": {"s3fd": 2}}}
    assert config.complete(small(defences=given))["defences"]["cmua"]["factor"]["default"] == 1


@pytest.mark.parametrize(
    ("changes", "key", "repair"),
    [
        ({"deepfakes": {"stargan": {"weights": "Train"}}}, "deepfakes.stargan", "write `weights: train`"),
        ({"deepfakes": {"stargan": {"weights": ["a.ckpt"]}}}, "deepfakes.stargan", "mend the path"),
        (
            {"deepfakes": {"stargan": {"weights": "https://host/a"}}},
            "deepfakes.stargan",
            "{url: https://host/a",
        ),
        ({"deepfakes": {"stargan": {"weights": "~no such user/a"}}}, "deepfakes.stargan", "mend the path"),
        ({"deepfakes": {"stargan": {"weights": "a" * 5000}}}, "deepfakes.stargan", "mend the path"),
        (
            {"deepfakes": {"stargan": {"weights": {"url": "http://[host", "sha256": "0" * 64}}}},
            "deepfakes.stargan",
            "mend the URL",
        ),
        (
            {"detectors": {"retinaface": {"weights": "a.pth"}}},
            "detectors.retinaface",
            "write `weights: null`",
        ),
        (
            {"detectors": {"s3fd": {"training": {"initialisation": "vgg.pth"}}}},
            "detectors.s3fd.training.initialisation",
            "write `initialisation: null`",
        ),
    ],
)
def test_a_checkpoint_that_is_not_there_is_told_before_anything_runs(changes, key, repair):
    whole = config.complete(small(**changes))
    with pytest.raises(HoldfastError, match="names a checkpoint that is not there") as caught:
        config.check_files(whole)
    assert key in str(caught.value) and repair in caught.value.repair


def test_checkpoints_that_are_there_pass(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"x")
    path, url = str(tmp_path / "a.pth"), {"url": "https://host/a", "sha256": "0" * 64}
    changes = {
        "deepfakes": {"stargan": {"weights": [path, url]}},
        "detectors": {"retinaface": {"weights": path}},
    }
    config.check_files(config.complete(small(**changes)))


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("defences:\n  none: {}\ndefences:\n  stripes: {period: 3}\n")
    for read in (yaml_files.read_part, lambda order: config.complete(small(), order=order)):
        with pytest.raises(HoldfastError, match=r"(?s)config.yaml.*key defences stands twice.*line 3"):
            read(path)


def test_a_checkpoint_in_a_path_that_rules_would_take_for_a_wildcard_is_told(tmp_path):
    (tmp_path / "{a}.pth").write_bytes(b"x")
    changes = {"detectors": {"retinaface": {"weights": str(tmp_path / "{a}.pth")}}}
    with pytest.raises(HoldfastError, match=r"detectors.retinaface.weights names a path with braces"):
        config.check_files(config.complete(small(**changes)))


def test_a_wrong_checkpoint_entry_is_told_by_what_is_wrong_with_it():
    told = str(refusal({"deepfakes": {"stargan": {"weights": {"path": "G.ckpt", "sha256": "05e1d4cb"}}}}))
    assert "deepfakes.stargan.weights.sha256" in told and "05e1d4cb" in told and "64 hexadecimal" in told
    told = str(refusal({"deepfakes": {"stargan": {"weights": {"url": "https://host/G.ckpt"}}}}))
    assert "sha256" in told and "Traceback" not in told


def test_health_asks_only_for_attributes_that_the_model_edits():
    told = str(refusal({"deepfakes": {"hisd": {"health": {"attributes": ["Male"]}}}}))
    assert "deepfakes.hisd.health.attributes" in told and "Eyeglasses" in told
    found = config.complete(small(deepfakes={"hisd": {"health": {"attributes": ["Eyeglasses"]}}}))
    assert found["deepfakes"]["hisd"]["health"]["attributes"] == ["Eyeglasses"]
    only_bangs = {"edited": ["Bangs"], "health": {"attributes": ["Eyeglasses"]}}
    told = str(refusal({"deepfakes": {"hisd": only_bangs}}))
    assert "deepfakes.hisd.health.attributes" in told and "deepfakes.hisd.edited" in told
    told = str(refusal({"deepfakes": {"hisd": {"edited": ["Hat"]}}}))
    assert "deepfakes.hisd.edited" in told and "Hat" in told and "HairColor" in told


@pytest.mark.parametrize("presets", LAYOUTS, ids=NAMES)
def test_the_baselines_constants_hold_in_every_preset(presets):
    found = shipped(*presets)["defences"]
    assert [found["found"][key] for key in ("step_size", "momentum", "diversity")] == [0.001, 0.8, 0.5]
    poison = found["facepoison"]
    assert [poison[key] for key in ("step_size", "momentum")] == [0.0157, 1.0]
    assert poison["level_weights"] == [0.2, 0.3, 0.5]
    # 2 of 255 and 0.5 of 255, in units of [-1, 1].
    assert abs(poison["step_size"] - 2 / 127.5) < 5e-5 and abs(found["ssod"]["gamma"] - 0.5 / 127.5) < 5e-6


def test_the_papers_sizes():
    found = shipped()
    tsdf = found["defences"]["tsdf"]
    assert found["image_size"] == 256 and found["training_set"] == "celeba"
    assert (tsdf["iterations"], tsdf["poison_iterations"]) == (50, 30)
    assert found["datasets"]["celeba"]["perturbation_images"] == 128
    assert found["deepfakes"]["stargan"]["iterations"] == 200000


def test_the_classifier_knows_the_attributes_of_all_models_that_run():
    models = {
        "stargan": {"attributes": ["Young", "Male"]},
        "attgan": {"attributes": ["Male", "Bald"]},
        "hisd": {"skip": "not here"},
    }
    assert config.all_attributes(config.complete(small(deepfakes=models))) == ["Young", "Male", "Bald"]
