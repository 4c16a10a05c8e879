"""Photographed faces on rendered backgrounds: the boxes are where the faces are."""

import numpy as np
import pytest

from holdfast.data.pasting import paste_scene
from holdfast.errors import HoldfastError
from holdfast.seeds import numpy_generator

SIDE, SIZE = 32, 96


@pytest.fixture(scope="module")
def photographs():
    """Grey photographs whose faces are green, wholly; boxes of several places and shapes."""
    random = numpy_generator("test", "photographs")
    images = random.integers(90, 140, (12, SIDE, SIDE, 1), np.uint8).repeat(3, axis=3)
    boxes = np.empty((12, 4), np.float32)
    for image, box in zip(images, boxes, strict=True):
        x, y = random.integers(6, 10, 2)
        box[:] = x, y, x + random.integers(10, 14), y + random.integers(13, 16)
        left, top, right, bottom = box.astype(int)
        image[top:bottom, left:right] = 20, 220, 20
    return images, boxes


def green(scene, box):
    """Share of a box's pixels that are as green as the painted faces, in whatever light."""
    left, top, right, bottom = np.round(box).astype(int)
    part = scene[top:bottom, left:right].astype(int)
    return (part[..., 1] > 40 + np.maximum(part[..., 0], part[..., 2])).mean()


def widened(box, by):
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return np.concatenate([centre - by * half, centre + by * half])


def test_the_boxes_are_where_the_faces_are(photographs):
    shares = []
    for number in range(60):
        scene, boxes = paste_scene(*photographs, ("test", number), SIZE)
        assert scene.shape == (SIZE, SIZE, 3) and scene.dtype == np.uint8
        assert boxes.dtype == np.float32 and boxes.shape == (len(boxes), 4) and 1 <= len(boxes) <= 4
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= SIZE).all()
        for box in boxes:
            # The middle of a face always shows; its corners may be cut by the mask.
            assert green(scene, widened(box, 0.6)) > 0.9
            shares.append(green(scene, box))
            if box[3] - box[1] > 0.3 * SIZE:
                # And it ends where its box ends.
                ring = green(scene, np.clip(widened(box, 1.3), 0, SIZE))
                assert ring < 0.97 * shares[-1]
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        apart = (np.maximum(low, low.swapaxes(0, 1)) >= np.minimum(high, high.swapaxes(0, 1))).any(axis=2)
        assert (apart | np.eye(len(boxes), dtype=bool)).all()
    assert np.mean(shares) > 0.8 and min(shares) > 0.5


def test_a_scene_depends_on_its_key_alone(photographs):
    first, boxes = paste_scene(*photographs, ("test", 1), SIZE)
    paste_scene(*photographs, ("test", 2), SIZE)
    again, same = paste_scene(*photographs, ("test", 1), SIZE)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(boxes, same)
    assert not np.array_equal(first, paste_scene(*photographs, ("test", 2), SIZE)[0])


def test_sizes_vary_and_the_mirror_is_used(photographs):
    images, boxes = photographs
    # One photograph whose left half is red and whose face sits on the right: mirrored, it is the other way.
    image = np.full((SIDE, SIDE, 3), 120, np.uint8)
    image[:, : SIDE // 2] = 230, 20, 20
    found, sides = [], set()
    for number in range(60):
        scene, placed = paste_scene(image[None], np.array([[18, 8, 30, 24]]), ("mirror", number), SIZE)
        found += list((placed[:, 3] - placed[:, 1]) / SIZE)
        if len(placed) == 1 and (placed[0, 3] - placed[0, 1]) > 0.5 * SIZE:
            red = (scene[..., 0].astype(int) > 60 + scene[..., 1]).mean(axis=0)
            sides.add(red[: SIZE // 4].mean() > red[-SIZE // 4 :].mean())
    assert sides == {True, False}
    assert min(found) < 0.2 and max(found) > 0.5 and max(found) <= 1


def test_photographs_without_boxes_make_no_scenes(photographs):
    images, boxes = photographs
    missing = boxes.copy()
    missing[3] = np.nan
    with pytest.raises(HoldfastError, match="1 without a face box") as caught:
        paste_scene(images, missing, ("test",), SIZE)
    assert "face_box" in caught.value.repair
    with pytest.raises(HoldfastError, match="0 photographs"):
        paste_scene(images[:0], boxes[:0], ("test",), SIZE)
