"""A prepared set of faces: packed 8-bit pixels, an index with splits, boxes and attributes, a report."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from holdfast.data.pixels import to_float
from holdfast.errors import HoldfastError
from holdfast.files import read_json, sha256_of, write_json, writing_folder

FIXED_COLUMNS = ["position", "file", "split", "x1", "y1", "x2", "y2", "source"]
SPLITS = ("train", "val", "test")


class FaceSet:
    """An opened folder of :func:`write_faceset`; its pixels stay on disk until asked for.

    Attributes:
        images: uint8 (N, S, S, 3), memory-mapped.
        index: one row per image: position, file, split, face box x1 y1 x2 y2 in pixels (NaN where
            unknown), and one 0/1 column per attribute.
        attributes: names of the attribute columns.
    """

    def __init__(self, folder, images, index):
        self.folder, self.images, self.index = Path(folder), images, index
        self.attributes = [name for name in index.columns if name not in FIXED_COLUMNS]

    @classmethod
    def open(cls, folder):
        """Raises:
        HoldfastError: a file is missing, or the index and the pixels differ in length."""
        folder = Path(folder)
        try:
            images = np.load(folder / "images.npy", mmap_mode="r")
            # Only an empty field is missing: a file or a person may be called 'NA' or 'null'.
            text = dict.fromkeys(("file", "split", "source"), str)
            index = pd.read_csv(folder / "index.csv", dtype=text, keep_default_na=False, na_values=[""])
        except (OSError, ValueError, EOFError) as error:
            raise HoldfastError(
                f"cannot open the face set {folder}",
                found=str(error),
                expected="images.npy and index.csv",
                repair="remove the folder and run again",
            ) from error
        columns = [name for name in FIXED_COLUMNS if name != "source" and name not in index.columns]
        if columns or images.ndim != 4 or images.dtype != np.uint8:
            raise HoldfastError(
                f"{folder} is not a face set",
                found=f"{images.dtype} {images.shape} and the columns {', '.join(index.columns)}",
                expected=f"uint8 (N, S, S, 3) and at least the columns {', '.join(FIXED_COLUMNS[:-1])}",
                repair="remove the folder and run again",
            )
        if len(images) != len(index):
            raise HoldfastError(
                f"the face set {folder} is inconsistent",
                found=f"{len(images)} images, {len(index)} rows of index.csv",
                expected="as many of each",
                repair="remove the folder and run again",
            )
        return cls(folder, images, index)

    def __len__(self):
        return len(self.images)

    @property
    def size(self):
        """Side length S of the images in pixels."""
        return self.images.shape[1]

    def positions(self, split, limit=None):
        """Positions of a split ('train', 'val', 'test'), in order; the first `limit` of them."""
        chosen = np.flatnonzero((self.index["split"] == split).to_numpy())
        return chosen if limit is None else chosen[:limit]

    def pixels(self, positions):
        """float32 (n, 3, S, S) in [-1, 1]."""
        return to_float(self.images[np.asarray(positions)])

    def labels(self, positions, names):
        """float32 (n, len(names)) of 0 and 1.

        Raises:
            HoldfastError: the set does not have an attribute.
        """
        missing = [name for name in names if name not in self.attributes]
        if missing:
            raise HoldfastError(
                f"the face set {self.folder} has no attribute {', '.join(missing)}",
                found=", ".join(self.attributes) or "no attributes",
                repair="name only attributes that the data set has",
            )
        columns = [self.index.columns.get_loc(name) for name in names]
        values = self.index.iloc[np.asarray(positions), columns].to_numpy(np.float32)
        return torch.from_numpy(values.copy())

    def boxes(self, positions):
        """float32 (n, 4): the true face boxes x1, y1, x2, y2 in pixels; NaN where unknown."""
        columns = [self.index.columns.get_loc(name) for name in ("x1", "y1", "x2", "y2")]
        return self.index.iloc[np.asarray(positions), columns].to_numpy(np.float32)


def write_faceset(folder, image_size, rows, attributes, report):
    """Write a face set row by row: memory does not grow with the number of images.

    Args:
        folder: where the set will stand, whole or not at all.
        image_size: side length S.
        rows: iterable of (pixels uint8 (S, S, 3), file, split, box or None, attribute values).
        attributes: attribute names.
        report: a dictionary, or a function called after the last row that returns it. Written as
            report.json with the number of rows, the splits and the sha256 of the files.
    """
    shape = (image_size, image_size, 3)
    with writing_folder(folder) as temporary:
        splits = dict.fromkeys(SPLITS, 0)
        used = 0
        with (
            open(temporary / "images.npy", "wb") as pixel_file,
            open(temporary / "index.csv", "w", newline="") as index_file,
        ):
            _write_header(pixel_file, (0, *shape))
            table = csv.writer(index_file, lineterminator="\n")
            table.writerow(["position", "file", "split", "x1", "y1", "x2", "y2", *attributes])
            for pixels, file, split, box, values in rows:
                if pixels.shape != shape or pixels.dtype != np.uint8:
                    raise ValueError(f"{file}: expected uint8 {shape}, found {pixels.dtype} {pixels.shape}")
                pixel_file.write(np.ascontiguousarray(pixels).tobytes())
                corners = ["", "", "", ""] if box is None else [f"{edge:.2f}" for edge in box]
                table.writerow([used, file, split, *corners, *(int(value) for value in values)])
                splits[split] += 1
                used += 1
            pixel_file.seek(0)
            _write_header(pixel_file, (used, *shape))
        report = dict(report() if callable(report) else report)
        report |= {"image_size": image_size, "used": used, "splits": splits}
        report["sha256"] = {name: sha256_of(temporary / name) for name in ("images.npy", "index.csv")}
        write_json(temporary / "report.json", report)
    return FaceSet.open(folder)


def _write_header(file, shape):
    """The .npy header: always 128 bytes, so that it can be rewritten once the number of rows is known."""
    start = file.tell()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    if file.tell() - start != 128:
        raise ValueError(f"the .npy header for shape {shape} does not fit in 128 bytes")


def read_report(folder):
    """The report.json of a face set."""
    return read_json(Path(folder) / "report.json")
