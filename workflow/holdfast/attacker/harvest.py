"""Harvest: what the attacker's data preparation makes of collected images.

Detect faces, keep the best box above a threshold, crop it as a square with a margin, resize
(the paper only says "retrained"; this is the pipeline that it has in mind).
"""

import numpy as np
from PIL import Image

from holdfast.metrics.detection import pick_face


def union(detections):
    """The boxes of several detectors taken together: for the attacker who trusts whichever is surest.

    Of these, he takes the best box over all detectors: the one with the highest score, of equal ones that of
    the detector named first. Scores of different detectors are compared as they are.

    Args:
        detections: per detector, a list with (boxes (k, 4), scores (k,)) for each image.

    Returns:
        per image (boxes (k, 4), scores (k,)), best first.
    """
    found = []
    for pairs in zip(*detections, strict=True):
        boxes = np.concatenate([np.asarray(boxes).reshape(-1, 4) for boxes, _ in pairs])
        scores = np.concatenate([np.asarray(scores).reshape(-1) for _, scores in pairs])
        order = np.argsort(-scores, kind="stable")
        found.append((boxes[order], scores[order]))
    return found


def square_window(box, margin, size):
    """The square that is cropped: around the box's centre, its longer side plus `margin` on both ends.

    Args:
        box: x1, y1, x2, y2 in pixels.
        margin: as a fraction of the longer side.
        size: side of the (square) image; the window is moved, and if need be shrunk, to lie inside.

    Returns:
        (left, top, side), float pixels, side >= 1.
    """
    x1, y1, x2, y2 = (float(edge) for edge in box)
    side = min(max(x2 - x1, y2 - y1, 1.0) * (1 + 2 * margin), float(size))
    left = min(max((x1 + x2 - side) / 2, 0.0), size - side)
    top = min(max((y1 + y2 - side) / 2, 0.0), size - side)
    return left, top, side


def crop(pixels, window, size):
    """The window of an image, resized bilinearly: uint8 (H, W, 3) to uint8 (size, size, 3)."""
    left, top, side = window
    image = Image.fromarray(pixels)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.BILINEAR, box=box))


def windows(detections, size, *, threshold, margin, no_detection):
    """What square the attacker takes of each image.

    Args:
        detections: per image (boxes (k, 4), scores (k,)).
        size: side of the (square) images.
        threshold: score that a box must exceed.
        margin: see :func:`square_window`.
        no_detection: "drop", or "whole" to take an image without such a box as it is.

    Returns:
        per image (left, top, side), or None where nothing is taken.
    """
    without = (0.0, 0.0, float(size)) if no_detection == "whole" else None
    found = []
    for boxes, scores in detections:
        row = pick_face(boxes, scores, score=threshold)
        found.append(without if row is None else square_window(boxes[row], margin, size))
    return found
