import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import holdfast
from holdfast.data import DATASETS
from holdfast.data.celeba import prepare, read_attributes, read_partition
from holdfast.data.faceset import read_report
from holdfast.errors import HoldfastError

SETTINGS = {"size": [45, 55], "crop": 45}


def run(source, tmp_path, size=16, **settings):
    return prepare(tmp_path / "out" / "celeba", SETTINGS | {"source": str(source)} | settings, size, 0)


def drop_row(path, file):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(file)))


def assert_nothing_written(tmp_path):
    out = tmp_path / "out"
    assert not out.exists() or list(out.iterdir()) == []


def test_it_is_registered():
    assert DATASETS["celeba"] is prepare


def test_splits_attributes_boxes_and_pixels(tmp_path, celeba_copy):
    source = celeba_copy(20)
    faces = run(source, tmp_path, face_box=[9, 14, 36, 50])
    assert len(faces) == 20 and faces.size == 16 and faces.attributes == ["Bald", "Male", "Young"]
    assert faces.positions("val").tolist() == [8, 18] and faces.positions("test").tolist() == [9, 19]
    # In the fixture image n (from 0) has attribute c exactly where 3 divides n + c.
    expected = [[float((n + c) % 3 == 0) for c in (2, 0)] for n in range(20)]
    assert faces.labels(range(20), ["Young", "Bald"]).tolist() == expected
    # Crop 45 of 45x55: 5 rows above; scale 16/45.
    assert np.allclose(faces.boxes([7])[0], np.array([9, 9, 36, 45]) * 16 / 45, atol=0.005)
    image = Image.open(source / "img_align_celeba" / "000004.jpg").convert("RGB")
    direct = image.crop((0, 5, 45, 50)).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(faces.images[3], np.asarray(direct))
    report = read_report(tmp_path / "out" / "celeba")
    assert report["found"] == report["examined"] == report["used"] == 20
    assert report["problems"] == {"damaged": 0, "missing_attributes": 0, "wrong_size": 0}
    assert report["splits"] == {"train": 16, "val": 2, "test": 2} and report["files"] == []


def test_chosen_attributes_keep_their_order(tmp_path, celeba_copy):
    assert run(celeba_copy(4), tmp_path, attributes=["Young", "Bald"]).attributes == ["Young", "Bald"]


def test_limits_keep_the_first_of_each_split(tmp_path, celeba_copy):
    source = celeba_copy(30)
    # Behind the limit of its split an image is not even opened.
    (source / "img_align_celeba" / "000007.jpg").write_bytes(b"no image")
    faces = run(source, tmp_path, limits={"train": 5, "val": 2, "test": 0}, problem_limit=0)
    files = [f"{number:06d}.jpg" for number in (1, 2, 3, 4, 5, 9, 19)]
    assert faces.index["file"].tolist() == files
    assert read_report(tmp_path / "out" / "celeba")["examined"] == 7


def test_a_partial_copy_is_no_problem(tmp_path, celeba_copy):
    faces = run(celeba_copy(20, images=7), tmp_path, problem_limit=0)
    report = read_report(tmp_path / "out" / "celeba")
    assert len(faces) == 7 and report["rows_without_image"] == 13 and report["problem_fraction"] == 0


def test_problems_below_the_limit_are_counted_and_listed(tmp_path, celeba_copy, draw):
    source = celeba_copy(20)
    images = source / "img_align_celeba"
    cut = images / "000003.jpg"
    cut.write_bytes(cut.read_bytes()[:-60])
    draw(images / "000005.jpg", 44, 55)
    drop_row(source / "list_attr_celeba.txt", "000006.jpg")
    drop_row(source / "list_eval_partition.txt", "000008.jpg")
    (images / "Thumbs.db").write_bytes(b"")
    faces = run(source, tmp_path, problem_limit=0.2)
    report = read_report(tmp_path / "out" / "celeba")
    assert report["problems"] == {"damaged": 1, "missing_attributes": 2, "wrong_size": 1}
    assert report["problem_fraction"] == 0.2 and report["limit"] == 0.2 and report["other_files"] == 1
    assert report["attribute_rows"] == {"announced": 20, "found": 19}
    told = {entry["file"]: (entry["problem"], entry["detail"]) for entry in report["files"]}
    assert told["000003.jpg"][0] == "damaged" and "truncated" in told["000003.jpg"][1]
    assert told["000005.jpg"] == ("wrong_size", "44x55 pixels, expected 45x55")
    assert told["000006.jpg"] == ("missing_attributes", "no row in list_attr_celeba.txt")
    assert told["000008.jpg"] == ("missing_attributes", "no row in list_eval_partition.txt")
    left = [f"{number:06d}.jpg" for number in range(1, 21) if number not in (3, 5, 6, 8)]
    assert faces.index["file"].tolist() == left


@pytest.mark.parametrize("kind", ["damaged", "missing_attributes", "wrong_size"])
def test_above_the_limit_it_stops_and_writes_nothing(tmp_path, celeba_copy, draw, kind):
    source = celeba_copy(20)
    image = source / "img_align_celeba" / "000003.jpg"
    if kind == "damaged":
        image.write_bytes(image.read_bytes()[:-60])
    elif kind == "wrong_size":
        draw(image, 90, 110)
    else:
        drop_row(source / "list_attr_celeba.txt", "000003.jpg")
    with pytest.raises(HoldfastError) as caught:
        run(source, tmp_path)
    assert "too many" in caught.value.what and f"000003.jpg ({kind}:" in caught.value.found
    assert "0.01" in caught.value.expected and "problem_limit" in caught.value.repair
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize("name", ["img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"])
def test_a_missing_part_of_the_layout_is_named(tmp_path, celeba_copy, name):
    source = celeba_copy(3)
    (source / name).rename(tmp_path / "elsewhere")
    with pytest.raises(HoldfastError) as caught:
        run(source, tmp_path)
    assert name in caught.value.what and str(source) in caught.value.what
    assert f"place {name}" in caught.value.repair
    assert_nothing_written(tmp_path)


def test_a_missing_source_and_an_empty_one(tmp_path, celeba_copy):
    with pytest.raises(HoldfastError, match="is not there"):
        run(tmp_path / "nowhere", tmp_path)
    source = celeba_copy(2)
    for path in (source / "img_align_celeba").iterdir():
        path.unlink()
    with pytest.raises(HoldfastError, match="no images"):
        run(source, tmp_path)


@pytest.mark.parametrize(
    "text, line, found",
    [
        ("", 1, "empty"),
        ("Bald Male\n000001.jpg 1 -1\n", 1, "Bald Male"),
        ("1\n", 2, "nothing"),
        ("1\n000001.jpg 1 -1\n", 2, "000001.jpg"),
        ("1\nBald Bald\n000001.jpg 1 -1\n", 2, "Bald Bald"),
        ("1\nBald Male\n000001.jpg 1\n", 3, "2 fields"),
        ("1\nBald Male\n000001.jpg 1 -1 1\n", 3, "4 fields"),
        ("1\nBald Male\n000001.jpg 1 0\n", 3, "the value 0"),
        ("2\nBald Male\n000001.jpg 1 1\n\n000001.jpg 1 1\n", 5, "second row of 000001.jpg"),
    ],
)
def test_a_malformed_attribute_file(tmp_path, text, line, found):
    path = tmp_path / "list_attr_celeba.txt"
    path.write_text(text)
    with pytest.raises(HoldfastError) as caught:
        read_attributes(path)
    assert f"{path}, line {line}," in caught.value.what and found in caught.value.found
    assert caught.value.expected


@pytest.mark.parametrize(
    "row, found", [("b.jpg 3", "b.jpg 3"), ("b.jpg", "b.jpg"), ("a.jpg 1", "second row of a")]
)
def test_a_malformed_partition_file(tmp_path, row, found):
    path = tmp_path / "list_eval_partition.txt"
    path.write_text(f"a.jpg 0\n{row}\n")
    with pytest.raises(HoldfastError) as caught:
        read_partition(path)
    assert "line 2" in caught.value.what and found in caught.value.found


def test_a_binary_attribute_file(tmp_path):
    (tmp_path / "x.txt").write_bytes(bytes(range(256)))
    with pytest.raises(HoldfastError, match="cannot read"):
        read_attributes(tmp_path / "x.txt")


def test_an_unknown_attribute_gets_a_suggestion(tmp_path, celeba_copy):
    with pytest.raises(HoldfastError) as caught:
        run(celeba_copy(3), tmp_path, attributes=["Male", "Yong"])
    assert "'Yong'" in caught.value.what and "Young" in caught.value.repair


def test_two_runs_are_identical(tmp_path, celeba_copy):
    source = celeba_copy(6)
    for name in "ab":
        prepare(tmp_path / name, SETTINGS | {"source": str(source)}, 16, 0)
    for file in ("images.npy", "index.csv", "report.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


LAB = os.environ.get("HOLDFAST_LAB")


@pytest.mark.skipif(not LAB, reason="HOLDFAST_LAB is not set")
def test_lab_faces(tmp_path):
    settings = {
        "source": f"{LAB}/celeba",
        "size": [89, 109],
        "crop": 89,
        "limits": {"train": 40, "val": 5, "test": 5},
    }
    faces = prepare(tmp_path / "celeba", settings, 64, 0)
    assert len(faces) == 50 and len(faces.attributes) == 40
    assert [len(faces.positions(split)) for split in ("train", "val", "test")] == [40, 5, 5]
    assert faces.images.std() > 20
    with pytest.raises(HoldfastError, match="wrong_size"):
        prepare(tmp_path / "official", {"source": f"{LAB}/celeba"}, 64, 0)


@pytest.mark.skipif(not LAB, reason="HOLDFAST_LAB is not set")
def test_memory_stays_below_a_gigabyte(tmp_path):
    """All lab faces in a process of its own; most of its memory is PyTorch's."""
    code = """
import resource, sys
from holdfast.data.celeba import prepare
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(sys.argv[1], {"source": sys.argv[2], "size": [89, 109], "crop": 89}, 64, 0)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(holdfast.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path / "celeba"), f"{LAB}/celeba"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, peak = (int(kilobytes) / 1024 for kilobytes in done.stdout.split())
    # The pixels alone are 105 MiB: that they are not held shows in the difference.
    assert peak < 1024 and peak - before < 60, (before, peak)
