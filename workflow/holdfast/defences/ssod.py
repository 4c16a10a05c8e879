"""SSOD: C. Xie et al., "Adversarial Examples for Semantic Segmentation and Object Detection", ICCV 2017:
dense adversary generation (DAG). Baseline of TSDF Table II.

Attacked: the outputs of the face detectors. Norm: L-infinity. Budget: epsilon = 0.05 in [-1, 1]. Per image:
the TSDF paper does not say how it uses SSOD, and DAG is an attack per image. The targets are the anchors
that say "face" on the clean image. In each iteration, over those that still do (Algorithm 1, Eq. 1-3):

    r' = sum over them of (grad background logit - grad face logit)
    r <- r + gamma / max|r'| * r'

until none is left, or `iterations` are over.

| setting | default | source |
|---|---|---|
| iterations (M_0) | 150 | paper, for detection (*) |
| gamma | 0.00392 | paper: 0.5 of 255 |
| target_above | 0.1 | paper: proposals with a score above 0.1 are targets (*) |

(*) Not compared with the paper's text, which was not at hand.

Inferred: the paper's targets are region proposals which also overlap a true box; single-shot detectors have
anchors, and a defender's photograph has no annotated box. "Wrong class" is background, the only other one. An
anchor says "face" while its face logit is the larger one. All detectors' anchors are one set of
targets. The paper bounds r by its stopping rule alone; here r is clipped to +-epsilon and x + r to [-1, 1] in
each iteration. There is nothing random. An image in which no detector sees a face stays as it is.
"""

import torch

from holdfast.defences.base import Defence
from holdfast.defences.chunks import in_chunks
from holdfast.defences.fusion import face_scores
from holdfast.defences.options import options
from holdfast.defences.stages import required

SETTINGS = {
    "iterations": {"type": "integer", "minimum": 1, "default": 150, "description": "M_0, most iterations."},
    "gamma": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.00392,
        "description": "Largest entry of a step, in units of [-1, 1].",
    },
    "target_above": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.1,
        "description": "Clean score above which an anchor is a target.",
    },
}
DEFAULTS = {name: setting["default"] for name, setting in SETTINGS.items()}
SMALLEST = 1e-12  # of the largest |gradient|; below it there is no direction to normalise


def active(logits, targets):
    """The targets that still say "face": bool (N, P).

    Args:
        logits: (N, P, 2), background first.
        targets: bool (N, P).
    """
    return targets & (logits[..., 1] > logits[..., 0])


def margin(logits, chosen):
    """Sum of (face logit - background logit) over the chosen anchors, which DAG descends: (N,)."""
    return ((logits[..., 1] - logits[..., 0]) * chosen).sum(dim=1)


def dag_step(perturbation, gradient, images, gamma, epsilon):
    """One descent per image: r <- r - gamma grad / max|grad|, within the budget and the images' range.

    Args:
        perturbation, gradient, images: r, grad and x, (N, 3, S, S); images in [-1, 1].
    """
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=SMALLEST)
    stepped = (perturbation - gamma * gradient / largest).clamp(-epsilon, epsilon)
    return (images + stepped).clamp(-1, 1) - images


class SSOD(Defence):
    """Raises a HoldfastError at once where there is no face detector."""

    title = "SSOD"
    universal = False

    def __init__(self, settings, surroundings):
        super().__init__(options(self.title, DEFAULTS, settings), surroundings)
        required(surroundings.detectors, "face detector", "detectors")

    def perturb(self, images):
        """(N, 3, S, S) for images (N, 3, S, S) in [-1, 1]."""
        settings, epsilon = self.settings, self.surroundings.epsilon
        found = torch.zeros_like(images)
        targets = self._targets(images)
        left = torch.arange(len(images), device=images.device)
        for _ in range(settings["iterations"]):
            chosen = [each[left] for each in targets]
            slope, counts = in_chunks(self._slope, len(images), images[left] + found[left], *chosen)
            left, slope = left[counts > 0], slope[counts > 0]
            if not len(left):
                break
            found[left] = dag_step(found[left], slope, images[left], settings["gamma"], epsilon)
        return found

    @torch.no_grad()
    def _targets(self, images):
        """Bool (N, P) of each detector."""
        above, detectors = self.settings["target_above"], self.surroundings.detectors.values()
        return tuple(face_scores(detector.raw(images)[0]) > above for detector in detectors)

    def _slope(self, seen, *targets):
        """The gradients of the margins (N, 3, S, S), and how many targets are active (N,).

        Args:
            targets: of :meth:`_targets`.
        """
        point = seen.detach().requires_grad_(True)
        total = torch.zeros_like(point)
        counts = torch.zeros(len(point), dtype=torch.int64, device=point.device)
        for detector, of_detector in zip(self.surroundings.detectors.values(), targets, strict=True):
            logits = detector.raw(point)[0]
            chosen = active(logits, of_detector)
            counts += chosen.sum(dim=1)
            total += torch.autograd.grad(margin(logits, chosen).sum(), point)[0]
        return total, counts


REGISTER = {"ssod": SSOD}
