"""CelebA: 202,599 aligned faces of 178x218 pixels with 40 attributes and an official split.

Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015. Non-commercial research only, no
redistribution. The official layout, whole or in part, of the official or another pixel size:

    img_align_celeba/000001.jpg ...
    list_attr_celeba.txt       number of rows; the names; then a file name and -1 or 1 per attribute
    list_eval_partition.txt    file name and 0 (train), 1 (val) or 2 (test)
"""

import difflib
import os
from pathlib import Path

from holdfast.data.download import extract, fetch
from holdfast.data.faceset import SPLITS
from holdfast.data.preparing import Face, checked, listing, no_images, pack, source_folder
from holdfast.errors import HoldfastError

IMAGES, ATTRIBUTES, PARTITION = "img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"
LAYOUT = f"{IMAGES}/000001.jpg …, {ATTRIBUTES} and {PARTITION}"
PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


SETTINGS = {
    "source": {"$ref": "#/$defs/source", "default": None},
    "downloads": {"$ref": "#/$defs/downloads", "default": None},
    "archive": {
        "$ref": "#/$defs/download",
        "default": {
            "url": "https://drive.usercontent.google.com/download?id=0B7EVK8r0v71pZjFTYXZWM3FlRnM&export=download&confirm=t",
            "md5": "00d2c5bc6d35e252742224ab0c1e8fcb",
        },
    },
    "attribute_file": {
        "$ref": "#/$defs/download",
        "default": {
            "url": "https://drive.usercontent.google.com/download?id=0B7EVK8r0v71pblRyaVFSWGxPY0U&export=download&confirm=t",
            "md5": "75e246fa4810816ffd6ee81facbd244c",
        },
    },
    "partition_file": {
        "$ref": "#/$defs/download",
        "default": {
            "url": "https://drive.usercontent.google.com/download?id=0B7EVK8r0v71pY0NSMzRuSXJEVkk&export=download&confirm=t",
            "md5": "d32c9cbf5e040fd4025c592c306e6668",
        },
    },
    "size": {"$ref": "#/$defs/size", "default": [178, 218]},
    "crop": {"$ref": "#/$defs/crop", "default": 178},
    "face_box": {"$ref": "#/$defs/face_box", "default": None},
    "problem_limit": {"$ref": "#/$defs/problem_limit", "default": 0.01},
    "limits": {"$ref": "#/$defs/limits", "default": None},
    "attributes": {
        "type": ["array", "null"],
        "items": {"type": "string"},
        "default": None,
        "description": "Attributes to keep in the index; null: all 40.",
    },
}
DEFAULTS = {name: setting["default"] for name, setting in SETTINGS.items()}


def prepare(folder, settings, image_size, seed=None):
    """Write CelebA as a face set to `folder`.

    Args:
        settings: over DEFAULTS. `source`: a folder in the official layout, None to download.
            `downloads`: where downloaded files stay, None for a folder beside `folder`. `archive`,
            `attribute_file`, `partition_file`: {url, md5}. `size`: [width, height] that every image
            must have. `crop`: side of the centre crop in pixels of the source. `face_box`:
            [x1, y1, x2, y2] in pixels of the source, the same for all since they are aligned.
            `problem_limit`: fraction of unusable images above which preparing fails. `limits`:
            images per split, the first ones, None for all. `attributes`: names, None for all.
        image_size: side of the prepared images in pixels.
        seed: not used: nothing here is random.

    Returns:
        the FaceSet. Its report.json adds `rows_without_image` (a partial copy is no problem),
        `attribute_rows` (announced by the file, and found) and `other_files`.

    Raises:
        HoldfastError: something is missing, malformed, damaged above the limit, or cannot be
            downloaded or written.
    """
    settings = checked("celeba", DEFAULTS, settings)
    images, attribute_file, partition_file = _locate(Path(folder), settings)
    names, values, announced = read_attributes(attribute_file, settings["attributes"])
    splits = read_partition(partition_file)
    files, others = _list_images(images)
    present = set(files)
    report = {
        "rows_without_image": sum(1 for name in values.keys() | splits.keys() if name not in present),
        "attribute_rows": {"announced": announced, "found": len(values)},
        "other_files": others,
    }

    def faces():
        for file in files:
            lacking = [n for n, rows in ((ATTRIBUTES, values), (PARTITION, splits)) if file not in rows]
            missing = f"no row in {' and '.join(lacking)}" if lacking else None
            split = SPLITS[splits[file]] if file in splits else None
            yield Face(file, images / file, split, values.get(file, b""), missing)

    return pack(folder, "celeba", faces(), len(files), settings, image_size, attributes=names, report=report)


def _locate(folder, settings):
    """The image folder and the two text files: the user's, or downloaded."""
    if settings["source"] is None:
        return _download(folder, settings)
    source = source_folder("celeba", settings["source"], LAYOUT)
    for name, kind in ((IMAGES, "folder"), (ATTRIBUTES, "file"), (PARTITION, "file")):
        path = source / name
        if not (path.is_dir() if kind == "folder" else path.is_file()):
            raise HoldfastError(
                f"data set celeba: the {kind} {name} is missing in {source}",
                found=_contents(source),
                expected=LAYOUT,
                repair=f"place {name} of CelebA ({PAGE}) there, or correct `source` of celeba in the config",
            )
    return source / IMAGES, source / ATTRIBUTES, source / PARTITION


def _contents(folder):
    with listing("celeba", folder):
        names = sorted(os.listdir(folder))
    return ", ".join([*names[:8], *(["…"] if len(names) > 8 else [])]) or "an empty folder"


def _download(folder, settings):
    downloads = settings["downloads"]
    downloads = Path(downloads).expanduser() if downloads else folder.parent / f"{folder.name}.download"
    hint = f"its page is {PAGE}; or set `source` of celeba to a folder with {LAYOUT}"
    # The small files first: where the host refuses, it does so before 1.4 GB.
    for key, name in (("attribute_file", ATTRIBUTES), ("partition_file", PARTITION)):
        file = settings[key] or DEFAULTS[key]
        fetch(file["url"], downloads / name, md5=file.get("md5"), hint=hint)
    unpacked = downloads / "images"
    if not unpacked.exists():
        archive = settings["archive"] or DEFAULTS["archive"]
        extract(
            fetch(archive["url"], downloads / f"{IMAGES}.zip", md5=archive.get("md5"), hint=hint), unpacked
        )
    return unpacked / IMAGES, downloads / ATTRIBUTES, downloads / PARTITION


def _list_images(images):
    """Sorted names of the .jpg files, and the number of other entries."""
    files, others = [], 0
    with listing("celeba", images), os.scandir(images) as entries:
        for entry in entries:
            if entry.name.endswith(".jpg") and not entry.name.startswith("."):
                files.append(entry.name)
            else:
                others += 1
    if not files:
        raise no_images("celeba", images, "000001.jpg, 000002.jpg, …, directly in this folder")
    return sorted(files), others


def _lines(path):
    """Line number and text of the lines that are not blank.

    Raises:
        HoldfastError: the file cannot be read as text.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise HoldfastError(
            f"cannot read {path}",
            found=str(error),
            expected="a text file",
            repair=f"take it again from {PAGE}",
        ) from error


def _malformed(path, number, found, expected):
    return HoldfastError(
        f"{path}, line {number}, is malformed",
        found=found if len(found) <= 100 else f"{found[:100]} …",
        expected=expected,
        repair=f"correct the line, or take the file again from {PAGE}",
    )


def read_attributes(path, wanted=None):
    """The rows of list_attr_celeba.txt.

    Args:
        wanted: attribute names to keep, in this order; None for all.

    Returns:
        names, a dictionary from file name to bytes of 0 and 1, one per name, and the number of rows
        that the first line announces. Rows that are missing are for the caller to see: a copy may
        have been cut on purpose.

    Raises:
        HoldfastError: a line is malformed or comes twice, or an attribute is not in the header.
    """
    lines = _lines(path)
    number, line = next(lines, (1, ""))
    if not line.strip().isdigit():
        raise _malformed(path, number, line.strip() or "an empty file", "the number of rows")
    announced = int(line)
    number, line = next(lines, (number + 1, ""))
    header = line.split()
    if not header or len(set(header)) != len(header) or {"-1", "1"} & set(header):
        raise _malformed(path, number, line.strip() or "nothing", "the attribute names, each once")
    names = list(header if wanted is None else wanted)
    for name in names:
        if name not in header:
            close = difflib.get_close_matches(name, header, 1)
            raise HoldfastError(
                f"data set celeba: there is no attribute '{name}' in {path}",
                found=", ".join(header),
                expected="names of this header",
                repair=f"write {close[0]}" if close else "correct `attributes` of celeba in the config",
            )
    columns = [1 + header.index(name) for name in names]
    bits = {"-1": 0, "1": 1}
    rows = {}
    for number, line in lines:
        fields = line.split()
        if len(fields) != 1 + len(header):
            expected = f"a file name and {len(header)} values, {1 + len(header)} fields"
            raise _malformed(path, number, f"{len(fields)} fields: {line.strip()}", expected)
        if fields[0] in rows:
            raise _malformed(path, number, f"a second row of {fields[0]}", "one row per file")
        odd = next((value for value in fields[1:] if value not in bits), None)
        if odd is not None:
            raise _malformed(path, number, f"the value {odd}", "-1 or 1")
        rows[fields[0]] = bytes(bits[fields[column]] for column in columns)
    return names, rows, announced


def read_partition(path):
    """File name to 0 (train), 1 (val) or 2 (test), from list_eval_partition.txt.

    Raises:
        HoldfastError: a line is malformed or comes twice.
    """
    rows = {}
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise _malformed(path, number, line.strip(), "a file name and 0, 1 or 2")
        if fields[0] in rows:
            raise _malformed(path, number, f"a second row of {fields[0]}", "one row per file")
        rows[fields[0]] = int(fields[1])
    return rows


REGISTER = {"celeba": prepare}
