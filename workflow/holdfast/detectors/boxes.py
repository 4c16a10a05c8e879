"""Arithmetic of boxes: overlap, the two forms, anchor encoding and matching, non-maximum suppression.

A box is (x1, y1, x2, y2) in its corner form and (centre x, centre y, width, height) in its centre
form; any unit will do, as long as it is one. Nothing here holds parameters or draws random numbers.
"""

import functools

import torch

from holdfast import compat
from holdfast.errors import HoldfastError

VARIANCES = (0.1, 0.2)
LARGEST_SCALE = 10.0  # of the logarithm of side over prior's side


def corners(boxes):
    """Centre form (..., 4) to corner form (..., 4)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def centres(boxes):
    """Corner form (..., 4) to centre form (..., 4)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def areas(boxes):
    """Areas (k,) of boxes (k, 4) in corner form; an inverted side counts as none."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def iou(first, second):
    """Intersection over union of every pair.

    Args:
        first: (n, 4) in corner form.
        second: (m, 4) in corner form.

    Returns:
        (n, m) in [0, 1]. Boxes without an area overlap with nothing, not even with themselves: 0.
    """
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = (high - low).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]
    union = areas(first)[:, None] + areas(second)[None, :] - shared
    return torch.where(union > 0, shared / union.where(union > 0, torch.ones_like(union)), 0.0).clamp(max=1)


def encode(boxes, priors, variances=VARIANCES):
    """What the box head must say for `boxes`: offsets in units of the prior, as in SSD and Faster R-CNN.

    Args:
        boxes: (..., P, 4) in corner form, with an area.
        priors: (P, 4) in centre form, same unit.

    Returns:
        (..., P, 4): (Δcentre / prior side / variances[0], log(side / prior side) / variances[1]).
    """
    target = centres(boxes)
    offsets = (target[..., :2] - priors[..., :2]) / (priors[..., 2:] * variances[0])
    scales = torch.log(target[..., 2:] / priors[..., 2:]) / variances[1]
    return torch.cat([offsets, scales], dim=-1)


def decode(encoded, priors, variances=VARIANCES):
    """The inverse of :func:`encode`: (..., P, 4) and centre-form priors (P, 4) to corner form.

    A side is at most e^10 of its prior's: an attacked image may ask for one beyond all numbers.
    """
    centre = priors[..., :2] + encoded[..., :2] * variances[0] * priors[..., 2:]
    side = priors[..., 2:] * torch.exp((encoded[..., 2:] * variances[1]).clamp(max=LARGEST_SCALE))
    return corners(torch.cat([centre, side], dim=-1))


def anchors(height, width, sizes, strides, maps=None):
    """Square anchors over the cells of the feature maps of an image.

    Order: level, row, column, size. Cell i of a map has its middle at (i + 1/2) strides.

    Args:
        height, width: of the image, in pixels.
        sizes: per level, the anchor sides in pixels, e.g. [[16, 32], [64, 128], [256, 512]].
        strides: per level, in pixels, e.g. [8, 16, 32].
        maps: per level, (rows, columns); by default ceil(side / stride) each.

    Returns:
        (P, 4) float32, centre form, as fractions of width and height; not clipped to the image.
    """
    image = torch.tensor([width, height], dtype=torch.float32)
    maps = maps or [(-(-height // stride), -(-width // stride)) for stride in strides]
    found = []
    for level_sizes, stride, (n_rows, n_columns) in zip(sizes, strides, maps, strict=True):
        rows = (torch.arange(n_rows, dtype=torch.float32) + 0.5) * stride
        columns = (torch.arange(n_columns, dtype=torch.float32) + 0.5) * stride
        sides = torch.tensor(level_sizes, dtype=torch.float32)
        y, x, side = torch.meshgrid(rows, columns, sides, indexing="ij")
        level = torch.stack([x, y, side, side], dim=-1).reshape(-1, 4)
        found.append(level / image.repeat(2))
    return torch.cat(found)


def match(truth, priors, threshold=0.35, forced=0.2):
    """Which true box each anchor has to find (SSD's rule, with RetinaFace's thresholds).

    An anchor takes the true box that it overlaps most, if at `threshold` or more. Besides, every
    true box gets the anchor that overlaps it most, if at `forced` or more, so that no face goes
    without an anchor because of its size alone.

    Args:
        truth: (k, 4) in corner form, k may be 0.
        priors: (P, 4) in centre form, same unit.

    Returns:
        int64 (P,): the row of `truth`, or -1 for background.
    """
    assigned = torch.full((len(priors),), -1, dtype=torch.int64, device=priors.device)
    if len(truth) == 0:
        return assigned
    overlap = iou(truth, corners(priors))
    best, row = overlap.max(dim=0)
    assigned = torch.where(best >= threshold, row, assigned)
    best, column = overlap.max(dim=1)
    # Weakest first: where two faces want the same anchor, the one that overlaps it more has it.
    for face in torch.argsort(best).tolist():
        if best[face] >= forced:
            assigned[column[face]] = face
    return assigned


def match_compensated(truth, priors, threshold=0.35, weakest=0.1):
    """Scale compensation matching (S3FD, section 3.2): faces between the anchors' scales get anchors, too.

    Stage one is :func:`match`. In stage two, each face with fewer anchors than the faces of its image
    have on average takes its best ones, of those that it overlaps at more than `weakest` and that no
    other face has, until it has as many. The average is rounded and at least 1; the paper does not say
    over which faces it is taken.

    Args and Returns: as in :func:`match`; stage one gives every face its best anchor at `weakest` or more.
    """
    assigned = match(truth, priors, threshold, forced=weakest)
    if len(truth) == 0:
        return assigned
    overlap = iou(truth, corners(priors))
    counts = torch.bincount(assigned[assigned >= 0], minlength=len(truth))
    average = max(1, round(counts.float().mean().item()))
    # Fewest first: they need the free anchors most.
    for face in torch.argsort(counts, stable=True).tolist():
        if counts[face] >= average:
            break
        free = overlap[face].masked_fill(assigned >= 0, 0.0)
        best, rows = free.topk(min(average - int(counts[face]), len(priors)))
        assigned[rows[best > weakest]] = face
    return assigned


@functools.cache
def _torchvision_works(device_type):
    return compat.has_torchvision_nms(device_type)


def nms(boxes, scores, threshold):
    """Greedy non-maximum suppression: torchvision's operator where it runs, an equal one elsewhere.

    Args:
        boxes: float (k, 4) in corner form.
        scores: float (k,).
        threshold: a box goes if it overlaps a better one at more than this IoU.

    Returns:
        int64: the kept rows, best score first; equal scores keep their order.

    Raises:
        HoldfastError: the shapes do not go together.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise HoldfastError(
            "non-maximum suppression: boxes and scores do not go together",
            found=f"boxes {tuple(boxes.shape)}, scores {tuple(scores.shape)}",
            expected="boxes (k, 4), scores (k,)",
        )
    if _torchvision_works(boxes.device.type):
        from torchvision.ops import nms as operator

        return operator(boxes, scores, threshold)
    return torch_nms(boxes, scores, threshold)


def torch_nms(boxes, scores, threshold):
    """:func:`nms` in plain torch, on any device; equal to torchvision's down to the last bit."""
    order = torch.argsort(scores, descending=True, stable=True)
    ordered = boxes[order].cpu()
    sides = ordered[:, 2:] - ordered[:, :2]
    area = sides[:, 0] * sides[:, 1]
    alive = torch.ones(len(ordered), dtype=torch.bool)
    for position in range(len(ordered) - 1):
        if not alive[position]:
            continue
        later = slice(position + 1, None)
        low = torch.maximum(ordered[position, :2], ordered[later, :2])
        high = torch.minimum(ordered[position, 2:], ordered[later, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        overlap = shared / (area[position] + area[later] - shared)
        # In double, as the operator compares; 0/0 is not above anything, so empty boxes stay.
        alive[later] &= ~(overlap.double() > threshold)
    return order[alive.to(order.device)]
