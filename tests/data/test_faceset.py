import json

import numpy as np
import pandas as pd
import pytest

from holdfast.data.faceset import FaceSet, read_report, write_faceset
from holdfast.errors import HoldfastError
from holdfast.files import sha256_of


def rows(count=6, size=8):
    for number in range(count):
        pixels = np.full((size, size, 3), number * 40, np.uint8)
        box = None if number == 1 else (0.5, 1.0, 6.25, 7.0)
        yield pixels, f"{number}.png", ("train", "val", "test")[number % 3], box, (number % 2, 1)


def test_what_is_written_is_read(tmp_path):
    faces = write_faceset(tmp_path / "set", 8, rows(), ["Bald", "Young"], {"dataset": "x"})
    assert (len(faces), faces.size, faces.attributes) == (6, 8, ["Bald", "Young"])
    assert np.array_equal(faces.images[:, 0, 0, 0], [0, 40, 80, 120, 160, 200])
    assert faces.positions("val").tolist() == [1, 4]
    assert faces.positions("val", 1).tolist() == [1]
    assert faces.labels([0, 1, 4], ["Young", "Bald"]).tolist() == [[1, 0], [1, 1], [1, 0]]
    boxes = faces.boxes([0, 1])
    assert boxes.dtype == np.float32 and boxes[0].tolist() == [0.5, 1.0, 6.25, 7.0]
    assert np.isnan(boxes[1]).all()
    pixels = faces.pixels([0, 5])
    assert pixels.shape == (2, 3, 8, 8)
    assert pixels[0].unique().item() == -1 and pixels[1].unique().item() == pytest.approx(200 / 127.5 - 1)


def test_the_report_counts_and_sums(tmp_path):
    calls = []
    write_faceset(tmp_path / "set", 8, rows(), ["Bald", "Young"], lambda: calls.append(1) or {"dataset": "x"})
    report = read_report(tmp_path / "set")
    assert calls == [1]
    assert report["used"] == 6 and report["splits"] == {"train": 2, "val": 2, "test": 2}
    assert report["sha256"]["images.npy"] == sha256_of(tmp_path / "set" / "images.npy")
    assert report["sha256"]["index.csv"] == sha256_of(tmp_path / "set" / "index.csv")


def test_other_pixels_are_another_report_and_maybe_the_same_index(tmp_path):
    """Why rules take the report as their input: to Snakemake, a small file of equal content is unchanged."""
    for name, change in (("one", 0), ("other", 1)):
        changed = ((pixels + change, *others) for pixels, *others in rows())
        write_faceset(tmp_path / name, 8, changed, ["Bald", "Young"], {"dataset": "x"})
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "other"))
    assert one["index.csv"] == other["index.csv"]
    assert one["report.json"] != other["report.json"] and one["images.npy"] != other["images.npy"]


def test_the_pixels_stay_on_disk(tmp_path):
    faces = write_faceset(tmp_path / "set", 8, rows(), ["Bald", "Young"], {})
    assert isinstance(faces.images, np.memmap) and not faces.images.flags.writeable


def test_an_error_among_the_rows_leaves_nothing(tmp_path):
    def failing():
        yield from rows(3)
        raise HoldfastError("stop")

    with pytest.raises(HoldfastError, match="stop"):
        write_faceset(tmp_path / "set", 8, failing(), ["Bald", "Young"], {})
    assert list(tmp_path.iterdir()) == []


def test_a_new_set_takes_the_place_of_the_old_one_and_a_failed_one_does_not(tmp_path):
    write_faceset(tmp_path / "set", 8, rows(6), ["Bald", "Young"], {})
    write_faceset(tmp_path / "set", 8, rows(3), ["Bald", "Young"], {})
    assert len(FaceSet.open(tmp_path / "set")) == 3
    with pytest.raises(ValueError, match="expected uint8"):
        write_faceset(tmp_path / "set", 16, rows(3), ["Bald", "Young"], {})
    assert len(FaceSet.open(tmp_path / "set")) == 3


def test_a_file_may_be_called_na(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    names = ["NA", "null", "nan"]
    faces = write_faceset(tmp_path / "set", 8, ((pixels, name, "test", None, ()) for name in names), [], {})
    assert faces.index["file"].tolist() == names
    assert np.isnan(faces.boxes([0, 1, 2])).all()


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "row", "column", "other"])
def test_a_damaged_set_is_refused(tmp_path, damage):
    folder = tmp_path / "set"
    write_faceset(folder, 8, rows(), ["Bald", "Young"], {})
    pixels, index = folder / "images.npy", folder / "index.csv"
    if damage == "missing":
        index.unlink()
    elif damage == "empty":
        pixels.write_bytes(b"")
    elif damage == "truncated":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "row":
        index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    elif damage == "column":
        pd.read_csv(index).drop(columns="split").to_csv(index, index=False)
    else:
        np.save(pixels, np.zeros((6, 4), np.float32))
    with pytest.raises(HoldfastError, match="set") as caught:
        FaceSet.open(folder)
    assert "run again" in caught.value.repair


def test_an_unknown_attribute_is_named(tmp_path):
    faces = write_faceset(tmp_path / "set", 8, rows(), ["Bald", "Young"], {})
    with pytest.raises(HoldfastError, match="no attribute Hat"):
        faces.labels([0], ["Bald", "Hat"])


def test_two_writings_are_identical(tmp_path):
    for name in "ab":
        write_faceset(tmp_path / name, 8, rows(), ["Bald", "Young"], {"dataset": "x"})
    assert json.loads((tmp_path / "a" / "report.json").read_text()) == read_report(tmp_path / "b")
