"""WIDER FACE as scenes for detectors: S. Yang et al., "WIDER FACE: A Face Detection Benchmark", CVPR 2016.

    WIDER_train/images/<event>/<name>.jpg
    WIDER_val/images/<event>/<name>.jpg
    wider_face_split/wider_face_train_bbx_gt.txt, wider_face_val_bbx_gt.txt

A picture in the annotation is a line with its path, one with its number of faces, and a line for each:
`x y w h blur expression illumination invalid occlusion pose`. One without faces has a line of zeros.

Invalid faces, and those that the scene makes too small, are background here, in training as in the tests.
WIDER FACE's own evaluation ignores them: `ap` on these scenes is a stricter figure than the published ones.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from holdfast.data.preparing import UnusableImage, read_image
from holdfast.errors import HoldfastError

PARTS = {"train": "train", "test": "val"}  # the boxes of WIDER FACE's own test part are not published
VALUES = "x y w h blur expression illumination invalid occlusion pose".split()
INVALID = VALUES.index("invalid")
SMALLEST_FACE = 4  # px of the shorter side in the scene; some annotated boxes have no extent at all
BORDER = 127  # grey beside a picture that is not square


class Picture(NamedTuple):
    """One annotated picture: faces are rows (x, y, w, h, line of the annotation), valid ones only."""

    path: Path
    faces: np.ndarray
    invalid: int


def annotation_of(source, split):
    """The annotation file of our split "train" or "test" within the folder `source`."""
    return Path(source) / f"wider_face_split/wider_face_{PARTS[split]}_bbx_gt.txt"


def read_annotations(source, split):
    """The pictures of a split, in the order of its annotation.

    Args:
        source: a folder in WIDER FACE's layout.
        split: "train", or "test" (its validation part).

    Returns:
        a list of :class:`Picture`.

    Raises:
        HoldfastError: the file is missing or cannot be read, a line is malformed, or there are no pictures.
    """
    file = annotation_of(source, split)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HoldfastError(
            f"WIDER FACE: cannot read {file}",
            found=getattr(error, "strerror", None) or str(error),
            expected="the annotation from wider_face_split.zip",
            repair="place it there, or correct `scenes.source` (synthetic, training_set, or a folder)",
        ) from error

    def refuse(number, expected):
        raise HoldfastError(
            f"WIDER FACE: line {number + 1} of {file} is malformed",
            found=lines[number].strip() if number < len(lines) else "the end of the file",
            expected=expected,
            repair="get the annotation again",
        )

    images = Path(source) / f"WIDER_{PARTS[split]}/images"
    pictures, at = [], 0
    while at < len(lines):
        name = lines[at].strip()
        if not name and not any(line.strip() for line in lines[at:]):
            break
        if not name.lower().endswith((".jpg", ".jpeg", ".png")):
            refuse(at, "the path of a picture, <event>/<name>.jpg")
        count = _integers(lines[at + 1]) if at + 1 < len(lines) else None
        if count is None or len(count) != 1 or count[0] < 0:
            refuse(at + 1, f"the number of faces in {name}")
        rows = range(at + 2, at + 2 + count[0])
        faces, invalid = [], 0
        for row in rows:
            values = _integers(lines[row]) if row < len(lines) else None
            if values is None or len(values) != len(VALUES) or min(values[2:4]) < 0:
                refuse(row, f"{len(VALUES)} whole numbers: {' '.join(VALUES)}")
            if values[INVALID]:
                invalid += 1
            else:
                faces.append([*values[:4], row + 1])
        at = rows.stop
        if not count[0] and at < len(lines) and _integers(lines[at]) == [0] * len(VALUES):
            at += 1
        pictures.append(Picture(images / name, np.array(faces, np.int64).reshape(-1, 5), invalid))
    if not pictures:
        raise HoldfastError(f"WIDER FACE: {file} names no pictures", repair="get the annotation again")
    return pictures


def _integers(line):
    try:
        return [int(value) for value in line.split()]
    except ValueError:
        return None


def scene_of(picture, annotation, size):
    """A picture as a scene: made as large as the square holds and centred in it, grey beside it.

    Args:
        picture: a :class:`Picture`.
        annotation: the file that it stands in, for messages.
        size: side of the scene in pixels.

    Returns:
        uint8 (S, S, 3); boxes float32 (k, 4) in pixels of the scene, clipped to the picture; and the number
        of faces that became smaller than SMALLEST_FACE and are left out of the boxes.

    Raises:
        HoldfastError: the picture is missing or damaged, or a box lies outside of it.
    """
    try:
        # As it is stored: the boxes know nothing of an EXIF orientation.
        image = read_image(picture.path)
    except UnusableImage as problem:
        found = problem.detail if picture.path.exists() else "nothing of that name"
        raise HoldfastError(
            f"WIDER FACE: cannot use the picture {picture.path}",
            found=found,
            expected="a whole image file",
            repair="unpack it again, or take its entry out of the annotation",
        ) from problem
    extent = np.array(image.size)
    low = picture.faces[:, :2]
    high = low + picture.faces[:, 2:4]
    outside = ((high < 0) | (low > extent)).any(axis=1)
    if outside.any():
        x, y, width, height, line = picture.faces[outside.argmax()]
        raise HoldfastError(
            f"WIDER FACE: line {line} of {annotation}: the box lies outside of {picture.path.name}",
            found=f"x {x}, y {y}, {width} x {height} in a picture of {extent[0]} x {extent[1]}",
            expected="a box that overlaps its picture",
            repair="get the annotation and the picture again: one of them is of another version",
        )
    scale = size / extent.max()
    fitted = np.maximum((extent * scale).round().astype(int), 1)
    corner = (size - fitted) // 2
    scene = np.full((size, size, 3), BORDER, np.uint8)
    resized = image.resize(tuple(fitted.tolist()), Image.Resampling.BILINEAR)
    scene[corner[1] : corner[1] + fitted[1], corner[0] : corner[0] + fitted[0]] = np.asarray(resized)
    boxes = np.concatenate([low.clip(0, extent), high.clip(0, extent)], axis=1) * np.tile(fitted / extent, 2)
    large = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf) >= SMALLEST_FACE
    return scene, (boxes[large] + np.tile(corner, 2)).astype(np.float32), int((~large).sum())
