import copy
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import holdfast
from holdfast import records as module
from holdfast.errors import HoldfastError
from holdfast.metrics import METRICS
from holdfast.records import SCHEMA, check, make_record, provenance, read_records, record_of, write_records

SHA = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def origin():
    return provenance(
        config_sha256=SHA, seeds={"tsdf": 1}, inputs={"images.npy": SHA}, started=time.monotonic()
    )


@pytest.fixture
def record(origin):
    return make_record(
        metric="l2_mask",
        value=0.21,
        n=100,
        std=0.03,
        definition="a definition",
        unit="squared [-1,1] units",
        better_defence="up",
        subject={"dataset": "celeba", "model": "stargan", "defence": "tsdf", "seed": 0, "state": "before"},
        extra={"n_empty": 3},
        provenance=origin,
    )


def test_schema_is_itself_sound_and_describes_every_key():
    from jsonschema import Draft202012Validator

    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)

    def walk(part):
        if part.get("properties") and "title" in part or part.get("type") == "object":
            assert "description" in part
        for child in part.get("properties", {}).values():
            assert "description" in child
            walk(child)

    walk({key: schema[key] for key in ("title", "description", "type", "properties")})
    assert schema["additionalProperties"] is False
    assert schema["properties"]["provenance"]["additionalProperties"] is False


def test_written_records_are_read_back_in_order(tmp_path, record):
    other = {**record, "value": 0.5, "subject": {"dataset": "lfw", "note": "line\u2028separator\nand \u00e9"}}
    write_records(tmp_path / "a.jsonl", [record, other])
    write_records(tmp_path / "b.jsonl", [other])
    assert len((tmp_path / "a.jsonl").read_bytes().split(b"\n")) == 3
    assert read_records(tmp_path / "a.jsonl") == [record, other]
    assert read_records(str(tmp_path / "b.jsonl")) == [other]
    assert read_records([tmp_path / "b.jsonl", tmp_path / "a.jsonl"]) == [other, record, other]


def test_no_records_are_a_file_too(tmp_path):
    write_records(tmp_path / "none.jsonl", [])
    assert read_records([tmp_path / "none.jsonl"]) == []


@settings(max_examples=40, deadline=None)
@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    n=st.integers(0, 10**9),
    text=st.text(max_size=20),
    extra=st.dictionaries(st.from_regex("[a-z][a-z_]{0,8}", fullmatch=True), st.integers() | st.booleans()),
)
def test_any_finite_value_survives_bit_for_bit(tmp_path_factory, origin, value, n, text, extra):
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    made = make_record(
        metric="ap",
        value=value,
        n=n,
        definition="d",
        unit=text,
        better_defence=None,
        subject={"note": text},
        extra=extra,
        provenance=origin,
    )
    write_records(path, [made])
    assert read_records(path) == [made]
    assert repr(read_records(path)[0]["value"]) == repr(made["value"])


def test_numpy_and_torch_numbers_become_plain(tmp_path, record):
    record["value"], record["n"] = np.float32(0.25), np.int64(7)
    record["extra"] = {"flag": np.bool_(True), "each": np.array([1.5, 2.0]), "one": torch.tensor(3)}
    write_records(tmp_path / "r.jsonl", [record])
    read = read_records(tmp_path / "r.jsonl")[0]
    assert (read["value"], read["n"]) == (0.25, 7)
    assert read["extra"] == {"flag": True, "each": [1.5, 2.0], "one": 3}


def test_the_record_of_a_result(origin):
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    metric = METRICS["psnr"]
    subject = {"dataset": "synthetic"}
    for pair, direction in (("outputs", "down"), ("protected", "up")):
        made = record_of(
            metric, metric.compute(images, -images), subject=subject, provenance=origin, pair=pair
        )
        assert made["better_defence"] == direction and made["subject"]["pair"] == pair
        assert made["metric"] == "psnr" and made["unit"] == "dB" and made["n"] == 3
    missing = record_of(metric, metric.compute(images, images), subject=subject, provenance=origin)
    assert missing["value"] is None and "identical" in missing["why"]
    assert missing["extra"] == {"n_identical": 3} and "std" not in missing
    assert subject == {"dataset": "synthetic"}


def at(record, path, value):
    record = copy.deepcopy(record)
    *parents, last = path.split(".")
    place = record
    for key in parents:
        place = place[key]
    place[last] = value
    return record


@pytest.mark.parametrize(
    "path, value",
    [
        ("value", "0.2"),
        ("value", True),
        ("value", None),
        ("why", "a value that is there needs no reason"),
        ("n", -1),
        ("n", 1.5),
        ("std", -0.1),
        ("metric", "L2 mask"),
        ("definition", ""),
        ("better_defence", "higher"),
        ("subject", ["celeba"]),
        ("subject.dataset", 3),
        ("subject.list", [1]),
        ("subject.two words", 1),
        ("valeu", 1),
        ("provenance.git_commit", "main"),
        ("provenance.config_sha256", "abc"),
        ("provenance.hostname", "node7"),
        ("provenance.duration_s", -5),
        ("provenance.inputs.images", "abc"),
        ("provenance.platform.cores", 0),
        ("provenance.written_at", "yesterday"),
    ],
)
def test_a_broken_record_is_refused_on_write_and_on_read_by_file_line_and_key(tmp_path, record, path, value):
    broken = at(record, path, value)
    # A null without a reason is reported as the missing reason.
    named = "why" if (path, value) == ("value", None) else path
    target = tmp_path / "written.jsonl"
    with pytest.raises(HoldfastError) as caught:
        write_records(target, [record, broken])
    assert f"{target}, line 2" in caught.value.what and f"'{named}'" in caught.value.what
    assert caught.value.expected
    assert not any(tmp_path.iterdir())

    target.write_text(json.dumps(record) + "\n" + json.dumps(broken) + "\n")
    with pytest.raises(HoldfastError) as caught:
        read_records(target)
    assert f"{target}, line 2" in caught.value.what and f"'{named}'" in caught.value.what


@pytest.mark.parametrize("path", ["metric", "n", "subject", "provenance.seeds", "provenance.versions.numpy"])
def test_a_missing_key_is_named(record, path):
    broken = copy.deepcopy(record)
    *parents, last = path.split(".")
    place = broken
    for key in parents:
        place = place[key]
    del place[last]
    with pytest.raises(HoldfastError, match=f"'{path}'"):
        check(broken)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("path", ["value", "std", "extra.precision", "provenance.duration_s"])
def test_numbers_that_json_lacks_are_refused(tmp_path, record, path, value):
    target = tmp_path / "r.jsonl"
    with pytest.raises(HoldfastError, match=f"line 1: '{path}' is not a finite number"):
        write_records(target, [at(record, path, value)])
    assert not target.exists()
    target.write_text(json.dumps(at(record, path, value)) + "\n")
    with pytest.raises(HoldfastError, match="line 1 is not a record"):
        read_records(target)


def test_what_json_cannot_hold_is_refused(record):
    with pytest.raises(HoldfastError, match="'extra.where' cannot be written"):
        write_records("unused.jsonl", [at(record, "extra.where", Path("somewhere"))])


def test_a_torn_or_missing_file_is_named(tmp_path, record):
    target = tmp_path / "r.jsonl"
    write_records(target, [record, record])
    target.write_bytes(target.read_bytes()[:-40])
    with pytest.raises(HoldfastError, match=r"r\.jsonl, line 2 is not a record"):
        read_records(target)
    with pytest.raises(HoldfastError, match="absent.jsonl"):
        read_records(tmp_path / "absent.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HoldfastError, match="binary.jsonl"):
        read_records(tmp_path / "binary.jsonl")


def test_a_refused_write_leaves_the_old_file(tmp_path, record):
    target = tmp_path / "r.jsonl"
    write_records(target, [record])
    before = target.read_bytes()
    with pytest.raises(HoldfastError):
        write_records(target, [record, at(record, "n", -1)])
    assert target.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


# provenance


def test_provenance_tells_versions_machine_and_duration(origin):
    assert origin["holdfast"] == holdfast.__version__
    assert origin["versions"]["torch"] == torch.__version__ and origin["versions"]["numpy"] == np.__version__
    assert origin["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"scikit-image", "pytorch-fid", "scipy"} <= set(origin["versions"])
    assert origin["device"] == "cpu" and origin["platform"]["threads"] == torch.get_num_threads()
    later = provenance(config_sha256=SHA, seeds={}, inputs={}, started=time.monotonic() - 2)
    assert 2 <= later["duration_s"] < 3
    text = json.dumps(origin)
    assert os.uname().nodename not in text.replace(origin["platform"]["cpu"], "")
    assert str(Path(module.__file__).parents[2]) not in text


def test_a_start_by_another_clock_is_refused(record):
    wrong = provenance(config_sha256=SHA, seeds={}, inputs={}, started=time.time() + 1e6)
    with pytest.raises(HoldfastError, match="duration_s"):
        check({**record, "provenance": wrong})


def git(folder, *arguments):
    environment = {key: text for key, text in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def checkout_of(copy_of_records, **environment):
    """What a fresh Python finds for a copy of the module."""
    code = (
        "import importlib.util, json, sys\n"
        "spec = importlib.util.spec_from_file_location('records_copy', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(json.dumps(module._checkout()))\n"
    )
    library = str(Path(holdfast.__file__).parents[1])
    answer = subprocess.run(
        [sys.executable, "-B", "-c", code, str(copy_of_records)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": library, **environment},
    )
    return tuple(json.loads(answer.stdout))


def test_commit_and_dirty_flag_of_a_real_checkout(tmp_path):
    root = tmp_path / "checkout"
    place = root / "workflow" / "holdfast" / "records.py"
    place.parent.mkdir(parents=True)
    shutil.copy(module.__file__, place)
    assert checkout_of(place) == ("unknown", None)  # no checkout

    git(tmp_path, "init", "-q", str(root))
    assert checkout_of(place) == ("unknown", None)  # no commit, and not tracked
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    commit = git(root, "rev-parse", "HEAD")
    assert checkout_of(place) == (commit, False)

    (root / "results").mkdir()
    (root / "results" / "table.csv").write_text("1")
    assert checkout_of(place) == (commit, False)  # what a run writes is no change
    assert checkout_of(place, GIT_DIR="elsewhere", GIT_WORK_TREE="elsewhere") == (commit, False)
    (root / "workflow" / "new_defence.py").write_text("1")
    assert checkout_of(place) == (commit, True)

    stranger = root / "environment" / "records.py"
    stranger.parent.mkdir()
    shutil.copy(module.__file__, stranger)
    assert checkout_of(stranger) == ("unknown", None)  # inside a checkout, but not of it
    assert checkout_of(place, PATH="") == ("unknown", None)  # no git on this machine
