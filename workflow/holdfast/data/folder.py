"""Any directory of images: searched through all its folders, any size, greyscale, RGBA, 16 bits."""

import os
from pathlib import Path

from holdfast.data.faceset import SPLITS
from holdfast.data.preparing import Face, checked, listing, no_images, pack, source_folder
from holdfast.errors import HoldfastError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
SETTINGS = {
    "source": {"$ref": "#/$defs/source", "default": None},
    "size": {"$ref": "#/$defs/size", "default": None},
    "crop": {"$ref": "#/$defs/crop", "default": None},
    "face_box": {"$ref": "#/$defs/face_box", "default": None},
    "problem_limit": {"$ref": "#/$defs/problem_limit", "default": 0.01},
    "limits": {"$ref": "#/$defs/limits", "default": None},
}
DEFAULTS = {name: setting["default"] for name, setting in SETTINGS.items()}


def prepare(folder, settings, image_size, seed=None):
    """Write a directory of images as a face set to `folder`.

    Images below source/train, source/val and source/test go to the split of that name, all others
    to test. Photographs are turned upright by their EXIF orientation, transparent pixels lie over
    white, 16-bit greys are scaled, of an animation the first picture is taken. Files are sorted by
    path; hidden files and files with other endings than ENDINGS are counted as `other_files`.

    Args:
        settings: over DEFAULTS. `source`: the directory. `crop`: side of the centre crop in pixels,
            None for the largest square. `size`: [width, height] that every image must have, None
            for any with sides of at least 32. `face_box`, `problem_limit`, `limits`: as in
            :func:`holdfast.data.celeba.prepare`.
        image_size: side of the prepared images in pixels.
        seed: not used: nothing here is random.

    Returns:
        the FaceSet, without attributes.

    Raises:
        HoldfastError: no directory, no images, too many damaged ones, or they cannot be written.
    """
    settings = checked("folder", DEFAULTS, settings)
    if settings["source"] is None:
        raise HoldfastError(
            "data set folder: no directory is named",
            found="`source` is null",
            expected="a directory of images",
            repair="set `source` of folder in the config",
        )
    source = source_folder("folder", settings["source"], "images")
    files, others = _list_images(source)
    splits = [split_of(file) for file in files]
    faces = (Face(file, source / file, split) for file, split in zip(files, splits, strict=True))
    occurring = tuple(split for split in SPLITS if split in splits)
    return pack(
        folder,
        "folder",
        faces,
        len(files),
        settings,
        image_size,
        splits=occurring,
        report={"other_files": others},
        upright=True,
    )


def split_of(file):
    """The split of a path relative to the source: its first folder if that is a split, else test."""
    parts = file.split("/")
    return parts[0] if len(parts) > 1 and parts[0] in SPLITS else "test"


def _list_images(source):
    """Sorted paths relative to the source, with '/', and the number of other files."""

    def stop(error):
        raise error

    files, others = [], 0
    with listing("folder", source):
        for parent, folders, names in os.walk(source, onerror=stop):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if name.lower().endswith(ENDINGS) and not name.startswith("."):
                    files.append((Path(parent) / name).relative_to(source).as_posix())
                else:
                    others += 1
    if not files:
        raise no_images("folder", source, f"files that end in {', '.join(ENDINGS)}")
    return sorted(files), others


REGISTER = {"folder": prepare}
