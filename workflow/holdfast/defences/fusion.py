"""What the poisoning stage reads off the detectors: fused features, scores and boxes (TSDF Eq. 11, 13)."""

import torch
import torch.nn.functional as F

from holdfast.errors import HoldfastError
from holdfast.seeds import generator


def observed(detector, images, needed=None):
    """(three levels, logits (N, P, 2), encoded boxes (N, P, 4)) of a detector.

    A detector that can give all of them from one pass says so with `levels_and_raw`.

    Args:
        needed: bool (P,), the priors whose logits and boxes count; others may come out as 0. None: all.
    """
    if hasattr(detector, "levels_and_raw"):
        levels, (logits, encoded) = detector.levels_and_raw(images, needed)
    else:
        levels, (logits, encoded) = detector.levels(images), detector.raw(images)
    return levels, logits, encoded


def detector_weights(detectors, given):
    """{detector: alpha_i of Eq. 11}.

    Args:
        detectors: {name: detector} of the surroundings.
        given: {name: weight}, or None: all the same, and 1 in sum.

    Raises:
        HoldfastError: there is no face detector, or one without a weight.
    """
    if not detectors:
        raise HoldfastError(
            "there is no face detector to poison",
            expected="one or more",
            repair="name them under `detectors` in the config, or set `tau: 0` for interruption only",
        )
    if given is None:
        return dict.fromkeys(detectors, 1 / len(detectors))
    missing = [name for name in detectors if name not in given]
    if missing:
        raise HoldfastError(
            f"`fusion_weights` has no weight for the detector {missing[0]}",
            found=", ".join(given),
            repair=f"add `{missing[0]}: 1.0`",
        )
    return {name: float(given[name]) for name in detectors}


def face_scores(logits):
    """Probability of a face (N, P) from logits (N, P, 2), background first."""
    return torch.softmax(logits, dim=-1)[..., 1]


def adaptor(channels, width, *seed_names):
    """A 1x1 convolution (width, channels, 1, 1), drawn once: clean and adversarial features share it.

    Deviation 1 / sqrt(channels), so that what comes out is about as large as what goes in.
    """
    return torch.randn(width, channels, 1, 1, generator=generator(*seed_names)) / channels**0.5


def adaptors(levels, width, *seed_names):
    """{detector: [a 1x1 convolution per level]} for `levels`, {detector: [(N, C, h, w) per level]}."""
    return {
        name: [
            adaptor(level.shape[1], width, *seed_names, name, number).to(level)
            for number, level in enumerate(maps)
        ]
        for name, maps in levels.items()
    }


def fused(levels, kernels, weights, size):
    """F_fused of Eq. 11, one per level: a list of (N, width, size, size).

    Args:
        levels: {detector: [(N, C, h, w) per level]}.
        kernels: of :func:`adaptors`.
        weights: {detector: alpha_i}.
        size: the side that all maps are brought to, bilinearly.
    """
    sums = None
    for name, maps in levels.items():
        adapted = [
            weights[name] * resized(F.conv2d(level, kernel), size)
            for level, kernel in zip(maps, kernels[name], strict=True)
        ]
        sums = adapted if sums is None else [a + b for a, b in zip(sums, adapted, strict=True)]
    return sums


def margin(mask, nu, size):
    """nu M_d as Eq. 12 adds it to feature maps: one channel, the mean over colours, brought to their size."""
    return nu * resized(mask.mean(dim=1, keepdim=True), size)


def resized(x, size):
    """(N, C, h, w) to (N, C, size, size), bilinearly; None leaves it as it is."""
    if size is None or tuple(x.shape[2:]) == (size, size):
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)


def detected(scores, threshold):
    """Which priors count as detected boxes: bool (N, P), at least one per image.

    Those above `threshold`; in an image that has none, the strongest.
    """
    best = scores.max(dim=1, keepdim=True).values
    return scores >= best.clamp(max=threshold)


def output_loss(scores, boxes, centres, chosen, box_weight=1.0):
    """L_output of Eq. 13: mean over the chosen boxes of s^2 + |b - b_target|_1, then over the images.

    Args:
        scores: (N, P) in [0, 1].
        boxes: (N, P, 4) x1 y1 x2 y2 as fractions of the image.
        centres: (N, P, 2): b_target is the clean box shrunk to its centre.
        chosen: bool (N, P), at least one per image.
        box_weight: weight of the box term; 1 in Eq. 13.
    """
    distance = (boxes - torch.cat([centres, centres], dim=-1)).abs().sum(dim=-1)
    per_box = scores.square() + box_weight * distance
    return ((per_box * chosen).sum(dim=1) / chosen.sum(dim=1)).mean()


def feature_loss(features, targets, level_weights):
    """L_feat of Eq. 12: sum over the levels of w_l times the mean square of F - target."""
    return sum(
        weight * (feature - target).square().mean()
        for weight, feature, target in zip(level_weights, features, targets, strict=True)
    )
