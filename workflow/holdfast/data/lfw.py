"""Labeled Faces in the Wild, deep-funneled: 13,233 faces of 250x250 pixels, always at the same place.

Huang et al., UMass Amherst technical report 07-49, 2007; Huang et al., "Learning to Align from
Scratch", NIPS 2012 (deep funneling). Research use. Layout: NAME/NAME_0001.jpg. No attributes.
"""

import os
import re
from pathlib import Path

from holdfast.data.download import extract, fetch
from holdfast.data.faceset import SPLITS
from holdfast.data.preparing import Face, checked, listing, no_images, pack, source_folder
from holdfast.errors import HoldfastError

LAYOUT = "one folder per person: NAME/NAME_0001.jpg …"
ARCHIVE = "lfw-deepfunneled.tgz"
PAGE = "http://vis-www.cs.umass.edu/lfw/"
# The folders that the official archives unpack to.
_INNER = ("lfw-deepfunneled", "lfw_funneled", "lfw")

SETTINGS = {
    "source": {"$ref": "#/$defs/source", "default": None},
    "downloads": {"$ref": "#/$defs/downloads", "default": None},
    "archive": {
        "$ref": "#/$defs/download",
        "default": {
            "url": "http://vis-www.cs.umass.edu/lfw/lfw-deepfunneled.tgz",
            "md5": "68331da3eb755a505a502b5aacb3c201",
        },
    },
    "size": {"$ref": "#/$defs/size", "default": [250, 250]},
    "crop": {"$ref": "#/$defs/crop", "default": 200},
    "face_box": {"$ref": "#/$defs/face_box", "default": None},
    "problem_limit": {"$ref": "#/$defs/problem_limit", "default": 0.01},
    "limits": {"$ref": "#/$defs/limits", "default": None},
    "split": {
        "enum": ["train", "val", "test"],
        "default": "test",
        "description": "The split that all images go to.",
    },
}
DEFAULTS = {name: setting["default"] for name, setting in SETTINGS.items()}


def prepare(folder, settings, image_size, seed=None):
    """Write LFW as a face set to `folder`; all images go to one split.

    Args:
        settings: over DEFAULTS, as in :func:`holdfast.data.celeba.prepare`; `source` is the folder
            of the persons, or the one above it; `split`: train, val or test.
        image_size: side of the prepared images in pixels.
        seed: not used: nothing here is random.

    Returns:
        the FaceSet, without attributes.

    Raises:
        HoldfastError: no images, too many damaged ones, or they cannot be downloaded or written.
    """
    settings = checked("lfw", DEFAULTS, settings)
    split = settings["split"]
    if split not in SPLITS:
        raise HoldfastError(
            "data set lfw: the setting `split` is not usable",
            found=repr(split),
            expected=", ".join(SPLITS),
            repair="correct `split` in the config",
        )
    root = _locate(Path(folder), settings)
    files, others = _list_images(root)
    faces = (Face(file, root / file, split) for file in files)
    return pack(
        folder,
        "lfw",
        faces,
        len(files),
        settings,
        image_size,
        splits=(split,),
        report={"other_files": others},
    )


def _locate(folder, settings):
    if settings["source"] is None:
        downloads = settings["downloads"]
        downloads = Path(downloads).expanduser() if downloads else folder.parent / f"{folder.name}.download"
        source = downloads / "images"
        if not source.exists():
            hint = f"its page is {PAGE}; or set `source` of lfw to a folder with {LAYOUT}"
            archive = settings["archive"] or DEFAULTS["archive"]
            extract(fetch(archive["url"], downloads / ARCHIVE, md5=archive.get("md5"), hint=hint), source)
    else:
        source = source_folder("lfw", settings["source"], LAYOUT)
    return next((source / inner for inner in _INNER if (source / inner).is_dir()), source)


def _list_images(root):
    """Sorted NAME/NAME_0001.jpg, and the number of other files."""
    files, others = [], 0
    with listing("lfw", root):
        for person in sorted(os.listdir(root)):
            if not (root / person).is_dir():
                others += 1
                continue
            pattern = re.compile(re.escape(person) + r"_\d{4}\.jpg")
            for name in sorted(os.listdir(root / person)):
                if pattern.fullmatch(name):
                    files.append(f"{person}/{name}")
                else:
                    others += 1
    if not files:
        raise no_images("lfw", root, LAYOUT)
    return files, others


REGISTER = {"lfw": prepare}
