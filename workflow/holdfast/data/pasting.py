"""Scenes for detectors with photographed faces: those of a face set, pasted on rendered backgrounds.

A detector that is trained on rendered faces alone does not find photographed ones well, and the attacker
harvests photographs. Their boxes are known where a set's faces are aligned. Three things keep the detector
from learning the paste instead of the face: the mask is cut at random between the face and the whole
photograph, with a random softness; pieces without a face are pasted in the same way; and some photographs
fill the whole scene.
"""

import numpy as np
from PIL import Image

from holdfast.data import rendering
from holdfast.data.synthetic import render_background
from holdfast.errors import HoldfastError
from holdfast.seeds import numpy_generator

FILLED = 0.3  # of the scenes are one photograph that fills them
SIDES = (0.12, 0.7)  # longer side of a pasted face, as a fraction of the scene's: as of the rendered ones
ZOOM = 1.6  # to which a photograph that fills a scene may be enlarged beyond it
PHOTOGRAPHS = 0.25  # of the pasted faces bring their photograph, as a rectangle
TRIALS = 40


def paste_scene(photographs, boxes, key, size, faces=(1, 4)):
    """One scene.

    Args:
        photographs: uint8 (N, P, P, 3), RGB; memory-mapped will do.
        boxes: (N, 4), the one face of each, x1, y1, x2, y2 in its pixels.
        key: names to seed by; the scene depends on these, the photographs and `size` alone.
        size: side length S in pixels, at least 32.
        faces: fewest and most faces in a scene (fewer where no room is left).

    Returns:
        uint8 (S, S, 3); the faces' boxes float32 (k, 4) in pixels of the scene, wholly inside.

    Raises:
        HoldfastError: there is no photograph, or one without a box.
    """
    boxes = np.asarray(boxes, np.float64)
    unknown = int((~np.isfinite(boxes)).any(axis=-1).sum())
    if not len(boxes) or unknown:
        raise HoldfastError(
            "there are no scenes to be made of these photographs",
            found=f"{len(boxes)} photographs, {unknown} without a face box",
            expected="at least one, and a box of each",
            repair="give `face_box` of the training set, or write `scenes: {source: synthetic}`",
        )
    random = numpy_generator(*key)
    canvas, finish = render_background(key, size)

    def chosen():
        row = int(random.integers(len(boxes)))
        return _varied(photographs[row], boxes[row], random)

    if random.random() < FILLED:
        photograph, box = chosen()
        scale, corner, placed = _filling(box, photograph.shape[0], size, random)
        _paste(canvas, photograph, np.ones(photograph.shape[:2], np.float32), scale, corner)
        return finish(canvas), placed[None].clip(0, size).astype(np.float32)
    found = []
    number = int(random.integers(faces[0], faces[1] + 1))
    largest = max(SIDES[1] / np.sqrt(number), 1.2 * SIDES[0])
    shares = np.exp(random.uniform(*np.log([SIDES[0], largest]), number))
    for share in np.sort(shares)[::-1]:
        photograph, box = chosen()
        scale = share * size / (box[2:] - box[:2]).max()
        mask, reach = _face_mask(box, photograph.shape[0], random)
        placed = _placed(box, reach, scale, size, found, random)
        if placed is None:
            continue
        # A decoy first, so that it may lie behind the face but not before it.
        _paste_decoy(canvas, *chosen(), share * size, [*found, placed], random)
        _paste(canvas, photograph, mask, scale, placed[:2] - box[:2] * scale)
        found.append(placed)
    return finish(canvas), np.reshape(found, (-1, 4)).clip(0, size).astype(np.float32)


def _varied(photograph, box, random):
    """The photograph, mirrored half of the time, in another light; and its box."""
    if random.random() < 0.5:
        side = photograph.shape[1]
        photograph, box = photograph[:, ::-1], np.array([side - box[2], box[1], side - box[0], box[3]])
    mean, gain, shift = photograph.mean(), random.uniform(0.75, 1.25), random.uniform(-25, 25)
    light = np.clip((np.arange(256) - mean) * gain + mean + shift, 0, 255).astype(np.uint8)
    return light[photograph], box


def _filling(box, side, size, random):
    """Scale, corner and box of a photograph that covers the scene and shows its face wholly."""
    largest = size / max(box[2] - box[0], box[3] - box[1])
    scale = min(size / side * random.uniform(1.0, ZOOM), largest)
    first = np.maximum(size - side * scale, -box[:2] * scale)
    last = np.minimum(0.0, size - box[2:] * scale)
    corner = random.uniform(np.minimum(first, last), last)
    return scale, corner, box * scale + np.tile(corner, 2)


def _face_mask(box, side, random):
    """Coverage (P, P) in [0, 1] about a face, and the box that it stays in: an oval, or the photograph."""
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    if random.random() < PHOTOGRAPHS:
        return np.ones((side, side), np.float32), np.array([0, 0, side, side])
    # Hair lies above a face, so an oval reaches further up than down.
    room = np.minimum(centre, side - centre) / half
    reach = half * [random.uniform(min(1.15, limit), limit) for limit in np.maximum(room, 1)]
    lift = random.uniform(0, max(0.0, min(0.25 * half[1], centre[1] - reach[1])))
    centre = centre - [0, lift]
    mask = _oval(side, centre, reach, random)
    return mask, np.concatenate([centre - reach, centre + reach])


def _oval(side, centre, reach, random):
    """1 inside, falling to 0 at the rim over a random part of the radius; more or less rectangular."""
    grid = np.arange(side, dtype=np.float32) + 0.5
    power = random.uniform(2, 6)
    u, v = (np.abs((grid - middle) / radius) for middle, radius in zip(centre, reach, strict=True))
    radius = (u[None, :] ** power + v[:, None] ** power) ** (1 / power)
    return np.clip((1 - radius) / random.uniform(0.05, 0.35), 0, 1).astype(np.float32)


def _placed(box, reach, scale, size, taken, random):
    """Where the face comes to lie: inside the scene, its paste apart from other faces'; None: no room."""
    width, height = (box[2:] - box[:2]) * scale
    before, after = (box[:2] - reach[:2]) * scale, (reach[2:] - box[2:]) * scale
    for _ in range(TRIALS):
        corner = random.uniform(0, np.maximum([size - width, size - height], 1e-9))
        placed = np.concatenate([corner, corner + [width, height]])
        covered = np.concatenate([corner - before, placed[2:] + after])
        if not any(_overlap(covered, other) for other in taken):
            return placed
    return None


def _overlap(one, other):
    return bool((np.maximum(one[:2], other[:2]) < np.minimum(one[2:], other[2:])).all())


def _paste_decoy(canvas, photograph, box, length, taken, random):
    """A piece of a photograph beside its face, `length` pixels large, where it covers no face."""
    side, size = photograph.shape[0], canvas.shape[2]
    beside = int(max(box[0], side - box[2]))
    if beside < 4:
        return
    left = 0 if box[0] >= side - box[2] else side - beside
    top = int(random.integers(0, side - beside + 1))
    piece = photograph[top : top + beside, left : left + beside]
    scale = length / beside
    reach = np.full(2, beside / 2)
    mask = _oval(beside, reach, reach, random)
    corner = random.uniform(-0.3 * length, size - 0.7 * length, 2)
    covered = np.concatenate([corner, corner + length])
    if not any(_overlap(covered, other) for other in taken):
        _paste(canvas, piece, mask, scale, corner)


def _paste(canvas, photograph, mask, scale, corner):
    """Blend a photograph, `scale` times as large, into the canvas (1, 3, S, S), its corner at (x, y)."""
    # Whole pixels of the canvas that it covers wholly; the mask is 0 at the rim, or the rim a picture's.
    low = np.ceil(np.maximum(corner, 0)).astype(int)
    high = np.floor(np.minimum(corner + photograph.shape[0] * scale, canvas.shape[2])).astype(int)
    if (high <= low).any():
        return
    window = np.clip(np.concatenate([low - corner, high - corner]) / scale, 0, photograph.shape[0])
    colour, cover = (
        np.asarray(Image.fromarray(layer).resize(tuple(high - low), Image.Resampling.BILINEAR, tuple(window)))
        for layer in (np.ascontiguousarray(photograph), mask)
    )
    rendering.blend(
        canvas[:, :, low[1] : high[1], low[0] : high[0]],
        colour.transpose(2, 0, 1)[None].astype(np.float32) / 255,
        cover[None],
    )
