"""The attacker with several detectors: he takes the surest box of any."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from holdfast import config as configs
from holdfast.attacker.harvest import crop, square_window, union, windows
from holdfast.data.faceset import write_faceset
from holdfast.data.pixels import to_bytes
from holdfast.detectors import DETECTORS
from holdfast.errors import HoldfastError
from holdfast.records import read_records
from holdfast.seeds import numpy_generator
from holdfast.stages.common import open_faces
from holdfast.stages.harvest import find_faces, harvest, measure_harvest, read_boxes
from holdfast.stages.protect import ProtectedSet

THRESHOLD = 0.8  # what S3FD's random weights here exceed in some images
NOTHING = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


def one(box, score):
    return np.array([box], np.float32), np.array([score], np.float32)


FIRST = [one([1, 1, 9, 9], 0.6), NOTHING, one([2, 2, 8, 8], 0.7), NOTHING]
SECOND = [one([3, 3, 9, 9], 0.9), one([0, 0, 5, 5], 0.8), one([1, 1, 4, 4], 0.7), NOTHING]


def test_all_boxes_best_first():
    found = union([FIRST, SECOND])
    assert [scores.tolist() for _, scores in found] == [
        pytest.approx([0.9, 0.6]), pytest.approx([0.8]), pytest.approx([0.7, 0.7]), []
    ]  # fmt: skip
    assert found[0][0].tolist() == [[3, 3, 9, 9], [1, 1, 9, 9]]
    assert found[2][0].tolist() == [[2, 2, 8, 8], [1, 1, 4, 4]]  # a tie: the detector named first
    assert found[3][0].shape == (0, 4)


def test_of_one_detector_it_is_that_detector():
    for (boxes, scores), (same, same_scores) in zip(union([SECOND]), SECOND, strict=True):
        assert (boxes == same).all() and (scores == same_scores).all() and boxes.dtype == same.dtype


def test_the_surest_box_over_all_detectors_is_cropped():
    options = {"threshold": 0.65, "margin": 0.0, "no_detection": "drop"}
    assert windows(union([FIRST, SECOND]), 16, **options) == [(3, 3, 6), (0, 0, 5), (2, 2, 6), None]


def test_detections_of_the_same_images_only():
    with pytest.raises(ValueError):
        union([FIRST, SECOND[:3]])


@pytest.fixture
def collected(tmp_path):
    """(config, faces' index, protected index): six images of 32 px; one is all black."""
    random = numpy_generator("union")
    pixels = random.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    pixels[2] = 0
    rows = ((image, f"{i}.png", "train", (8, 8, 24, 24), (i % 2,)) for i, image in enumerate(pixels))
    write_faceset(tmp_path / "faces", 32, rows, ["Male"], {"dataset": "synthetic"})
    folder = tmp_path / "protected"
    (folder / "images").mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"images/{i}.png")
    files = [f"images/{i}.png" for i in range(6)]
    table = pd.DataFrame({"position": range(6), "file": files, "source_position": range(6)})
    table["source"] = files
    table.to_csv(folder / "index.csv", index=False)
    config = configs.complete(
        {
            "training_set": "synthetic",
            "image_size": 32,
            "device": "cpu",
            "results": str(tmp_path),
            "datasets": {"synthetic": {}},
            "deepfakes": {"stargan": {}},
            "detectors": {name: {"width": 1 / 8} for name in ("retinaface", "s3fd", "dsfd")},
            "defences": {"none": {}},
            "attacker": {"detector": "union", "threshold": THRESHOLD, "no_detection": "drop"},
            "measuring": {"batch": 4},
        }
    )
    return config, tmp_path / "faces/index.csv", folder / "index.csv"


def test_a_harvest_with_all_detectors(collected, tmp_path):
    config, faces, protected = collected
    weights, boxes, found = {}, {}, []
    x = ProtectedSet(protected).pixels(slice(0, 6))
    for number, name in enumerate(config["detectors"]):
        torch.manual_seed(number)
        detector = DETECTORS[name]({"width": 1 / 8})
        weights[name] = tmp_path / f"{name}.safetensors"
        detector.save(weights[name])
        boxes[name] = tmp_path / f"{name}.csv"
        find_faces(config, protected, name, weights[name], boxes[name])
        # In the batches of the config: another size may change the last bits.
        pairs = [pair for part in (x[:4], x[4:]) for pair in detector.detect(part, THRESHOLD)]
        found.append([(b.numpy(), s.numpy()) for b, s in pairs])
        for (b, s), (same_b, same_s) in zip(read_boxes(boxes[name], 6), found[-1], strict=True):
            assert np.array_equal(b, same_b) and np.array_equal(s, same_s)
    records = tmp_path / "harvest.jsonl"
    measure_harvest(config, "none", 0, protected, faces, weights, boxes, records)
    *singles, record = read_records([records])
    assert [single["subject"]["detector"] for single in singles] == list(config["detectors"])
    assert [single["extra"]["n_detected"] for single in singles] == [
        sum(len(scores) > 0 for _, scores in pairs) for pairs in found
    ]
    assert record["subject"]["detector"] == "union" and record["subject"]["defence"] == "none"
    assert len(record["provenance"]["inputs"]) == 7  # the index, three weights, what was found with each
    assert f"above {THRESHOLD} overlaps" in record["definition"]
    surest = [
        max((pair for pair in each if len(pair[1])), key=lambda pair: pair[1][0], default=None)
        for each in zip(*found, strict=True)
    ]
    cut = [(at, square_window(best[0][0], 0.3, 32)) for at, best in enumerate(surest) if best is not None]
    assert record["extra"]["n_whole"] == sum(window[2] == 32 for _, window in cut)
    assert record["extra"]["n_harvested"] == len(cut)
    assert 0 < len(cut) < 6
    harvest(config, "none", protected, faces, list(boxes.values()), tmp_path / "harvest")
    crops = open_faces(tmp_path / "harvest/index.csv")
    pixels = ProtectedSet(protected).bytes(slice(0, 6))
    assert crops.index["file"].tolist() == [f"images/{at}.png" for at, _ in cut]
    expected = np.stack([crop(pixels[at], window, 32) for at, window in cut])
    assert (to_bytes(crops.pixels(range(len(crops)))) == expected).all()


def test_what_was_found_in_other_images_is_refused(tmp_path):
    (tmp_path / "boxes.csv").write_text("image,x1,y1,x2,y2,score\n4,1,1,9,9,0.75\n")
    found = read_boxes(tmp_path / "boxes.csv", 6)
    assert [len(scores) for _, scores in found] == [0, 0, 0, 0, 1, 0]
    assert found[4][0].tolist() == [[1, 1, 9, 9]] and found[4][1].tolist() == [0.75]
    with pytest.raises(HoldfastError, match="not of these images"):
        read_boxes(tmp_path / "boxes.csv", 4)


@pytest.mark.parametrize("part", [slice(2, 5), slice(3, 5), slice(3, 4)])  # not only as one of several
@pytest.mark.parametrize("size", [(16, 32), (1, 32), (64, 64)])
def test_a_protected_file_of_another_size_is_named(collected, size, part):
    _, _, protected = collected
    Image.new("L", size).save(protected.parent / "images/3.png")
    with pytest.raises(HoldfastError, match=r"images/3.png and images/0.png differ") as caught:
        ProtectedSet(protected).bytes(part)
    assert f"{size[0]}x{size[1]}" in caught.value.found and "32x32" in caught.value.expected


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P"])
def test_protected_files_of_other_modes_are_read_as_rgb(collected, mode):
    _, _, protected = collected
    path = protected.parent / "images/3.png"
    with Image.open(path) as image:
        grey = image.convert("L").convert("RGB")
    grey.convert(mode).save(path)
    found = ProtectedSet(protected).bytes(slice(2, 5))
    assert found.shape == (3, 32, 32, 3)
    assert np.abs(found[1].astype(int) - np.asarray(grey).astype(int)).max() <= (0 if mode != "P" else 60)
