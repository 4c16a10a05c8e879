"""What all sets of photographs share: crop and resize, unusable images, the limit, packing one by one.

Pixel geometry: a box x1, y1, x2, y2 names edges, not pixel centres, so the box of a whole image of
width W and height H is 0, 0, W, H. The crop is a square in the middle of the source image.
"""

import contextlib
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

from holdfast.data.faceset import SPLITS, write_faceset
from holdfast.errors import HoldfastError
from holdfast.progress import Progress

MINIMUM_SIDE = 32
LISTED = 1000
PROBLEMS = {
    "damaged": "copy or download the damaged files again",
    "missing_attributes": "complete the attribute and the partition file, or remove the images without rows",
    "wrong_size": "set `size` and `crop` to the pixels of this copy, or take out the images of other sizes",
}
# What Pillow's decoders raise on a broken file.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UnusableImage(Exception):
    """An image that cannot be used: `problem` is a key of PROBLEMS, `detail` says why."""

    def __init__(self, problem, detail):
        super().__init__(f"{problem}: {detail}")
        self.problem, self.detail = problem, detail


class Window(NamedTuple):
    """A square of the source image, in its pixels."""

    left: int
    top: int
    side: int


class Face(NamedTuple):
    """One image file, not yet read.

    `split` is None, and `missing` says why, where the file's row is missing.
    """

    file: str
    path: Path
    split: str | None
    values: tuple = ()
    missing: str | None = None


# ---- geometry ----


def centre_window(width, height, crop=None):
    """The square of side `crop` in the middle, or the largest one. Odd margins: the lower half first.

    178x218 gives left 0, top 20 at crop 178, and left 4, top 24 at crop 170.

    Raises:
        ValueError: the image is smaller than the crop.
    """
    side = min(width, height) if crop is None else crop
    if side > min(width, height):
        raise ValueError(f"{width}x{height} pixels do not hold a crop of {side}x{side}")
    return Window((width - side) // 2, (height - side) // 2, side)


def transform_box(box, window, image_size):
    """A box in source pixels to prepared pixels: moved, scaled by image_size / side, clipped.

    Returns:
        four floats x1, y1, x2, y2 in [0, image_size].

    Raises:
        ValueError: nothing of the box lies within the window.
    """
    scale = image_size / window.side
    edges = [
        min(max((edge - start) * scale, 0.0), float(image_size))
        for edge, start in zip(box, (window.left, window.top) * 2, strict=True)
    ]
    if edges[0] >= edges[2] or edges[1] >= edges[3]:
        raise ValueError(f"the box {list(box)} lies outside of the crop {tuple(window)}")
    return tuple(edges)


def crop_and_resize(image, window, image_size):
    """uint8 (image_size, image_size, 3): the window of an RGB image, bilinear.

    Pillow widens the bilinear kernel by the reduction, so shrinking does not alias. The crop comes
    first, so that nothing outside of it leaks in at the border.
    """
    left, top, side = window
    cropped = image.crop((left, top, left + side, top + side))
    return np.asarray(cropped.resize((image_size, image_size), Image.Resampling.BILINEAR))


# ---- reading ----


@contextlib.contextmanager
def _truncated_files_refused():
    """Pillow fills the rest of a truncated file with grey if some other code has allowed it."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def to_rgb(image):
    """Any Pillow image as 8-bit RGB: transparent pixels over white, 16-bit grey scaled by 255/65535.

    Raises:
        UnusableImage: pixel values of unknown range (32 bits, floating point).
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        # Pillow's own convert() clips 16-bit values at 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnusableImage("damaged", f"mode {image.mode}: values outside of 0 to 65535")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnusableImage("damaged", "mode F: floating-point values of unknown range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def misfit(width, height, settings):
    """Why an image of this size cannot be used with `size` and `crop` of the settings, or None."""
    size, crop = settings.get("size"), settings.get("crop")
    if size is not None:
        if (width, height) != tuple(size):
            return f"{width}x{height} pixels, expected {size[0]}x{size[1]}"
        return None
    least = max(MINIMUM_SIDE, crop or 0)
    if min(width, height) < least:
        return f"{width}x{height} pixels, expected at least {least}x{least}"
    return None


def read_image(path, settings=None, upright=False):
    """An RGB image; its pixels are decoded to the last, or it is refused.

    Args:
        settings: `size` and `crop` are checked before decoding.
        upright: turn by the EXIF orientation.

    Raises:
        UnusableImage: damaged, or of the wrong size.
    """
    try:
        with _truncated_files_refused(), Image.open(path) as image:
            detail = misfit(*image.size, settings or {})
            if detail is None:
                image.load()
                return to_rgb(ImageOps.exif_transpose(image) if upright else image)
    except _DECODER_ERRORS as error:
        raise UnusableImage("damaged", _told(path, error)) from error
    raise UnusableImage("wrong_size", detail)


def _told(path, error):
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or its header is damaged" if Path(path).stat().st_size else "empty file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"{error}" or type(error).__name__


# ---- settings ----


def checked(name, defaults, settings):
    """The settings over their defaults, with sizes, box, limits and fractions checked.

    Raises:
        HoldfastError: names the key.
    """
    settings = defaults | {key: value for key, value in (settings or {}).items()}

    def refuse(key, expected, repair=None):
        raise HoldfastError(
            f"data set {name}: the setting `{key}` is not usable",
            found=repr(settings.get(key)),
            expected=expected,
            repair=repair or f"correct `{key}` in the config",
        )

    size, crop, box = (settings.get(key) for key in ("size", "crop", "face_box"))
    if size is not None and not (_list_of(size, 2, int) and min(size) >= MINIMUM_SIDE):
        refuse("size", f"[width, height] in whole pixels, at least {MINIMUM_SIDE} each")
    if crop is not None and not (_is(crop, int) and crop >= 1):
        refuse("crop", "the side of the centre crop in whole pixels, or null for the largest square")
    if size is not None and crop is not None and crop > min(size):
        refuse("crop", f"at most {min(size)}, the shorter side of `size` {list(size)}")
    if box is not None:
        if not (_list_of(box, 4, (int, float)) and box[0] < box[2] and box[1] < box[3]):
            refuse("face_box", "[x1, y1, x2, y2] with x1 < x2 and y1 < y2, in pixels of the source image")
        if size is not None:
            if not (0 <= box[0] and 0 <= box[1] and box[2] <= size[0] and box[3] <= size[1]):
                refuse("face_box", f"a box within the source image, `size` {list(size)}")
            try:
                transform_box(box, centre_window(*size, crop), 1)
            except ValueError:
                refuse("face_box", "a box that overlaps the centre crop")
    if not (_is(settings["problem_limit"], (int, float)) and 0 <= settings["problem_limit"] <= 1):
        refuse("problem_limit", "a fraction from 0 to 1")
    limits = settings.get("limits") or {}
    if not isinstance(limits, dict) or set(limits) - set(SPLITS):
        refuse("limits", "a table with the keys train, val, test")
    if not all(limit is None or (_is(limit, int) and limit >= 0) for limit in limits.values()):
        refuse("limits", "whole numbers of images, or null for all")
    settings["limits"] = {split: limits.get(split) for split in SPLITS}
    return settings


def _is(value, kinds):
    return isinstance(value, kinds) and not isinstance(value, bool)


def _list_of(values, length, kinds):
    return isinstance(values, list | tuple) and len(values) == length and all(_is(v, kinds) for v in values)


def source_folder(name, source, contents):
    """The folder that the user names, as a Path.

    Raises:
        HoldfastError: it is missing or not readable; says what to place there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    raise HoldfastError(
        f"data set {name}: the source folder {path} is not there",
        found="a file" if path.exists() else "nothing of that name",
        expected=f"a folder with {contents}",
        repair=f"place the images there, or correct `source` of {name} in the config",
    )


@contextlib.contextmanager
def listing(name, path):
    """Turn a folder that cannot be listed into a :class:`HoldfastError`."""
    try:
        yield
    except OSError as error:
        raise HoldfastError(
            f"data set {name}: cannot list {path}",
            found=(error.strerror or str(error)).lower(),
            expected="a folder that can be read",
            repair="give yourself read permission for it and the folders above",
        ) from error


def no_images(name, path, expected, repair=None):
    """The error for a folder without images."""
    return HoldfastError(
        f"data set {name}: there are no images in {path}",
        found="no image files",
        expected=expected,
        repair=repair or f"place the images there, or correct `source` of {name} in the config",
    )


# ---- counting ----


class Tally:
    """Counts images that cannot be used, and stops when they are too many.

    Args:
        name: of the data set, for messages.
        candidates: number of image files; no more than these can be examined.
        limit: the fraction of the examined images that may be unusable.
    """

    def __init__(self, name, candidates, limit):
        self.name, self.candidates, self.limit = name, candidates, limit
        self.examined = 0
        self.counts = dict.fromkeys(PROBLEMS, 0)
        self.files = []

    @property
    def total(self):
        return sum(self.counts.values())

    def add(self, file, problem, detail):
        """Raises:
        HoldfastError: so many that even if all images to come were sound, the limit is passed."""
        self.counts[problem] += 1
        if len(self.files) < LISTED:
            self.files.append({"file": file, "problem": problem, "detail": detail})
        if self.total > self.limit * self.candidates:
            raise self._too_many()

    def close(self):
        """The report's part on problems.

        Raises:
            HoldfastError: more than the limit, or no usable image at all.
        """
        if self.total > self.limit * self.examined:
            raise self._too_many()
        if self.examined == self.total:
            raise HoldfastError(
                f"data set {self.name}: no image is left",
                found=f"{self.candidates} image files, {self.examined} examined, none of them usable",
                expected="at least one usable image",
                repair=self._repair() if self.total else "raise `limits`: they let no image through",
            )
        return {
            "found": self.candidates,
            "examined": self.examined,
            "problems": dict(self.counts),
            "problem_fraction": self.total / self.examined,
            "limit": self.limit,
            "files": self.files,
        }

    def _repair(self):
        mending = [repair for problem, repair in PROBLEMS.items() if self.counts[problem]]
        return "; ".join([*mending, "or raise `problem_limit` in the config"])

    def _too_many(self):
        counts = ", ".join(f"{problem} {count}" for problem, count in self.counts.items() if count)
        first = "; ".join(
            f"{entry['file']} ({entry['problem']}: {entry['detail']})" for entry in self.files[:5]
        )
        return HoldfastError(
            f"data set {self.name}: too many images cannot be used",
            found=f"{self.total} among the first {self.examined} of {self.candidates} images "
            f"({counts}); the first: {first}",
            expected=f"at most a fraction of {self.limit} (`problem_limit`)",
            repair=self._repair(),
        )


# ---- packing ----


def pack(
    folder,
    name,
    faces,
    total,
    settings,
    image_size,
    *,
    splits=SPLITS,
    attributes=(),
    report=None,
    upright=False,
):
    """Read, crop, resize and write the faces one by one; memory does not grow with their pixels.

    Args:
        folder: where the face set will stand, whole or not at all.
        faces: iterable of `total` :class:`Face`, in the order in which they shall stand.
        settings: from :func:`checked`.
        splits: those that occur among the faces; reading ends when the limits of all are reached.
        attributes: names of the faces' values.
        report: further entries of report.json.

    Returns:
        the opened FaceSet. Its report.json counts `found` files, `examined` ones (those that the
        limits let through), problems by kind, and lists the first 1000 of them.

    Raises:
        HoldfastError: too many problems, no image left, a full disk, no permission.
    """
    if not (_is(image_size, int) and image_size >= 1):
        raise HoldfastError(
            f"data set {name}: the image size is not usable",
            found=repr(image_size),
            expected="the side of the prepared images in whole pixels",
            repair="correct `image_size` in the config",
        )
    tally = Tally(name, total, settings["problem_limit"])
    box, limits = settings.get("face_box"), settings["limits"]
    kept, first = dict.fromkeys(splits, 0), None

    def full(split):
        return limits[split] is not None and kept[split] >= limits[split]

    def usable():
        """The faces that the limits let through, as rows; the others are counted in the tally."""
        nonlocal first
        for face in faces:
            told.advance()
            if all(full(split) for split in kept):
                told.total = told.done
                return
            if face.split is not None and full(face.split):
                continue
            tally.examined += 1
            if face.missing is not None:
                tally.add(face.file, "missing_attributes", face.missing)
                continue
            try:
                image = read_image(face.path, settings, upright)
            except UnusableImage as problem:
                tally.add(face.file, problem.problem, problem.detail)
                continue
            first = first or (face.file, image.size)
            if box is not None and image.size != first[1]:
                raise HoldfastError(
                    f"data set {name}: one `face_box` cannot hold for images that differ in size",
                    found=f"{face.file} {_by(image.size)}, {first[0]} {_by(first[1])}",
                    expected="images of one size, in whose pixels the box is given",
                    repair="give `size` to leave out all others, or set `face_box` to null",
                )
            window = centre_window(*image.size, settings.get("crop"))
            pixels = crop_and_resize(image, window, image_size)
            kept[face.split] += 1
            yield pixels, face.file, face.split, _placed(name, face, box, window, image_size), face.values

    def finish():
        of_settings = {key: settings.get(key) for key in ("size", "crop", "face_box", "limits")}
        return {
            "dataset": name,
            "source": settings.get("source"),
            **of_settings,
            **(report or {}),
            **tally.close(),
        }

    with Progress(total, f"preparing {name}") as told:
        return write_faceset(folder, image_size, usable(), list(attributes), finish)


def _by(size):
    return "{}x{}".format(*size)


def _placed(name, face, box, window, image_size):
    if box is None:
        return None
    try:
        return transform_box(box, window, image_size)
    except ValueError as error:
        raise HoldfastError(
            f"data set {name}: `face_box` does not fit {face.file}",
            found=str(error),
            expected="a box that overlaps the crop of every image",
            repair="set `face_box` to null where the images differ in size",
        ) from error
