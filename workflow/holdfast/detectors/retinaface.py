"""RetinaFace with a MobileNetV1 backbone: J. Deng et al., "RetinaFace: Single-shot Multi-level Face
Localisation in the Wild", CVPR 2020, in the layout of the public PyTorch weights (MobileNet x 0.25,
426,608 parameters), which load strictly.

    image -> BGR 0..255 minus mean -> MobileNetV1 stages at strides 8, 16, 32 -> feature pyramid
          -> one SSH context module per level -> 1x1 heads: class, box, five landmarks
"""

import json
import pickle
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from holdfast.detectors import boxes as box_math
from holdfast.errors import HoldfastError
from holdfast.tensors import write_tensors

STRIDES = (8, 16, 32)
MEAN_BGR = (104.0, 117.0, 123.0)
SMALLEST_SIDE = 32
SETTINGS = {
    "width": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 0.25,
        "description": "Channel multiplier of MobileNetV1; 0.25 is the published network.",
    },
    "input_size": {
        "type": ["integer", "null"],
        "minimum": 32,
        "default": None,
        "description": "Side in pixels that images are resized to; null: as they are given.",
    },
    "anchors": {
        "type": "array",
        "minItems": 3,
        "maxItems": 3,
        "items": {"type": "array", "minItems": 1, "items": {"type": "number", "exclusiveMinimum": 0}},
        "default": [[16, 32], [64, 128], [256, 512]],
        "description": "Sides of the anchors in pixels of the input, per level.",
    },
    "nms_threshold": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.4,
        "description": "IoU above which the weaker of two boxes is dropped; as in the public code.",
    },
    "candidates": {
        "type": "integer",
        "minimum": 1,
        "default": 5000,
        "description": "Best boxes that enter the suppression.",
    },
    "keep": {
        "type": "integer",
        "minimum": 1,
        "default": 750,
        "description": "Best boxes that may leave the suppression.",
    },
    "batch": {"type": "integer", "minimum": 1, "default": 32, "description": "Images per pass in `detect`."},
}
DEFAULTS = {name: setting["default"] for name, setting in SETTINGS.items()}


def _activation(channels):
    # The public code gives narrow maps a leak, "otherwise the network does not learn".
    return nn.LeakyReLU(0.1 if channels <= 64 else 0.0)


def _conv_bn(inputs, outputs, kernel=3, stride=1, activation=None):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation] if activation else []))


def _separable(inputs, outputs, stride=1):
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.LeakyReLU(0.1),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.1),
    )


class _Backbone(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.stage1 = nn.Sequential(
            _conv_bn(3, c, stride=2, activation=nn.LeakyReLU(0.1)),
            _separable(c, 2 * c),
            _separable(2 * c, 4 * c, stride=2),
            _separable(4 * c, 4 * c),
            _separable(4 * c, 8 * c, stride=2),
            _separable(8 * c, 8 * c),
        )
        self.stage2 = nn.Sequential(
            _separable(8 * c, 16 * c, stride=2), *(_separable(16 * c, 16 * c) for _ in range(5))
        )
        self.stage3 = nn.Sequential(_separable(16 * c, 32 * c, stride=2), _separable(32 * c, 32 * c))

    def forward(self, x):
        fine = self.stage1(x)
        middle = self.stage2(fine)
        return fine, middle, self.stage3(middle)


class _FeaturePyramid(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.output1, self.output2, self.output3 = (
            _conv_bn(channels, outputs, kernel=1, activation=_activation(outputs)) for channels in inputs
        )
        self.merge1 = _conv_bn(outputs, outputs, activation=_activation(outputs))
        self.merge2 = _conv_bn(outputs, outputs, activation=_activation(outputs))

    def forward(self, fine, middle, coarse):
        fine, middle, coarse = self.output1(fine), self.output2(middle), self.output3(coarse)
        middle = self.merge2(middle + functional.interpolate(coarse, size=middle.shape[2:], mode="nearest"))
        fine = self.merge1(fine + functional.interpolate(middle, size=fine.shape[2:], mode="nearest"))
        return fine, middle, coarse


class _SSH(nn.Module):
    """Context module of the Single Stage Headless detector: 3x3, 5x5 and 7x7 fields side by side."""

    def __init__(self, channels):
        super().__init__()
        half, quarter = channels // 2, channels // 4
        # The spelling of the names, "7X7_2" and "7x7_3", is that of the public weights.
        self.conv3X3 = _conv_bn(channels, half)
        self.conv5X5_1 = _conv_bn(channels, quarter, activation=_activation(channels))
        self.conv5X5_2 = _conv_bn(quarter, quarter)
        self.conv7X7_2 = _conv_bn(quarter, quarter, activation=_activation(channels))
        self.conv7x7_3 = _conv_bn(quarter, quarter)

    def forward(self, x):
        shared = self.conv5X5_1(x)
        fields = [self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))]
        return functional.relu(torch.cat(fields, dim=1))


class _Head(nn.Module):
    def __init__(self, channels, anchors, values):
        super().__init__()
        self.anchors, self.values = anchors, values
        self.conv1x1 = nn.Conv2d(channels, anchors * values, 1)

    def forward(self, x):
        count = self.anchors * x.shape[2] * x.shape[3]
        return self.conv1x1(x).permute(0, 2, 3, 1).reshape(len(x), count, self.values)


class RetinaFaceNetwork(nn.Module):
    """The network proper: (N, 3, H, W), BGR minus mean, to logits, encoded boxes and landmarks."""

    def __init__(self, width=0.25, anchors_per_cell=(2, 2, 2)):
        super().__init__()
        base = round(32 * width)
        channels = 8 * base
        self.body = _Backbone(base)
        self.fpn = _FeaturePyramid((8 * base, 16 * base, 32 * base), channels)
        self.ssh1, self.ssh2, self.ssh3 = (_SSH(channels) for _ in range(3))
        self.ClassHead = nn.ModuleList(_Head(channels, count, 2) for count in anchors_per_cell)
        self.BboxHead = nn.ModuleList(_Head(channels, count, 4) for count in anchors_per_cell)
        self.LandmarkHead = nn.ModuleList(_Head(channels, count, 10) for count in anchors_per_cell)

    def levels(self, x):
        """The three SSH outputs, (N, 256·width, ceil(H/s), ceil(W/s)) for strides s = 8, 16, 32."""
        fine, middle, coarse = self.fpn(*self.body(x))
        return [self.ssh1(fine), self.ssh2(middle), self.ssh3(coarse)]

    def heads(self, levels):
        """Class logits (N, P, 2), background first, and encoded boxes (N, P, 4)."""
        logits = torch.cat([head(x) for head, x in zip(self.ClassHead, levels, strict=True)], dim=1)
        encoded = torch.cat([head(x) for head, x in zip(self.BboxHead, levels, strict=True)], dim=1)
        return logits, encoded

    def landmarks(self, levels):
        """Encoded landmarks (N, P, 10): five points, x and y. Public weights know them; ours do not."""
        return torch.cat([head(x) for head, x in zip(self.LandmarkHead, levels, strict=True)], dim=1)

    def forward(self, x):
        levels = self.levels(x)
        return *self.heads(levels), self.landmarks(levels)


class RetinaFace:
    """A face detector that is attacked, not changed: frozen and in eval mode unless it is trained.

    Images are float (N, 3, H, W), RGB in [-1, 1], H and W at least 32.

    Args:
        settings: any of :data:`DEFAULTS`, which explains them.

    Raises:
        HoldfastError: an unknown setting, or a value that makes no network.
    """

    title = "RetinaFace"
    paper = "Deng et al., CVPR 2020"
    licence = "MIT (code and weights)"

    def __init__(self, settings=None):
        self.settings = _checked(settings or {})
        self.network = RetinaFaceNetwork(self.settings["width"], [len(a) for a in self.settings["anchors"]])
        self._priors = {}
        self.freeze()

    @property
    def device(self):
        return self.network.ClassHead[0].conv1x1.weight.device

    def to(self, device):
        self.network.to(device)
        return self

    def freeze(self):
        """Eval mode, no gradients for the parameters (gradients still reach the images)."""
        self.network.eval().requires_grad_(False)
        return self

    def _input(self, images):
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SMALLEST_SIDE:
            raise HoldfastError(
                f"{self.title} cannot take these images",
                found=f"shape {tuple(images.shape)}",
                expected=f"(N, 3, H, W) with H and W of {SMALLEST_SIDE} or more",
            )
        size = self.settings["input_size"]
        if size is not None and tuple(images.shape[2:]) != (size, size):
            images = functional.interpolate(
                images, size=(size, size), mode="bilinear", align_corners=False, antialias=True
            )
        mean = torch.tensor(MEAN_BGR, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
        return (images.flip(1) + 1) * 127.5 - mean

    def levels(self, images):
        """The features that defences attack: three SSH outputs, differentiable w.r.t. `images`."""
        return self.network.levels(self._input(images))

    def raw(self, images):
        """Logits (N, P, 2) (background, face) and encoded boxes (N, P, 4), differentiable."""
        return self.network.heads(self.levels(images))

    def levels_and_raw(self, images):
        """:meth:`levels` and :meth:`raw` of one pass, for losses that need both."""
        levels = self.levels(images)
        return levels, self.network.heads(levels)

    def priors(self, height, width):
        """Anchors (P, 4) for images of height × width pixels: centre form, fractions of the image."""
        size = self.settings["input_size"]
        if size is not None:
            height = width = size
        key = (height, width, str(self.device))
        if key not in self._priors:
            found = box_math.anchors(height, width, self.settings["anchors"], STRIDES)
            self._priors[key] = found.to(self.device)
        return self._priors[key]

    def decode(self, encoded, priors):
        """Encoded boxes (..., P, 4) to corner form, as fractions of the image."""
        return box_math.decode(encoded, priors)

    @torch.no_grad()
    def detect(self, images, threshold=0.5):
        """Boxes above a score, after non-maximum suppression.

        Args:
            images: (N, 3, H, W) in [-1, 1].
            threshold: a box is kept if its score is above this.

        Returns:
            N pairs of boxes (k, 4), corner form in pixels of `images`, not clipped to them, and
            scores (k,) in (0, 1], best first. On the detector's device.
        """
        height, width = images.shape[2:]
        scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=self.device)
        found = []
        for chunk in images.split(self.settings["batch"]):
            logits, encoded = self.raw(chunk.to(self.device))
            scores = torch.softmax(logits, dim=-1)[..., 1]
            boxes = self.decode(encoded, self.priors(height, width)) * scale
            found += [self._suppressed(*pair, threshold) for pair in zip(boxes, scores, strict=True)]
        return found

    def _suppressed(self, boxes, scores, threshold):
        above = torch.nonzero(scores > threshold)[:, 0]
        order = above[torch.argsort(scores[above], descending=True, stable=True)]
        order = order[: self.settings["candidates"]]
        boxes, scores = boxes[order], scores[order]
        kept = box_math.nms(boxes, scores, self.settings["nms_threshold"])[: self.settings["keep"]]
        return boxes[kept], scores[kept]

    def load(self, path):
        """Weights from our .safetensors or from the public .pth (prefix ``module.`` removed), strictly.

        Raises:
            HoldfastError: the file is missing, truncated, holds other things than tensors, or
                belongs to another architecture or other anchors.
        """
        path = Path(path)
        if not path.is_file():
            raise HoldfastError(f"{path} is missing", expected=f"weights of {self.title}")
        if path.suffix == ".safetensors":
            state = self._read_safetensors(path)
        else:
            state = _read_public(path)
        self._check_architecture(state, path)
        self.network.load_state_dict(state, strict=True)
        return self.freeze()

    def save(self, path):
        """Weights as .safetensors, with the settings that they belong to."""
        about = {"model": "retinaface", "settings": json.dumps(self.settings, sort_keys=True)}
        write_tensors(path, self.network.state_dict(), about)

    def _read_safetensors(self, path):
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
            state = load_file(path)
            saved = json.loads(about.get("settings", "{}"))
        except (safetensors.SafetensorError, ValueError) as error:
            raise HoldfastError(
                f"cannot read {path}",
                found=str(error),
                expected="a whole .safetensors file",
                repair="remove it and let the rule that makes it run again",
            ) from error
        for key in ("width", "anchors"):
            if key in saved and saved[key] != self.settings[key]:
                raise HoldfastError(
                    f"{path} was trained with another `{key}`",
                    found=saved[key],
                    expected=self.settings[key],
                    repair=f"set the detector's `{key}` to the file's, or train again",
                )
        return state

    def _check_architecture(self, state, path):
        own = {name: tuple(tensor.shape) for name, tensor in self.network.state_dict().items()}
        given = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in state.items()}
        wrong = [f"missing {name}" for name in own if name not in given]
        wrong += [f"unknown {name}" for name in given if name not in own]
        wrong += [
            f"{name} is {given[name]}, not {shape}"
            for name, shape in own.items()
            if given.get(name, shape) != shape
        ]
        if wrong:
            raise HoldfastError(
                f"{path} holds the weights of another architecture",
                found=f"{'; '.join(wrong[:4])}{f'; and {len(wrong) - 4} more' if len(wrong) > 4 else ''}",
                expected=f"RetinaFace on MobileNetV1 x {self.settings['width']}",
                repair="name this network's file (public: mobilenet0.25_Final.pth), or set `width` to its",
            )


def _read_public(path):
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise HoldfastError(
            f"cannot read {path} as weights",
            found=str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
            expected="a whole torch checkpoint that holds tensors only",
            repair="get the file again and compare its sha256; a checkpoint that holds code is never run",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise HoldfastError(
            f"{path} is no state dict", found=type(state).__name__, expected="names to tensors"
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _checked(settings):
    unknown = sorted(set(settings) - set(DEFAULTS))
    if unknown:
        raise HoldfastError(
            f"RetinaFace knows no setting `{unknown[0]}`", expected=f"any of {', '.join(DEFAULTS)}"
        )
    merged = {**DEFAULTS, **settings}
    base = 32 * merged["width"]
    if base != round(base) or base < 1:
        raise HoldfastError(
            "RetinaFace's `width` makes no whole channels",
            found=merged["width"],
            expected="a multiple of 1/32 above 0; 0.25 is the published network",
        )
    anchors = merged["anchors"]
    if len(anchors) != len(STRIDES) or not all(level and min(level) > 0 for level in anchors):
        raise HoldfastError(
            "RetinaFace's `anchors` do not fit its levels",
            found=anchors,
            expected="three non-empty lists of sides in pixels, for strides 8, 16 and 32",
        )
    merged["anchors"] = [list(level) for level in anchors]
    size = merged["input_size"]
    if size is not None and size < SMALLEST_SIDE:
        raise HoldfastError(
            "RetinaFace's `input_size` is too small", found=size, expected=f"null, or {SMALLEST_SIDE} or more"
        )
    return merged


REGISTER = {"retinaface": RetinaFace}
