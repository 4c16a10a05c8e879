import os

import numpy as np
import pytest

from holdfast.data import DATASETS
from holdfast.data.faceset import read_report
from holdfast.data.lfw import prepare
from holdfast.errors import HoldfastError


@pytest.fixture
def source(tmp_path, draw):
    for person, count in (("Zoe", 1), ("Ann_B", 2)):
        for number in range(1, count + 1):
            draw(tmp_path / "lfw" / person / f"{person}_{number:04d}.jpg", 50, 50, seed=f"{person}{number}")
    (tmp_path / "lfw" / "Ann_B" / "notes.txt").write_text("x")
    return tmp_path / "lfw"


def run(source, tmp_path, **settings):
    return prepare(tmp_path / "out", {"source": str(source), "size": [50, 50], "crop": 40} | settings, 20, 0)


def test_it_is_registered():
    assert DATASETS["lfw"] is prepare


def test_all_go_to_one_split_with_the_box(tmp_path, source):
    faces = run(source, tmp_path, face_box=[15, 10, 35, 45])
    assert faces.index["file"].tolist() == [
        "Ann_B/Ann_B_0001.jpg",
        "Ann_B/Ann_B_0002.jpg",
        "Zoe/Zoe_0001.jpg",
    ]
    assert faces.positions("test").tolist() == [0, 1, 2] and faces.attributes == []
    assert faces.boxes([2]).tolist() == [[5, 2.5, 15, 20]]  # (edge - 5) / 2
    assert read_report(tmp_path / "out")["other_files"] == 1


def test_another_split_and_a_limit(tmp_path, source):
    faces = run(source, tmp_path, split="train", limits={"train": 2})
    assert faces.positions("train").tolist() == [0, 1]
    with pytest.raises(HoldfastError, match="`split`"):
        run(source, tmp_path, split="all")


def test_the_folder_of_the_archive_is_entered(tmp_path, source):
    (tmp_path / "above").mkdir()
    source.rename(tmp_path / "above" / "lfw-deepfunneled")
    assert len(run(tmp_path / "above", tmp_path)) == 3


def test_no_images_and_wrong_sizes(tmp_path, source, draw):
    (tmp_path / "empty").mkdir()
    with pytest.raises(HoldfastError, match="no images"):
        run(tmp_path / "empty", tmp_path)
    draw(source / "Zoe" / "Zoe_0001.jpg", 51, 50)
    with pytest.raises(HoldfastError, match="Zoe/Zoe_0001.jpg"):
        run(source, tmp_path)
    assert len(run(source, tmp_path, problem_limit=0.5)) == 2


@pytest.mark.skipif(not os.environ.get("HOLDFAST_LAB"), reason="HOLDFAST_LAB is not set")
def test_lab_faces(tmp_path):
    source = os.path.join(os.environ["HOLDFAST_LAB"], "lfw")
    faces = prepare(tmp_path / "lfw", {"source": source, "limits": {"test": 50}}, 64, 0)
    assert len(faces) == 50 and np.asarray(faces.images).std() > 20
