"""WIDER FACE's layout, in a tiny tree with its oddities."""

import numpy as np
import pytest
from PIL import Image

from holdfast.data import wider_face
from holdfast.errors import HoldfastError

EVENT = "0--Parade/0_Parade_"


def line(*box, invalid=0):
    return f"{' '.join(map(str, box))} 1 0 0 {invalid} 2 0 "


@pytest.fixture
def tree(tmp_path, draw):
    """tree(annotation lines, split): a folder with this annotation, and pictures of 80 x 40 named in it."""

    def make(lines, split="train", size=(80, 40)):
        part = wider_face.PARTS[split]
        file = wider_face.annotation_of(tmp_path, split)
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
        for name in (text for text in lines if text.endswith(".jpg")):
            draw(tmp_path / f"WIDER_{part}/images" / name, *size, seed=name)
        return tmp_path

    return make


def test_pictures_faces_and_oddities(tree):
    source = tree(
        [
            f"{EVENT}a.jpg",
            "3",
            line(10, 5, 20, 16),
            line(0, 0, 8, 8, invalid=1),
            line(60, 20, 12, 12),
            f"{EVENT}empty.jpg",
            "0",
            "0 0 0 0 0 0 0 0 0 0 ",
            f"{EVENT}none.jpg",
            "0",
            f"{EVENT}last.jpg",
            "1",
            line(1, 2, 30, 30),
            "",
        ]
    )
    pictures = wider_face.read_annotations(source, "train")
    assert [picture.path.name for picture in pictures] == [
        f"0_Parade_{name}.jpg" for name in ("a", "empty", "none", "last")
    ]
    assert all(picture.path.is_file() for picture in pictures)
    assert pictures[0].faces.tolist() == [[10, 5, 20, 16, 3], [60, 20, 12, 12, 5]]
    assert [picture.invalid for picture in pictures] == [1, 0, 0, 0]
    assert [len(picture.faces) for picture in pictures] == [2, 0, 0, 1]


def test_the_test_split_is_the_validation_part(tree):
    source = tree([f"{EVENT}v.jpg", "1", line(1, 2, 30, 30)], split="test")
    (picture,) = wider_face.read_annotations(source, "test")
    assert "WIDER_val" in picture.path.parts and picture.path.is_file()


def test_a_scene_holds_the_whole_picture_and_its_boxes(tree):
    lines = [f"{EVENT}a.jpg", "4"]
    # In the middle; over the edge, as some are; too small at half the size; without an extent.
    lines += [line(20, 10, 24, 20), line(-6, 30, 20, 14), line(50, 5, 7, 20), line(60, 10, 0, 0)]
    source = tree(lines)
    path = source / "WIDER_train/images" / f"{EVENT}a.jpg"
    image = np.full((40, 80, 3), 30, np.uint8)
    image[10:30, 20:44] = 250
    Image.fromarray(image).save(path, quality=100, subsampling=0)
    (picture,) = wider_face.read_annotations(source, "train")
    scene, boxes, small = wider_face.scene_of(picture, wider_face.annotation_of(source, "train"), 40)
    assert scene.shape == (40, 40, 3) and scene.dtype == np.uint8
    # 80 x 40 becomes 40 x 20, ten rows of grey above and below.
    assert (scene[:10] == wider_face.BORDER).all() and (scene[30:] == wider_face.BORDER).all()
    np.testing.assert_allclose(boxes, [[10, 15, 22, 25], [0, 25, 7, 30]])
    assert boxes.dtype == np.float32 and small == 2
    rows, columns = np.nonzero(scene[..., 0] > 140)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (10, 15, 22, 25)


def test_a_tall_picture_is_centred_too(tree):
    source = tree([f"{EVENT}a.jpg", "1", line(0, 0, 33, 99)], size=(33, 99))
    (picture,) = wider_face.read_annotations(source, "train")
    scene, boxes, small = wider_face.scene_of(picture, "annotation", 64)
    columns = np.flatnonzero((scene != wider_face.BORDER).any(axis=(0, 2)))
    assert (columns.min(), columns.max() + 1) == (21, 42) and small == 0
    np.testing.assert_allclose(boxes, [[21, 0, 42, 64]])


@pytest.mark.parametrize(
    "lines, number, expected",
    [
        (["no picture"], 1, "path of a picture"),
        ([f"{EVENT}a.jpg", "two"], 2, "number of faces"),
        ([f"{EVENT}a.jpg", "-1"], 2, "number of faces"),
        ([f"{EVENT}a.jpg", "1", "1 2 3 4"], 3, "10 whole numbers"),
        ([f"{EVENT}a.jpg", "1", "1 2 x 4 0 0 0 0 0 0"], 3, "10 whole numbers"),
        ([f"{EVENT}a.jpg", "1", line(1, 2, -3, 4)], 3, "10 whole numbers"),
        ([f"{EVENT}a.jpg", "2", line(1, 2, 3, 4)], 4, "10 whole numbers"),
        ([f"{EVENT}a.jpg", "2", line(1, 2, 3, 4), f"{EVENT}b.jpg"], 4, "10 whole numbers"),
        ([f"{EVENT}a.jpg", "1", line(1, 2, 3, 4), line(1, 2, 3, 4)], 4, "path of a picture"),
        ([f"{EVENT}a.jpg"], 2, "number of faces"),
    ],
)
def test_a_malformed_line_is_named(tree, lines, number, expected):
    source = tree(lines)
    with pytest.raises(HoldfastError, match=f"line {number} of") as caught:
        wider_face.read_annotations(source, "train")
    assert expected in caught.value.expected


def test_files_that_are_missing_or_damaged(tree, tmp_path):
    with pytest.raises(HoldfastError, match="cannot read .*wider_face_train_bbx_gt.txt") as caught:
        wider_face.read_annotations(tmp_path / "nowhere", "train")
    assert "training_set" in caught.value.repair
    source = tree([f"{EVENT}a.jpg", "1", line(1, 2, 30, 30)])
    (picture,) = wider_face.read_annotations(source, "train")
    picture.path.write_bytes(picture.path.read_bytes()[:200])
    with pytest.raises(HoldfastError, match="cannot use the picture .*0_Parade_a.jpg"):
        wider_face.scene_of(picture, "annotation", 64)
    picture.path.unlink()
    with pytest.raises(HoldfastError, match="nothing of that name"):
        wider_face.scene_of(picture, "annotation", 64)
    wider_face.annotation_of(source, "train").write_text("\n")
    with pytest.raises(HoldfastError, match="names no pictures"):
        wider_face.read_annotations(source, "train")


@pytest.mark.parametrize("box", [(90, 0, 10, 10), (0, 41, 10, 10), (-20, 0, 10, 10)])
def test_a_box_outside_of_its_picture(tree, box):
    source = tree([f"{EVENT}a.jpg", "2", line(1, 2, 30, 30), line(*box)])
    (picture,) = wider_face.read_annotations(source, "train")
    with pytest.raises(HoldfastError, match="line 4 of annotation: the box lies outside") as caught:
        wider_face.scene_of(picture, "annotation", 64)
    assert "80 x 40" in caught.value.found
