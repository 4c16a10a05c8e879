"""FacePoison: Y. Li et al., "Face Poison: Obstructing DeepFakes by Disrupting Face Detection", ICME 2023;
D. Zhu et al., "Hiding Faces in Plain Sight: Defending DeepFakes by Disrupting Face Detection", TDSC 2025
(arXiv 2412.01101). Baseline of TSDF Table II.

Attacked: intermediate features of the face detectors' backbones. Norm: L-infinity. Budget: the papers' is
8 of 255; here epsilon, 0.05 in [-1, 1] = 6.4 of 255, as in TSDF's table. Two defences:

- `facepoison`, the papers': one perturbation per image, `iterations` steps.
- `facepoison_universal`, ours: one perturbation for all faces, `iterations` passes over the 128 images with
  a step per minibatch. The TSDF paper does not say which of the two its own re-implementation is.

A step, from uniform noise of +-epsilon, where F_l is level l of a detector, x' = x + delta:

    L = sum_l w_l mean|F_l(x') - F_l(x)|
    g <- lambda g + grad L / mean|grad L|;  delta <- clip(delta + gamma sign(g), +-epsilon)

| setting | default | source |
|---|---|---|
| iterations | 10 | papers |
| step_size (gamma) | 0.0157 | papers: 2 of 255 |
| momentum (lambda) | 1.0 | papers |
| level_weights (w_l) | 0.2, 0.3, 0.5 | papers |
| batch | 8 | ours; of the universal one |

Levels: stages 1 to 3 of RetinaFace's MobileNet; conv2_2, conv3_3 and conv5_3 of VGG16 in S3FD and DSFD, after
their ReLU (our reading; the released code reads the last one behind the pooling, off fc6). A detector that
is not among these gives its three `levels`.

Inferred: several detectors are attacked at once, each one's gradient divided by its mean magnitude, for
VGG16's features are hundreds of times MobileNet's. The papers attack one at a time, and with one this
changes nothing. Per image x' is clipped to [-1, 1] in each step, as in the released code; the universal one
is not clipped there. It starts from noise because L has no slope where x' is x. The papers compare several
attacks on these features; this is the one with momentum.
"""

import contextlib

import torch

from holdfast.data.pixels import to_bytes
from holdfast.defences.base import Defence
from holdfast.defences.momentum import momentum_step, normalised
from holdfast.defences.options import options
from holdfast.defences.stages import (
    Stage,
    ensemble_gradient,
    minibatch,
    passes,
    required,
    run_stages,
    uniform,
)

SETTINGS = {
    "iterations": {
        "type": "integer",
        "minimum": 1,
        "default": 10,
        "description": "Steps per image; of the universal perturbation: passes over the images.",
    },
    "step_size": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.0157,
        "description": "gamma, in units of [-1, 1].",
    },
    "momentum": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 1.0,
        "description": "lambda of MI-FGSM.",
    },
    "level_weights": {
        "type": "array",
        "items": {"type": "number", "minimum": 0},
        "minItems": 3,
        "maxItems": 3,
        "default": [0.2, 0.3, 0.5],
        "description": "w_l, fine to coarse.",
    },
    "batch": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": 8,
        "description": "Images per update of the universal perturbation; null: all of them.",
    },
}
DEFAULTS = {name: setting["default"] for name, setting in SETTINGS.items()}
_VGG = ("vgg.8", "vgg.15", "vgg.29")  # the ReLU of conv2_2, conv3_3 and conv5_3
#: Where a detector's network has the attacked levels: names of its parts, fine to coarse.
LEVELS = {
    "retinaface": ("body.stage1", "body.stage2", "body.stage3"),
    "s3fd": _VGG,
    "dsfd": _VGG,
}


def features(detector, images):
    """The three attacked maps of a detector, each (N, C, h, w); differentiable w.r.t. `images`."""
    parts = LEVELS.get(detector.name)
    if parts is None:
        return detector.levels(images)
    found = {}

    def keep(part):
        def hook(module, given, output):
            found[part] = output

        return hook

    with contextlib.ExitStack() as hooks:
        for part in parts:
            handle = detector.network.get_submodule(part).register_forward_hook(keep(part))
            hooks.callback(handle.remove)
        # The levels lie behind all of these; the heads need not be run.
        detector.levels(images)
    return [found[part] for part in parts]


def distance(maps, clean, level_weights):
    """L per image: sum_l w_l mean|F_l - F_l(x)|, (N,).

    Args:
        maps, clean: three (N, C, h, w).
        level_weights: w_l.
    """
    return sum(
        weight * (a - b).abs().mean(dim=(1, 2, 3))
        for weight, a, b in zip(level_weights, maps, clean, strict=True)
    )


class FacePoison(Defence):
    """Per image. Raises a HoldfastError at once where there is no face detector."""

    title = "Face Poison"
    universal = False

    def __init__(self, settings, surroundings):
        super().__init__(options(self.title, DEFAULTS, settings), surroundings)
        required(surroundings.detectors, "face detector", "detectors")

    def perturb(self, images):
        """(N, 3, S, S) for images (N, 3, S, S) in [-1, 1]."""
        settings, s = self.settings, self.surroundings
        with torch.no_grad():
            clean = {name: features(detector, images) for name, detector in s.detectors.items()}
        found = torch.cat([self._start(image) for image in images])
        velocity = torch.zeros_like(images)
        for _ in range(settings["iterations"]):
            seen = (images + found).clamp(-1, 1)
            slope = sum(
                normalised(self._slope(detector, seen, clean[name]), per_image=True)
                for name, detector in s.detectors.items()
            )
            found, velocity = momentum_step(
                seen - images,
                slope,
                velocity,
                settings["step_size"],
                settings["momentum"],
                s.epsilon,
                per_image=True,
            )
        return (images + found).clamp(-1, 1) - images

    def _start(self, image):
        """Uniform noise (1, 3, S, S), the same for the same image whatever is protected beside it."""
        s = self.surroundings
        content = to_bytes(image[None]).tobytes().hex()
        return uniform((1, *image.shape), s.epsilon, *s.seed_names, "start", content).to(image.device)

    def _slope(self, detector, seen, clean):
        point = seen.detach().requires_grad_(True)
        # A sum over images: each image's gradient is that of its own distance.
        return torch.autograd.grad(
            distance(features(detector, point), clean, self.settings["level_weights"]).sum(), point
        )[0]


class Poison(Stage):
    """The stage of the universal perturbation (holdfast.defences.stages). `perturbation` is (1, 3, S, S)."""

    kept = ("perturbation", "velocity")

    def __init__(self, surroundings, settings):
        self.surroundings, self.settings = surroundings, settings
        self.batch, updates = passes(len(surroundings.images), settings["batch"])
        self.steps = settings["iterations"] * updates
        start = uniform(surroundings.shape, surroundings.epsilon, *surroundings.seed_names, "start")
        self.perturbation = start.to(surroundings.device)
        self.velocity = torch.zeros_like(self.perturbation)

    def step(self, index):
        """One update; returns the distance before it, as a mean over images and detectors."""
        s, settings = self.surroundings, self.settings
        positions = minibatch(len(s.images), self.batch, index, *s.seed_names, "facepoison")
        losses = {name: self._losses(detector) for name, detector in s.detectors.items()}
        slope, log = ensemble_gradient(self.perturbation, positions, s.batch, losses)
        self.perturbation, self.velocity = momentum_step(
            self.perturbation, slope, self.velocity, settings["step_size"], settings["momentum"], s.epsilon
        )
        return log

    def _losses(self, detector):
        s = self.surroundings

        def losses(perturbation, positions):
            images = s.images[positions].to(s.device)
            # Not kept between the passes: the fine maps of 128 images would fill gigabytes.
            with torch.no_grad():
                clean = features(detector, images)
            moved = features(detector, images + perturbation)
            loss = distance(moved, clean, self.settings["level_weights"]).mean()
            yield loss, {"distance": loss.item()}

        return losses


class UniversalFacePoison(Defence):
    """Raises a HoldfastError at once where there is no face detector."""

    title = "Face Poison (universal)"

    def __init__(self, settings, surroundings):
        super().__init__(options(self.title, DEFAULTS, settings), surroundings)
        required(surroundings.detectors, "face detector", "detectors")

    def learn(self):
        """(1, 3, S, S)."""
        poison = Poison(self.surroundings, self.settings)
        run_stages({"facepoison": poison}, self.surroundings.state_path, self.title)
        return poison.perturbation


REGISTER = {"facepoison": FacePoison, "facepoison_universal": UniversalFacePoison}
