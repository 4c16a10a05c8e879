"""Training a detector on annotated scenes with the multibox loss of SSD, for all detectors.

A detector brings its rule of matching and its shots: one set of anchors, or DSFD's two. The
scenes have face boxes and no landmarks, so RetinaFace's landmark loss (its Eq. 1) is left out: the
landmark head stays in the network, for the public layout, and keeps its first weights.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from holdfast.data.pixels import to_float
from holdfast.detectors import boxes as box_math
from holdfast.detectors.vgg import L2Norm
from holdfast.errors import HoldfastError
from holdfast.seeds import generator, seed_of
from holdfast.training.loop import batch_positions, run_steps

PIXEL_DEVIATION = 64.0  # about that of photographs and scenes, in 0..255
# A detector's `training` says which of these its paper or its public code has otherwise.
DEFAULTS = {
    "start": "scratch",  # "scratch": weights drawn anew; "given": go on from the detector's weights
    "initialisation": None,  # torchvision's VGG16 weights, for the backbone of a start from scratch
    "steps": 1000,
    "batch": 8,
    "learning_rate": 3e-3,  # AdamW; rises over the first twentieth of the steps, then falls as a cosine
    "weight_decay": 5e-4,  # RetinaFace, section 4.2
    "negatives": 7,  # hard negatives per positive anchor, as in the public code
    "box_weight": 2.0,  # as in the public code
    "match_threshold": 0.35,  # as in the public code
    "contrast": 0.1,  # images are stretched about their mean by a factor in 1 ± this, for the whole image
    "brightness": 0.1,  # and shifted by up to this, in [-1, 1]
}


def targets(truth, priors, threshold=0.35, variances=box_math.VARIANCES, match=box_math.match):
    """What the heads have to say for each image.

    Args:
        truth: N tensors (k, 4), corner form, in the unit of `priors`.
        priors: (P, 4), centre form.
        threshold: see :func:`holdfast.detectors.boxes.match`.
        match: the rule, a function of (boxes, priors, threshold).

    Returns:
        faces: bool (N, P), which anchors are faces.
        encoded: float (N, P, 4), zero where an anchor is background.
    """
    faces = torch.zeros(len(truth), len(priors), dtype=torch.bool, device=priors.device)
    encoded = torch.zeros(len(truth), len(priors), 4, device=priors.device)
    for image, boxes in enumerate(truth):
        rows = match(boxes, priors, threshold)
        here = rows >= 0
        faces[image] = here
        encoded[image, here] = box_math.encode(boxes[rows[here]], priors[here], variances)
    return faces, encoded


def multibox_loss(logits, predicted, faces, encoded, negatives=7):
    """Classification with hard negative mining, and box regression over the positive anchors.

    Per image the `negatives` × (number of positives) background anchors with the largest loss count,
    those of one positive where an image has none. Both sums are divided by the batch's positives.

    Args:
        logits: (N, P, 2), background first.
        predicted: (N, P, 4).
        faces, encoded: see :func:`targets`.

    Returns:
        Two scalars: cross-entropy, smooth L1.
    """
    entropy = functional.cross_entropy(logits.flatten(0, 1), faces.long().flatten(), reduction="none")
    entropy = entropy.view(faces.shape)
    positives = faces.sum(dim=1, keepdim=True)
    hardness = entropy.detach().masked_fill(faces, -1.0)
    rank = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    hard = (rank < negatives * positives.clamp(min=1)) & ~faces
    count = positives.sum().clamp(min=1)
    box_loss = functional.smooth_l1_loss(predicted[faces], encoded[faces], reduction="sum")
    return entropy[faces | hard].sum() / count, box_loss / count


def initialise(network, *seed_names):
    """Draw the weights anew, seeded by names: convolutions after He et al. 2015, norms to identity.

    The network's ``outputs()`` start small, so that no anchor starts with an opinion; its ``inputs()``,
    which no normalisation follows, take pixels of 0..255 to values of about 1.
    """
    random = torch.Generator().manual_seed(seed_of(*seed_names, "weights"))
    inputs, outputs = set(network.inputs()), set(network.outputs())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            spread = 0.01 if module in outputs else math.sqrt(2 / module.weight[0].numel())
            spread /= PIXEL_DEVIATION if module in inputs else 1
            with torch.no_grad():
                module.weight.copy_(torch.randn(module.weight.shape, generator=random) * spread)
                if module.bias is not None:
                    module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.reset_running_stats()
        elif isinstance(module, L2Norm):
            module.reset_parameters()


def augment(images, truth, settings, random):
    """Mirror images half of the time, and change their contrast and brightness.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        truth: N tensors (k, 4) in pixels.
        random: a CPU generator.

    Returns:
        images and truth, anew.
    """
    draws = torch.rand(3, len(images), generator=random)
    mirrored = draws[0] < 0.5
    width = images.shape[3]
    images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    truth = [
        torch.stack([width - box[:, 2], box[:, 1], width - box[:, 0], box[:, 3]], dim=1) if flip else box
        for box, flip in zip(truth, mirrored.tolist(), strict=True)
    ]
    gain, shift = (2 * draws[1:] - 1).view(2, -1, 1, 1, 1).unbind()
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * (1 + settings["contrast"] * gain) + mean + settings["brightness"] * shift
    return images.clamp(-1, 1), truth


def train_detector(detector, scenes, boxes, settings, seed_names, state_path, log=None):
    """Train `detector` in place on scenes; afterwards it is frozen again.

    It can be killed at any moment and goes on from `state_path` to the same weights.

    Args:
        detector: a :class:`holdfast.detectors.detector.Detector`.
        scenes: uint8 (N, S, S, 3).
        boxes: N arrays (k, 4), corner form in pixels of the scenes.
        settings: any of :data:`DEFAULTS`, which explains them.
        seed_names: list of names that seed weights, order and augmentation.
        state_path: the state file, or None for a training that is not resumed.
        log: a function of one line of text, or None.

    Returns:
        A list of {"step", "loss", "face", "box"}, one per step.

    Raises:
        HoldfastError: unknown settings, scenes and boxes that do not go together, a damaged state.
    """
    settings = _checked(settings, detector.training)
    if len(scenes) != len(boxes) or len(scenes) == 0:
        raise HoldfastError(
            f"training {detector.title}: scenes and boxes do not go together",
            found=f"{len(scenes)} scenes, boxes of {len(boxes)}",
            expected="as many as each other, and at least one",
        )
    say = log or (lambda line: None)
    height, width = scenes.shape[1:3]
    device, network = detector.device, detector.network
    if settings["start"] == "scratch":
        initialise(network, *seed_names)
        if settings["initialisation"] is not None:
            detector.start_from_imagenet(settings["initialisation"])
    say(
        f"{detector.title}: {settings['steps']} steps of {settings['batch']} on {len(scenes)} scenes of "
        f"{width} x {height}{'; ' * bool(detector.remark)}{detector.remark}"
    )
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        network.requires_grad_(True).parameters(),
        lr=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
    )
    candidates = np.arange(len(scenes))

    def step_fn(step):
        chosen = batch_positions(candidates, settings["batch"], step, *seed_names, "order")
        truth = [torch.as_tensor(boxes[row], dtype=torch.float32).reshape(-1, 4) for row in chosen]
        random = generator(*seed_names, "augmentation", step)
        images, truth = augment(to_float(scenes[chosen]), truth, settings, random)
        truth = [(box / scale).to(device) for box in truth]
        face_loss = box_loss = 0.0
        for logits, predicted, priors in detector.shots(images.to(device)):
            faces, encoded = targets(truth, priors, settings["match_threshold"], match=detector.match)
            losses = multibox_loss(logits, predicted, faces, encoded, settings["negatives"])
            face_loss, box_loss = face_loss + losses[0], box_loss + losses[1]
        loss = face_loss + settings["box_weight"] * box_loss
        for group in optimizer.param_groups:
            group["lr"] = settings["learning_rate"] * _schedule(step, settings["steps"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": loss.item(), "face": face_loss.item(), "box": box_loss.item()}

    # Steps are faster so, on a CPU as well.
    network.train().to(memory_format=torch.channels_last)
    try:
        history = run_steps(
            settings["steps"],
            step_fn,
            {"network": network, "optimizer": optimizer},
            state_path,
            description=detector.title,
        )
    finally:
        detector.freeze()
    last = history[-max(1, len(history) // 20) :]
    say(f"{detector.title}: mean loss of the last steps {np.mean([row['loss'] for row in last]):.3f}")
    return history


def _schedule(step, steps):
    rising = (step + 1) / max(1, steps // 20)
    return min(1.0, rising) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


def _checked(settings, own):
    unknown = sorted(set(settings) - set(DEFAULTS))
    if unknown:
        raise HoldfastError(
            f"detector training knows no setting `{unknown[0]}`", expected=f"any of {', '.join(DEFAULTS)}"
        )
    merged = {**DEFAULTS, **own, **settings}
    if merged["start"] not in ("scratch", "given"):
        raise HoldfastError(
            "detector training: `start` is unknown", found=merged["start"], expected="scratch or given"
        )
    for key in ("steps", "batch"):
        if merged[key] < 1:
            raise HoldfastError(
                f"detector training: `{key}` is too small", found=merged[key], expected="1 or more"
            )
    return merged
