"""Hiding: an objective that makes faces disappear from detectors, instead of flooding these with false ones.

Of an anchor with logits (b, f) for background and face, the margin is f - b; it says "face" at a score above
1/2 while the margin is above 0. What is descended is the hinge of N. Carlini and D. Wagner ("Towards
Evaluating the Robustness of Neural Networks", S&P 2017, f_6 with kappa), summed over anchors A:

    L = sum over a in A of max(0, margin_a + kappa)

It falls only by taking faces away, and an image is hidden from a detector once no margin is above -kappa:
there its gradient is 0. Anchors outside A it does not look at: their scores may rise on the way, and what
that does is measured (false_positives). A is chosen per image and detector:

- "matching": the anchors whose box, on the clean or on the perturbed image, overlaps a face that any of the
  detectors sees on the clean one. The faces are seen, not annotated: who protects a photograph has no
  annotation, and a face that no detector sees is none that an attacker could harvest.
- "strongest": the anchors with the largest margins at this moment, wherever they lie.

Images are float32 (N, 3, S, S) in [-1, 1]; all gradients go through the detectors' `raw`.
"""

import torch

from holdfast.defences.fusion import detected, face_scores, resized
from holdfast.defences.momentum import normalised
from holdfast.detectors import boxes as box_math

LEVELS = 127.5  # 8-bit levels per unit of [-1, 1]
LEAST_WEIGHT = 1e-6  # of a detector beside the others
FACE_NMS = 0.4  # IoU above which two anchors' boxes are of one face


def margin(logits):
    """Face logit minus background logit, (N, P), of logits (N, P, 2), background first."""
    return logits[..., 1] - logits[..., 0]


def strongest(margins, count):
    """The `count` anchors with the largest margins: bool (N, P). Equal ones all count."""
    least = margins.topk(min(count, margins.shape[1]), dim=1).values[:, -1:]
    return margins >= least


def faces_of(boxes, scores, above):
    """The faces that a detector sees: a list with (k, 4) per image, k >= 1, the surest first.

    Args:
        boxes: (N, P, 4), corner form.
        scores: (N, P).
        above: score from which an anchor sees one; where none does, the strongest one counts.
    """
    found = []
    for row, sure, those in zip(boxes, scores, detected(scores, above), strict=True):
        found.append(row[those][box_math.nms(row[those], sure[those], FACE_NMS)])
    return found


def overlapping(boxes, faces, overlap):
    """Which anchors' boxes (N, P, 4) overlap a face of their image, (k, 4) each, at an IoU of `overlap` or
    more: bool (N, P).
    """
    return torch.stack(
        [
            (box_math.iou(of_image, row) >= overlap).any(dim=0)
            for row, of_image in zip(boxes, faces, strict=True)
        ]
    )


def hinge(margins, chosen, kappa):
    """L: sum over the chosen anchors of max(0, margin + kappa), (N,).

    Args:
        margins: (N, P).
        chosen: bool (N, P).
        kappa: how far below 0 a margin has to come.
    """
    return ((margins + kappa).clamp(min=0) * chosen).sum(dim=1)


def balanced(slopes, balance, weights=None):
    """The gradients of several networks, (N, 3, S, S) each, as one.

    Args:
        balance: "normalised" divides each image's gradient of each network by its mean magnitude, so that
            none decides alone; "adaptive" weighs the results, too; "sum" adds gradients as they are.
        weights: (K, N), of K networks, for "adaptive"; None: all weigh the same.
    """
    slopes = torch.stack(list(slopes))
    if balance != "sum":
        slopes = torch.stack([normalised(slope, per_image=True) for slope in slopes])
    if balance == "adaptive" and weights is not None:
        slopes = slopes * weights[:, :, None, None, None]
    return slopes.sum(dim=0)


def shifted(weights, hidden, factor):
    """Weights of the detectors for each image, (D, N), after a step: those of the detectors that it is
    hidden from fall by `factor`, beside those that still see it; the largest is 1, and none falls so far
    that it could not come back.

    Args:
        hidden: bool (D, N).
    """
    weights = weights * torch.where(hidden, factor, 1.0)
    return (weights / weights.amax(dim=0, keepdim=True)).clamp(min=LEAST_WEIGHT)


def least_costly(gain, cost, share):
    """Entries where hiding gains most per unit of what interruption loses: bool, of the shape of `gain`.

    Args:
        gain: |gradient of the hiding objective|, (N, 3, S, S).
        cost: |gradient of the interruption objective|, of the same shape, or (1, 3, S, S).
        share: the fraction of each image's entries that are taken.
    """
    count = max(1, round(share * gain[0].numel()))
    least = 1e-3 * cost.mean(dim=(1, 2, 3), keepdim=True) + 1e-30
    worth = (gain / cost.clamp(min=least)).flatten(1)
    # By position, not by value: gradients that are exactly 0 would all be equal to the last one taken.
    taken = torch.zeros_like(worth, dtype=torch.bool)
    return taken.scatter_(1, worth.topk(count, dim=1).indices, True).view_as(gain)


def shrunk(images, side):
    """Images as they are after a resize to `side` pixels, brought back to their size; differentiable."""
    if side == images.shape[2]:
        return images
    small = torch.nn.functional.interpolate(
        images, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )
    return resized(small, images.shape[2])


def stored_psnr(perturbation):
    """PSNR in dB, (N,), of an 8-bit image that takes each perturbation (N, 3, S, S) and is stored again.

    That of an image without white or black; where the sum is clipped to [-1, 1], less is changed.
    """
    levels = (perturbation * LEVELS).round()
    return -10 * (levels / (2 * LEVELS)).square().mean(dim=(1, 2, 3)).log10()


def keeping_psnr(perturbation, floor, order):
    """Each perturbation with so many entries an 8-bit level nearer to 0 that its stored PSNR is not below
    `floor`, in dB; None, or one that is not below it already: as it is.

    A common scale would do nothing until all the entries at +-epsilon fall by a level at once: from 32.6 to
    34.2 dB.

    Args:
        perturbation: (N, 3, S, S).
        order: int64 (3 S S,), in which order entries give way, the same in every call; all by one level
            before any by two.
    """
    if floor is None:
        return perturbation
    rows = perturbation.flatten(1)
    levels = (rows * LEVELS).round()
    allowed = 4 * LEVELS**2 * 10 ** (-floor / 10) * rows.shape[1]
    lowered = levels.abs()
    excess = lowered.square().sum(dim=1, keepdim=True) - allowed
    while (excess > 0).any():
        # What the entries before it, in their order, give: 2 l - 1 for a level l.
        gives = (2 * lowered[:, order] - 1).clamp(min=0)
        before = gives.cumsum(dim=1) - gives
        down = torch.zeros_like(lowered)
        down[:, order] = ((before < excess) & (gives > 0)).to(lowered.dtype)
        lowered = lowered - down
        excess = lowered.square().sum(dim=1, keepdim=True) - allowed
    changed = lowered < levels.abs()
    return torch.where(changed, levels.sign() * lowered / LEVELS, rows).view_as(perturbation)


class Hiding:
    """The objective on several detectors.

    Args:
        detectors: {name: face detector}.
        anchors: "matching" or "strongest".
        count: how many are the strongest.
        overlap: IoU from which a box matches a face.
        detected_above: clean score from which an anchor sees a face.
        kappa: of :func:`hinge`.
    """

    def __init__(self, detectors, anchors, count, overlap, detected_above, kappa):
        self.detectors, self.anchors, self.count = detectors, anchors, count
        self.overlap, self.detected_above, self.kappa = overlap, detected_above, kappa

    @torch.no_grad()
    def faces(self, images):
        """The faces that any of the detectors sees on clean images: a list with (k, 4) per image, corner
        form, fractions of the image. Of "strongest" a list of None: it asks for no faces.
        """
        if self.anchors == "strongest":
            return [None] * len(images)
        seen = []
        for detector in self.detectors.values():
            logits, boxes = self._read(detector, images)
            seen.append(faces_of(boxes, face_scores(logits), self.detected_above))
        return [torch.cat(of_image) for of_image in zip(*seen, strict=True)]

    @torch.no_grad()
    def clean(self, images, faces):
        """{detector: bool (N, P)}: anchors of A that the clean images give; none for "strongest"."""
        if self.anchors == "strongest":
            return dict.fromkeys(self.detectors)
        return {
            name: overlapping(self._read(detector, images)[1], faces, self.overlap)
            for name, detector in self.detectors.items()
        }

    def loss(self, name, images, faces, clean):
        """L of the detector `name`, (N,), differentiable, and the largest margin in A, (N,).

        Args:
            images: the perturbed ones.
            faces: of :meth:`faces`.
            clean: the detector's entry of :meth:`clean`.
        """
        logits, boxes = self._read(self.detectors[name], images)
        margins = margin(logits)
        if self.anchors == "strongest":
            chosen = strongest(margins.detach(), self.count)
        else:
            chosen = clean | overlapping(boxes.detach(), faces, self.overlap)
        worst = margins.detach().masked_fill(~chosen, -torch.inf).amax(dim=1)
        return hinge(margins, chosen, self.kappa), worst

    def _read(self, detector, images):
        logits, encoded = detector.raw(images)
        if self.anchors == "strongest":
            return logits, None
        return logits, detector.decode(encoded, detector.priors(*images.shape[2:]))
