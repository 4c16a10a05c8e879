"""The detectors' scenes from each of their sources, through the stages."""

import numpy as np
import pytest
from PIL import Image

from holdfast import config as configs
from holdfast.data.faceset import write_faceset
from holdfast.data.synthetic import render_faces, render_scenes
from holdfast.data.wider_face import annotation_of
from holdfast.errors import HoldfastError
from holdfast.files import sha256_of
from holdfast.records import read_records
from holdfast.seeds import seed_of
from holdfast.stages.data import Scenes, prepare_scenes
from holdfast.stages.pretrain import get_detector

SIZE = 64


def config_of(folder, source, train=6, test=3, collected=2):
    return configs.complete(
        {
            "training_set": "synthetic",
            "image_size": 32,
            "device": "cpu",
            "results": str(folder / "results"),
            "attacker": {"images": collected},
            "scenes": {"train": train, "test": test, "size": SIZE, "source": str(source)},
            "datasets": {"synthetic": {}},
            "deepfakes": {"stargan": {}},
            "detectors": {
                "retinaface": {"width": 1 / 8, "training": {"steps": 2, "batch": 2}},
                "s3fd": {"width": 1 / 64, "training": {"steps": 2, "batch": 2}},
            },
            "defences": {"none": {}},
        }
    )


def faces_of(folder, count=12, box=True):
    """index.csv of a small training set; the last two faces are of the test split."""
    images, attributes, boxes = render_faces(0, count, 32, "test")
    rows = (
        (
            images[i],
            f"{i}.png",
            "train" if i < count - 2 else "test",
            boxes[i] if box else None,
            attributes[i, :1],
        )
        for i in range(count)
    )
    write_faceset(folder / "faces", 32, rows, ["Black_Hair"], {"dataset": "synthetic"})
    return folder / "faces/index.csv"


def wider_face(folder, counts):
    """A tree with `counts` pictures for training and for validation, a face in each."""
    for split, count in zip(("train", "test"), counts, strict=True):
        lines = []
        for number in range(count):
            name = f"0--Parade/{split}_{number}.jpg"
            part = "train" if split == "train" else "val"
            path = folder / f"WIDER_{part}/images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            images, boxes = render_scenes(number, 1, 80, split)
            Image.fromarray(images[0]).save(path)
            x1, y1, x2, y2 = boxes[0][0].round().astype(int)
            lines += [name, "2", f"{x1} {y1} {x2 - x1} {y2 - y1} 0 0 0 0 0 0", "5 5 9 9 0 0 0 1 0 0"]
        annotation_of(folder, split).parent.mkdir(exist_ok=True)
        annotation_of(folder, split).write_text("\n".join(lines) + "\n")
    return folder


def test_rendered_scenes_are_what_the_renderer_makes(tmp_path):
    prepare_scenes(config_of(tmp_path, "synthetic"), tmp_path / "scenes")
    scenes = Scenes(tmp_path / "scenes")
    images, boxes = render_scenes(0, 9, SIZE, seed_of("scenes", 0))
    np.testing.assert_array_equal(scenes.train()[0], images[:6])
    np.testing.assert_array_equal(scenes.test()[0], images[6:])
    for found, expected in zip(scenes.boxes, boxes, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert scenes.title == "synthetic scenes"


def test_scenes_of_the_training_set_leave_its_last_faces_to_the_tests(tmp_path):
    csv = faces_of(tmp_path)
    prepare_scenes(config_of(tmp_path, "training_set"), tmp_path / "scenes", csv)
    scenes = Scenes(tmp_path / "scenes")
    assert [len(part[0]) for part in (scenes.train(), scenes.test())] == [6, 3]
    assert "training set" in scenes.title
    # Those that the attacker collects, the first two, stand in none, nor do those of the test split; other
    # faces of the test part change its scenes only.
    cases = ((slice(0, 2), slice(0, 9)), (slice(10, 12), slice(0, 9)), (slice(7, 10), slice(0, 6)))
    for changed, same in cases:
        images = np.load(tmp_path / "faces/images.npy")
        images[changed] = 255 - images[changed]
        np.save(tmp_path / "faces/images.npy", images)
        prepare_scenes(config_of(tmp_path, "training_set"), tmp_path / "again", csv)
        again = Scenes(tmp_path / "again")
        np.testing.assert_array_equal(again.images[same], scenes.images[same])
        assert [box.tolist() for box in again.boxes] == [box.tolist() for box in scenes.boxes]
    assert not np.array_equal(again.images[6:], scenes.images[6:])


@pytest.mark.parametrize("collected", [None, 9, 10, 20])
def test_a_training_set_that_the_attacker_collects_whole(tmp_path, collected):
    config = config_of(tmp_path, "training_set", collected=collected)
    with pytest.raises(HoldfastError, match="no faces of .* are left") as caught:
        prepare_scenes(config, tmp_path / "scenes", faces_of(tmp_path))
    assert f"attacker.images: {collected or 'all'}" in str(caught.value)
    assert not list((tmp_path / "scenes").glob("*"))


def test_a_training_set_without_boxes(tmp_path):
    csv = faces_of(tmp_path, box=False)
    with pytest.raises(HoldfastError, match="without a face box"):
        prepare_scenes(config_of(tmp_path, "training_set"), tmp_path / "scenes", csv)
    assert not list((tmp_path / "scenes").glob("*"))


def test_wider_face(tmp_path, capsys):
    config = config_of(tmp_path, wider_face(tmp_path / "wider", (8, 2)))
    prepare_scenes(config, tmp_path / "scenes")
    assert (
        "WIDER FACE: 8 pictures, 8 faces; left out: 0 below 4 px at 64 px, 8 invalid"
        in capsys.readouterr().err
    )
    scenes = Scenes(tmp_path / "scenes")
    # Six of eight were asked for, and there are two for the tests, not three.
    assert [len(part[0]) for part in (scenes.train(), scenes.test())] == [6, 2]
    assert all(box.shape == (1, 4) and (box >= 0).all() and (box <= SIZE).all() for box in scenes.boxes)
    before = (tmp_path / "scenes/boxes.json").read_bytes()
    assert sha256_of(tmp_path / "scenes/images.npy") in before.decode()
    prepare_scenes(config, tmp_path / "scenes")
    assert (tmp_path / "scenes/boxes.json").read_bytes() == before


def test_a_detector_trains_on_each_and_its_record_says_on_which(tmp_path):
    sources = {
        "synthetic": "synthetic scenes",
        "training_set": "scenes with faces of the training set",
        wider_face(tmp_path / "wider", (6, 3)): "WIDER FACE",
    }
    csv, states = faces_of(tmp_path), set()
    for number, (source, title) in enumerate(sources.items()):
        config, scenes = config_of(tmp_path, source), tmp_path / f"scenes_{number}"
        prepare_scenes(config, scenes, csv)
        for name in ("retinaface", "s3fd"):
            get_detector(config, name, scenes, tmp_path / "weights.safetensors", tmp_path / "records.jsonl")
            records = read_records([tmp_path / "records.jsonl"])
            assert {record["subject"]["dataset"] for record in records} == {title}
            assert all("boxes.json" in " ".join(r["provenance"]["inputs"]) for r in records)
        states |= set((tmp_path / "results/state/detector_s3fd").iterdir())
    assert len(states) == 3


def test_where_wider_face_lies_is_no_setting(tmp_path):
    here, there, rendered = (
        configs.hash_of(config_of(tmp_path, source)) for source in ("/data/wider", "/elsewhere", "synthetic")
    )
    assert here == there != rendered
